#include "launch/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/build_info.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Every field of StepMetrics with its name in the file, in the file's order.
template <class Metrics, class Visit>
void for_each_field(Metrics& metrics, Visit visit) {
  visit("step", metrics.step);
  visit("loss", metrics.loss);
  visit("grad_norm", metrics.grad_norm);
  visit("learning_rate", metrics.learning_rate);
  visit("tokens", metrics.tokens);
  visit("labels", metrics.labels);
  visit("tokens_per_second", metrics.tokens_per_second);
  visit("seconds", metrics.seconds);
  visit("mfu", metrics.mfu);
  visit("memory_bytes", metrics.memory_bytes);
  visit("comm_seconds", metrics.comm_seconds);
  visit("epoch", metrics.epoch);
  visit("cursor", metrics.cursor);
  visit("attention_area", metrics.attention_area);
}

void read_field(const Json& value, std::int64_t& field) { field = value.get<std::int64_t>(); }
void read_field(const Json& value, double& field) {  // JSON has no NaN: it is written as null
  field = value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

Json header_json(const RunHeader& header) {
  const runtime::BuildInfo& build = runtime::build_info();
  Json json;
  json["record"] = "header";
  json["config"] = Json::parse(to_json(header.config));
  json["config_digest"] = fmt::format("{:016x}", digest(header.config));
  json["build"] = {{"version", build.version},   {"commit", build.commit},
                   {"compiler", build.compiler}, {"build_type", build.build_type},
                   {"cuda", build.cuda},         {"digest", runtime::build_digest()}};
  json["grid"] = {{"ranks", header.grid.ranks()},
                  {"data", header.grid.data},
                  {"context", header.grid.context},
                  {"tensor", header.grid.tensor},
                  {"pipeline", header.grid.pipeline}};
  json["schemes"] = Json::array();
  for (const auto& [step, scheme] : header.schemes)
    json["schemes"].push_back({{"step", step}, {"scheme", scheme}});
  json["hosts"] = header.hosts;
  json["communicator"] = header.communicator;
  json["parameters"] = header.parameters;
  json["accumulation_steps"] = header.accumulation_steps;
  json["corpus"] = {
      {"digest", header.corpus_digest},
      {"tokens", header.corpus_tokens},
      {"vocabulary_size", header.vocabulary_size},
      {"unigram_entropy", header.unigram_entropy ? Json(*header.unigram_entropy) : Json(nullptr)}};
  json["peak_flops"] = header.peak_flops;
  json["flop_convention"] = header.flop_convention;
  return json;
}

std::string one_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

struct Parsed {
  MetricsLog log;
  std::vector<std::int64_t> end_bytes;  // of each step's line
  std::int64_t header_end_bytes = 0;
};

[[noreturn]] void bad_line(const std::string& path, std::int64_t line, const std::string& why) {
  fail(ExitCode::data, path, ":", line, ": ", why);
}

Json parse_line(const std::string& path, std::int64_t number, std::string_view line) {
  Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) bad_line(path, number, "expected a JSON object");
  return json;
}

StepMetrics step_of(const std::string& path, std::int64_t number, const Json& json) {
  StepMetrics metrics;
  try {
    for_each_field(metrics, [&](const char* name, auto& field) {
      const auto found = json.find(name);
      if (found != json.end()) read_field(*found, field);
    });
    if (!json.contains("step") || !json.contains("loss"))
      bad_line(path, number, "expected step and loss");
  } catch (const nlohmann::json::exception& error) {
    bad_line(path, number, error.what());
  }
  return metrics;
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.bad()) fail(ExitCode::io, path, ": cannot be read");
  return std::move(text).str();
}

Parsed parse(const std::string& path) {
  const std::string text = read_all(path);
  Parsed parsed;
  std::size_t begin = 0;
  for (std::int64_t number = 1; begin < text.size(); ++number) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn: its writer was killed
    const std::string_view line(text.data() + begin, end - begin);
    const Json json = parse_line(path, number, line);
    const auto end_bytes = static_cast<std::int64_t>(end) + 1;
    if (number == 1) {
      if (json.value("record", "") != "header")
        bad_line(path, number, "expected the header record");
      parsed.log.header_json = line;
      parsed.header_end_bytes = end_bytes;
      const auto entropy = json.find("corpus");
      if (entropy != json.end() && entropy->is_object() && entropy->contains("unigram_entropy") &&
          (*entropy)["unigram_entropy"].is_number()) {
        parsed.log.unigram_entropy = (*entropy)["unigram_entropy"].get<double>();
      }
      const auto grid = json.find("grid");
      if (grid != json.end() && grid->is_object() && grid->contains("ranks") &&
          (*grid)["ranks"].is_number()) {
        parsed.log.ranks = (*grid)["ranks"].get<std::int64_t>();
      }
    } else {
      parsed.log.steps.push_back(step_of(path, number, json));
      parsed.end_bytes.push_back(end_bytes);
    }
    begin = end + 1;
  }
  if (parsed.log.header_json.empty()) bad_line(path, 1, "expected the header record");
  return parsed;
}

