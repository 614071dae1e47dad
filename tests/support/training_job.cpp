#include "tests/support/training_job.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "runtime/io/checkpoint.h"
#include "runtime/io/corpus.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"([model]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
[training]
seq_len = 96
tokens_per_step = 384
steps = 60
[optimizer]
lr = 1e-3
[lr_scheduler]
warmup_steps = 5
[parallelism]
context_parallel_degree = -1
[checkpoint]
interval = 1000
[comm]
timeout_seconds = 30
[debug]
threads = 1
)";

/// The text of a number in a line of JSON.
std::string number_text(const std::string& line, const std::string& key) {
  const std::string name = "\"" + key + "\":";
  const auto at = line.find(name);
  if (at == std::string::npos) return "";
  const auto begin = at + name.size();
  return line.substr(begin, line.find_first_of(",}", begin) - begin);
}

std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

void write_random_corpus(const std::string& path, std::int64_t tokens, std::int64_t vocabulary,
                         unsigned seed) {
  std::mt19937 random(seed);
  runtime::CorpusWriter writer(path, vocabulary, "bytes");
  while (tokens > 0) {
    const std::int64_t length =
        std::min<std::int64_t>(tokens, 1 + static_cast<std::int64_t>(random() % 200));
    std::vector<std::int32_t> document;
    for (std::int64_t i = 0; i < length; ++i) {
      document.push_back(
          static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocabulary)));
    }
    writer.append(document);
    writer.end_document();
    tokens -= length;
  }
  writer.finish();
}

TrainingJob::TrainingJob() : corpus_(folder_.file("corpus.h5")) {
  write_random_corpus(corpus_, 12'000, 61, 1);
  config_ = folder_.write("run.toml", kConfig + ("[data]\ncorpus = \"" + corpus_) +
                                          "\"\n[job]\noutput_dir = \"" + output("out") + "\"\n");
}

std::string TrainingJob::output(const std::string& name, const std::string& file) const {
  const std::string path = folder_.file(name);
  return file.empty() ? path : path + "/" + file;
}

std::vector<std::string> TrainingJob::train(const std::string& name,
                                            const std::vector<std::string>& sets) const {
  std::vector<std::string> arguments = {"train", config_, "--set",
                                        "job.output_dir=" + output(name)};
  for (const std::string& set : sets) arguments.insert(arguments.end(), {"--set", set});
  return arguments;
}

ProcessResult TrainingJob::run(int ranks, const std::string& name,
                               const std::vector<std::string>& sets) const {
  const std::vector<std::string> arguments = train(name, sets);
  return ranks > 0 ? run_process(mpirun_command(ranks, arguments)) : run_longhaul(arguments);
}

StepTexts TrainingJob::steps(const std::string& name) const {
  StepTexts steps;
  std::istringstream lines(slurp(output(name, "metrics.jsonl")));
  for (std::string line; std::getline(lines, line);) {
    const std::string step = number_text(line, "step");
    if (step.empty() || !line.ends_with('}') ||
        line.find("\"record\":\"step\"") == std::string::npos)
      continue;
    steps[std::stoll(step)] = number_text(line, "loss") + " " + number_text(line, "grad_norm");
  }
  return steps;
}

std::vector<std::int64_t> TrainingJob::checkpoints(const std::string& name) const {
  return runtime::list_checkpoints(output(name, "checkpoints"));
}

std::string TrainingJob::checkpoint(const std::string& name, std::int64_t step) const {
  const std::string digits = std::to_string(step);
  return output(name, "checkpoints/step-" + std::string(8 - digits.size(), '0') + digits);
}

std::map<pid_t, int> processes_of(const std::string& folder) {
  std::map<pid_t, int> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (slurp(entry.path() / "cmdline").find(folder) == std::string::npos) continue;
    const std::string environment = '\0' + slurp(entry.path() / "environ");
    const std::string key = std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=";
    const auto at = environment.find(key);
    found[static_cast<pid_t>(std::stol(name))] =
        at == std::string::npos ? -1 : std::stoi(environment.substr(at + key.size()));
  }
  return found;
}

pid_t process_of_rank(const std::string& folder, int rank) {
  for (const auto& [process, of_rank] : processes_of(folder)) {
    if (of_rank == rank) return process;
  }
  return -1;
}

bool wait_until(const std::function<bool()>& condition, double seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace longhaul::test
