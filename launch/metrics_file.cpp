// metrics.jsonl: its lines, who writes them and who reads them.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/metrics.h"
#include "runtime/build_info.h"
#include "runtime/error.h"
#include "runtime/io/file.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

template <class Metrics, class Record>
concept Of = std::same_as<std::remove_const_t<Metrics>, Record>;

// Every field of a record with its name in the file, in the file's order.
template <Of<StepMetrics> Metrics, class Visit>
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
  visit("loading_seconds", metrics.loading_seconds);
  visit("epoch", metrics.epoch);
  visit("cursor", metrics.cursor);
  visit("attention_area", metrics.attention_area);
  visit("attention_seconds", metrics.attention_seconds);
  visit("straggler_seconds", metrics.straggler_seconds);
  visit("attention_imbalance", metrics.attention_imbalance);
}

template <Of<ValidationMetrics> Metrics, class Visit>
void for_each_field(Metrics& metrics, Visit visit) {
  visit("step", metrics.step);
  visit("loss", metrics.loss);
  visit("tokens", metrics.tokens);
  visit("labels", metrics.labels);
  visit("tokens_per_second", metrics.tokens_per_second);
  visit("seconds", metrics.seconds);
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
  json["build"] = {
      {"version", build.version},         {"commit", build.commit}, {"compiler", build.compiler},
      {"build_type", build.build_type},   {"cuda", build.cuda},     {"cudnn", build.cudnn},
      {"digest", runtime::build_digest()}};
  json["grid"] = {{"ranks", header.grid.ranks() + header.dedicated_servers},
                  {"data", header.grid.data},
                  {"context", header.grid.context},
                  {"tensor", header.grid.tensor},
                  {"pipeline", header.grid.pipeline},
                  {"dedicated_servers", header.dedicated_servers}};
  json["schemes"] = Json::array();
  for (const auto& [step, scheme] : header.schemes)
    json["schemes"].push_back({{"step", step}, {"scheme", scheme}});
  if (!header.linear_scheme.empty()) json["linear_scheme"] = header.linear_scheme;
  if (!header.attention_servers.empty()) json["attention_servers"] = header.attention_servers;
  json["hosts"] = header.hosts;
  json["communicator"] = header.communicator;
  json["devices"] = header.devices;
  json["parameters"] = header.parameters;
  json["accumulation_steps"] = header.accumulation_steps;
  json["corpus"] = {
      {"digest", header.corpus_digest},
      {"tokens", header.corpus_tokens},
      {"vocabulary_size", header.vocabulary_size},
      {"unigram_entropy", header.unigram_entropy ? Json(*header.unigram_entropy) : Json(nullptr)},
      {"label_weights", header.label_weights.empty() ? Json(nullptr) : Json(header.label_weights)}};
  json["corpora"] = Json::array();
  for (const CorpusPart& part : header.corpora) {
    json["corpora"].push_back(
        {{"path", part.path},
         {"digest", part.digest},
         {"share", part.share},
         {"tokens", part.tokens},
         {"sequences_per_epoch", part.sequences_per_epoch},
         {"epochs", part.epochs},
         {"unigram_entropy", part.unigram_entropy ? Json(*part.unigram_entropy) : Json(nullptr)},
         {"label_weights", part.label_weights.empty() ? Json(nullptr) : Json(part.label_weights)}});
  }
  json["validation"] = nullptr;
  if (header.validation) {
    json["validation"] = {{"corpus_digest", header.validation->corpus_digest},
                          {"sequences", header.validation->sequences},
                          {"tokens", header.validation->tokens}};
  }
  json["peak_flops"] = header.peak_flops;
  json["peak_convention"] = header.peak_convention;
  json["flop_convention"] = header.flop_convention;
  json["pretended"] = header.pretended.empty() ? Json(nullptr) : Json(header.pretended);
  return json;
}

std::string one_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// A file's text and what its whole lines say.
struct Parsed {
  /// A line behind the header.
  struct Line {
    std::int64_t step = 0;
    bool validation = false;
    std::size_t begin = 0;
    std::string run;  ///< the header of the run that it begins, or empty
  };
  std::string text;
  MetricsLog log;
  std::vector<Line> lines;
  std::size_t end = 0;  ///< of the last whole line
};

[[noreturn]] void bad_line(const std::string& path, std::int64_t line, const std::string& why) {
  fail(ExitCode::data, path, ":", line, ": ", why);
}

Json parse_line(const std::string& path, std::int64_t number, std::string_view line) {
  Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) bad_line(path, number, "expected a JSON object");
  return json;
}

template <class Metrics>
Metrics record_of(const std::string& path, std::int64_t number, const Json& json) {
  Metrics metrics;
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

void read_header(const std::string& path, std::string_view line, const Json& json,
                 MetricsLog& log) {
  const auto record = json.find("record");
  if (record == json.end() || *record != "header") bad_line(path, 1, "expected the header record");
  log.header_json = line;
  const auto number_in = [&](const char* object, const char* name) -> const Json* {
    const auto outer = json.find(object);
    if (outer == json.end() || !outer->is_object()) return nullptr;
    const auto inner = outer->find(name);
    return inner == outer->end() || !inner->is_number() ? nullptr : &*inner;
  };
  if (const Json* entropy = number_in("corpus", "unigram_entropy"))
    log.unigram_entropy = entropy->get<double>();
  if (const Json* ranks = number_in("grid", "ranks")) log.ranks = ranks->get<std::int64_t>();
  if (const auto model = json.find("pretended"); model != json.end() && model->is_string())
    log.pretended = model->get<std::string>();
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.bad()) fail(ExitCode::io, path, ": cannot be read");
  return std::move(text).str();
}