[[noreturn]] void fail_io(const std::string& path, const char* what) {
  const int code = errno;
  fail(ExitCode::io, path, ": ", what, ": ", std::strerror(code));
}

void move_aside(const std::string& path) {
  for (int number = 1;; ++number) {
    const std::string other = fmt::format("{}.{}", path, number);
    std::error_code error;
    if (fs::exists(other, error)) continue;
    fs::rename(path, other, error);
    if (error) fail(ExitCode::io, path, ": cannot be renamed to ", other, ": ", error.message());
    return;
  }
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  const auto minutes = whole / 60;
  if (minutes < 24 * 60) return fmt::format("{}h{:02}m", minutes / 60, minutes % 60);
  return fmt::format("{}d{:02}h", minutes / 1440, minutes % 1440 / 60);
}

std::string console_line(const StepMetrics& metrics, const ConsoleContext& context) {
  constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
  const double memory = static_cast<double>(metrics.memory_bytes) / kGib;
  const std::string total =
      context.memory_total_bytes > 0
          ? fmt::format("/{:.1f}", static_cast<double>(context.memory_total_bytes) / kGib)
          : "";
  const double comm = metrics.seconds > 0 ? 100 * metrics.comm_seconds / metrics.seconds : 0;
  return fmt::format(
      "step {}/{} | loss {:.4f} | gnorm {:.2f} | lr {:.2e} | {} tok/s | mfu {:.1f}% | mem {:.1f}{} "
      "GiB | "
      "comm {:.1f}% | eta {}",
      metrics.step, context.steps, metrics.loss, metrics.grad_norm, metrics.learning_rate,
      grouped(std::llround(metrics.tokens_per_second)), 100 * metrics.mfu, memory, total, comm,
      duration_text(context.seconds_left));
}

MetricsWriter::MetricsWriter(std::string path, const RunHeader& header, std::int64_t resumed_step)
    : path_(std::move(path)) {
  std::error_code error;
  const fs::path parent = fs::path(path_).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) fail(ExitCode::io, parent.string(), ": cannot be created: ", error.message());
  const std::string header_line = one_line(header_json(header));
  const bool exists = fs::exists(path_, error);
  const bool go_on = exists && resumed_step > 0;
  std::int64_t kept_bytes = 0;
  if (go_on) {
    const Parsed parsed = parse(path_);
    kept_bytes = parsed.header_end_bytes;
    for (std::size_t i = 0; i < parsed.log.steps.size() && parsed.log.steps[i].step <= resumed_step;
         ++i) {
      kept_bytes = parsed.end_bytes[i];
    }
    resumed_run_ = header_line;
  } else if (exists) {
    move_aside(path_);
  }
  const int flags = O_WRONLY | O_APPEND | O_CLOEXEC | (go_on ? 0 : O_CREAT | O_EXCL);
  file_ = ::open(path_.c_str(), flags, 0644);
  if (file_ < 0) fail_io(path_, "cannot be opened for writing");
  try {
    if (go_on) {
      // One call shortens the file: whenever it is interrupted, the kept lines are whole.
      if (::ftruncate(file_, kept_bytes) != 0 || ::fsync(file_) != 0)
        fail_io(path_, "cannot be shortened");
    } else {
      write_line(header_line);
    }
  } catch (...) {
    ::close(file_);
    throw;
  }
}

MetricsWriter::~MetricsWriter() { ::close(file_); }

void MetricsWriter::write(const StepMetrics& metrics) {
  Json json;
  json["record"] = "step";
  for_each_field(metrics, [&](const char* name, const auto& field) { json[name] = field; });
  if (!resumed_run_.empty()) json["run"] = Json::parse(resumed_run_);
  write_line(one_line(json));
  resumed_run_.clear();
}

void MetricsWriter::write_line(std::string line) {
  std::string_view rest(line);
  while (!rest.empty()) {
    const ssize_t written = ::write(file_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_io(path_, "writing failed");
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
}

MetricsLog read_metrics(const std::string& path) { return parse(path).log; }

}  // namespace longhaul::launch
