// What `longhaul tokenize` says: how far it is, and what it has made.

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <utility>

#include "launch/metrics.h"
#include "launch/tokenize.h"
#include "runtime/counted.h"
#include "runtime/threads.h"

namespace longhaul::launch {

using runtime::counted;

namespace {

constexpr double kProgressSeconds = 5;
constexpr double kMib = 1024.0 * 1024.0;
constexpr std::size_t kNamedFields = 10;

std::string a_second(std::int64_t count, double seconds) {
  return grouped(seconds > 0 ? std::llround(static_cast<double>(count) / seconds) : 0);
}

std::string mib(std::int64_t bytes) {
  return fmt::format("{:.1f}", static_cast<double>(bytes) / kMib);
}

}  // namespace

std::string progress_line(const TokenizeProgress& progress, double seconds) {
  if (progress.all_files == 0) return "tokenize looks for its inputs";
  if (progress.files == progress.all_files) {
    return fmt::format(
        "tokenize all {} files are read | {} tokens | writing and checking the corpus",
        grouped(progress.all_files), grouped(progress.tokens));
  }
  const double rate = seconds > 0 ? static_cast<double>(progress.bytes) / seconds : 0;
  const double left = static_cast<double>(progress.all_bytes - progress.bytes) / rate;
  return fmt::format(
      "tokenize {} of {} files | {} of {} MiB | {} tokens | {} tok/s | {:.1f} MiB/s | eta {}",
      grouped(progress.files), grouped(progress.all_files), mib(progress.bytes),
      mib(progress.all_bytes), grouped(progress.tokens), a_second(progress.tokens, seconds),
      rate / kMib, duration_text(left));
}

std::string to_string(const TokenizeSummary& summary) {
  std::string text = fmt::format(
      "{}: {}, {} ({}, vocabulary {}), longest document {}, unigram entropy {:.4f} nats",
      summary.output.string(), counted(summary.documents, "document"),
      counted(summary.tokens, "token"), summary.tokenizer, summary.vocabulary_size,
      counted(summary.longest_document_tokens, "token"), summary.unigram_entropy);
  const auto line = [&](const char* name, const std::string& value) {
    if (!value.empty()) text += fmt::format("\n  {:<16}{}", name, value);
  };
  if (!summary.label_weights.empty()) {
    line("label weights", fmt::format("{}; {} of weight 0, as context only", summary.label_weights,
                                      counted(summary.tokens_without_weight, "token")));
  }
  line("begin with", summary.bos);
  line("end with", summary.eos);
  if (summary.unknown_characters > 0) {
    line("replaced", fmt::format("{} by the unknown token: the tokenizer has none for them",
                                 counted(summary.unknown_characters, "character")));
  }
  if (summary.invalid_bytes > 0)
    line("replaced",
         fmt::format("{} that are no UTF-8, by U+FFFD", counted(summary.invalid_bytes, "byte")));
  line("one document",
       summary.files_without_start.text("file in which the id of --document-start is not",
                                        "files in which the id of --document-start is not"));
  line("took",
       fmt::format("{}, {} tokens/s, {}", duration_text(summary.seconds),
                   a_second(summary.tokens, summary.seconds), counted(summary.threads, "thread")));
  std::string fields;
  std::size_t named = 0;
  for (const auto& [field, count] : summary.unused_fields) {
    if (++named > kNamedFields) break;
    fields += fmt::format("{}{} ({} times)", fields.empty() ? "" : ", ", field, count);
  }
  if (named > kNamedFields)
    fields += fmt::format(", and {} more", summary.unused_fields.size() - kNamedFields);
  line("fields not used", fields);
  line("left out", summary.inputs.dangling_links.text("dangling link", "dangling links"));
  line("left out", summary.inputs.linked_folders.text("linked folder", "linked folders"));
  line("left out", summary.inputs.repositories.text("repository", "repositories"));
  line("left out", summary.inputs.hdf5_files.text("earlier corpus or other HDF5 file",
                                                  "earlier corpora or other HDF5 files"));
  line("left out",
       summary.inputs.special_files.text("pipe, socket or device", "pipes, sockets or devices"));
  return text;
}

ProgressTeller::ProgressTeller(double every_seconds, std::function<void(const std::string&)> say)
    : every_(every_seconds),
      say_(std::move(say)),
      thread_(runtime::start_thread<std::jthread>(
          "telling the progress", [this](const std::stop_token& stop) { tell(stop); })) {}

void ProgressTeller::set(const TokenizeProgress& progress) {
  const std::lock_guard lock(mutex_);
  progress_ = progress;
}

void ProgressTeller::tell(const std::stop_token& stop) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  std::unique_lock lock(mutex_);
  for (int times = 1;; ++times) {
    const auto next = begin + std::chrono::duration_cast<Clock::duration>(times * every_);
    wake_.wait_until(lock, stop, next, [] { return false; });
    if (stop.stop_requested()) return;
    const std::chrono::duration<double> passed = Clock::now() - begin;
    say_(progress_line(progress_, passed.count()));
  }
}

int run_tokenize(const TokenizeOptions& options) {
  TokenizeOptions telling = options;
  TokenizeSummary summary;
  {
    ProgressTeller teller(kProgressSeconds, [](const std::string& line) {
      std::fprintf(stderr, "%s\n", line.c_str());
    });
    telling.progress = [&](const TokenizeProgress& progress) { teller.set(progress); };
    summary = tokenize(telling);
  }
  std::printf("%s\n", to_string(summary).c_str());
  return 0;
}

}  // namespace longhaul::launch