Parsed parse(const std::string& path) {
  Parsed parsed;
  parsed.text = read_all(path);
  for (std::int64_t number = 1; parsed.end < parsed.text.size(); ++number) {
    const std::size_t begin = parsed.end, end = parsed.text.find('\n', begin);
    if (end == std::string::npos) break;  // torn: its writer was killed
    const std::string_view line(parsed.text.data() + begin, end - begin);
    const Json json = parse_line(path, number, line);
    parsed.end = end + 1;
    if (number == 1) {
      read_header(path, line, json, parsed.log);
      continue;
    }
    Parsed::Line entry;
    entry.begin = begin;
    const auto record = json.find("record");
    entry.validation = record != json.end() && *record == "validation";
    if (entry.validation) {
      parsed.log.validations.push_back(record_of<ValidationMetrics>(path, number, json));
      entry.step = parsed.log.validations.back().step;
    } else {
      parsed.log.steps.push_back(record_of<StepMetrics>(path, number, json));
      entry.step = parsed.log.steps.back().step;
    }
    const auto run = json.find("run");
    if (run != json.end() && run->is_object()) entry.run = one_line(*run);
    parsed.lines.push_back(std::move(entry));
  }
  if (parsed.log.header_json.empty()) bad_line(path, 1, "expected the header record");
  return parsed;
}

[[noreturn]] void fail_io(const std::string& path, const char* what) {
  const int code = errno;
  const std::string full = code == ENOSPC || code == EDQUOT ? "no space left for " : "";
  fail(ExitCode::io, full, path, ": ", what, ": ", std::strerror(code));
}

/// PATH.1, or with the first number that is free.
std::string free_name(const std::string& path) {
  std::error_code error;
  for (int number = 1;; ++number) {
    std::string name = fmt::format("{}.{}", path, number);
    if (!fs::exists(fs::symlink_status(name, error))) return name;
  }
}

/// A file without a whole line, of a run that was killed as it began, is nothing to go on with.
bool has_a_line(const std::string& path) { return read_all(path).find('\n') != std::string::npos; }

fs::path folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent;
}

/// Writes the lines from `first` on to `name`, behind the header that they were written under.
/// Nothing is left under the name when that fails.
void keep_lines(const Parsed& parsed, std::size_t first, const std::string& name) {
  std::string kept = parsed.log.header_json + "\n";
  for (std::size_t i = 0; i < first; ++i) {
    if (!parsed.lines[i].run.empty()) kept = parsed.lines[i].run;
  }
  const std::size_t begin = parsed.lines[first].begin;
  kept.append(parsed.text, begin, parsed.end - begin);
  runtime::Cleanup incomplete([&] {
    std::error_code error;
    fs::remove(name, error);
  });
  runtime::write_new_file(name, kept);
  runtime::sync_folder(folder_of(name));
  incomplete.dismiss();
}

}  // namespace

MetricsWriter::MetricsWriter(std::string path, const RunHeader& header, std::int64_t resumed_step)
    : path_(std::move(path)) {
  std::error_code error;
  fs::create_directories(folder_of(path_), error);
  if (error)
    fail(ExitCode::io, folder_of(path_).string(), ": cannot be created: ", error.message());
  const std::string header_line = one_line(header_json(header));
  const bool exists = fs::exists(path_, error);
  const bool go_on = exists && resumed_step > 0 && has_a_line(path_);
  std::size_t whole = 0;  // bytes of the file to go on with
  if (go_on) {
    const Parsed parsed = parse(path_);
    const auto later = std::ranges::find_if(
        parsed.lines, [&](const Parsed::Line& line) { return line.step > resumed_step; });
    for (auto line = parsed.lines.begin(); line != later; ++line) {
      if (line->validation) validated_step_ = line->step;
    }
    whole = parsed.end;
    if (later != parsed.lines.end()) {
      whole = later->begin;
      kept_in_ = free_name(path_);
      keep_lines(parsed, static_cast<std::size_t>(later - parsed.lines.begin()), kept_in_);
    }
    resumed_run_ = header_line;
  } else if (exists) {
    kept_in_ = free_name(path_);
    fs::rename(path_, kept_in_, error);
    if (error)
      fail(ExitCode::io, path_, ": cannot be renamed to ", kept_in_, ": ", error.message());
  }
  const int flags = O_WRONLY | O_APPEND | O_CLOEXEC | (go_on ? 0 : O_CREAT | O_EXCL);
  file_ = ::open(path_.c_str(), flags, 0644);
  if (file_ < 0) fail_io(path_, "cannot be opened for writing");
  try {
    if (go_on) {
      // One call shortens the file: whenever it is interrupted, the kept lines are whole.
      if (::ftruncate(file_, static_cast<off_t>(whole)) != 0 || ::fsync(file_) != 0)
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

template <class Metrics>
void MetricsWriter::write_record(const char* name, const Metrics& metrics) {
  Json json;
  json["record"] = name;
  for_each_field(metrics, [&](const char* field, const auto& value) { json[field] = value; });
  if (!resumed_run_.empty()) json["run"] = Json::parse(resumed_run_);
  write_line(one_line(json));
  resumed_run_.clear();
}

void MetricsWriter::write(const StepMetrics& metrics) { write_record("step", metrics); }
void MetricsWriter::write(const ValidationMetrics& metrics) { write_record("validation", metrics); }

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
