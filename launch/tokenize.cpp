#include "launch/tokenize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <utility>

#include "launch/metrics.h"
#include "launch/records.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/file.h"
#include "runtime/io/output_file.h"
#include "runtime/io/tokenizer.h"
#include "runtime/threads.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr double kProgressSeconds = 5;
constexpr double kMib = 1024.0 * 1024.0;
constexpr std::size_t kNamedFields = 10;

TokenizeInputs inputs_of(const TokenizeOptions& options) {
  if (options.paths.empty()) fail(ExitCode::usage, "tokenize: no input; name files or folders");
  if (options.output.empty()) fail(ExitCode::usage, "tokenize: no output; give --output corpus.h5");
  TokenizeInputs inputs = tokenize_inputs(options.paths);
  runtime::require_no_input(options.output, "--output", inputs.files);
  return inputs;
}

/// Documents on their way into the corpus.
class Tokenizing {
 public:
  explicit Tokenizing(const TokenizeOptions& options)
      : options_(options),
        inputs_(inputs_of(options)),
        tokenizer_(runtime::make_tokenizer(options.tokenizer)),
        writer_(options.output, tokenizer_->vocabulary_size(), tokenizer_->name(),
                options.force ? runtime::Existing::replace : runtime::Existing::refuse) {
    summary_.output = options.output;
    summary_.tokenizer = tokenizer_->name();
    summary_.vocabulary_size = tokenizer_->vocabulary_size();
    progress_.all_files = std::ssize(inputs_.files);
    progress_.all_bytes = inputs_.bytes;
  }

  TokenizeSummary run() {
    if (options_.progress) options_.progress(progress_);
    for (const fs::path& file : inputs_.files) {
      const std::int64_t before = progress_.bytes;
      if (file.extension() == ".jsonl") {
        add_records(file, before);
      } else {
        WeightedText text{runtime::read_file(file, std::numeric_limits<std::int64_t>::max() / 2),
                          {}};
        progress_.bytes = before + std::ssize(text.text);
        add(text, file.string());
      }
      ++progress_.files;
    }
    if (summary_.tokens == 0) {
      fail(ExitCode::data, options_.paths[0].string(), ": no text in ",
           counted(std::ssize(inputs_.files), "file"), "; a corpus without a token is of no use");
    }
    if (options_.progress) options_.progress(progress_);
    writer_.finish();
    const runtime::CorpusInfo info = runtime::Corpus::open(options_.output).info();
    summary_.unigram_entropy = *info.unigram_entropy;
    if (info.label_weights) summary_.label_weights = runtime::hdf5::name(*info.label_weights);
    summary_.inputs = std::move(inputs_);
    return std::move(summary_);
  }

 private:
  void add_records(const fs::path& file, std::int64_t bytes_before) {
    RecordReader records(file);
    while (const auto record = records.next()) {
      progress_.bytes = bytes_before + records.bytes_read();
      add(*record, records.place());
    }
    for (const auto& [field, count] : records.unused_fields())
      summary_.unused_fields[field] += count;
  }

  void add(const WeightedText& text, const std::string& place) {
    try {
      const bool weighs =
          std::ranges::any_of(text.parts, [](const auto& part) { return part.weight != 1; });
      const runtime::EncodedText encoded = tokenizer_->encode(text.text, weighs);
      const std::vector<float> weights =
          weighs ? text.weights(encoded.begins) : std::vector<float>();
      writer_.append(encoded.tokens, weights);
      writer_.end_document();
      const std::int64_t tokens = std::ssize(encoded.tokens);
      ++summary_.documents;
      summary_.tokens += tokens;
      summary_.longest_document_tokens = std::max(summary_.longest_document_tokens, tokens);
      summary_.tokens_without_weight += std::ranges::count(weights, 0.0f);
      summary_.unknown_characters += encoded.unknown_characters;
      summary_.invalid_bytes += encoded.invalid_bytes;
    } catch (const runtime::Error& error) {
      fail(error.code(), place, ": ", error.what());
    }
    progress_.tokens = summary_.tokens;
    if (options_.progress) options_.progress(progress_);
  }

  const TokenizeOptions& options_;
  TokenizeInputs inputs_;
  const std::unique_ptr<runtime::Tokenizer> tokenizer_;
  runtime::CorpusWriter writer_;
  TokenizeSummary summary_;
  TokenizeProgress progress_;
};

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
  return fmt::format("tokenize {} of {} files | {} of {} MiB | {} tokens | {:.1f} MiB/s | eta {}",
                     grouped(progress.files), grouped(progress.all_files), mib(progress.bytes),
                     mib(progress.all_bytes), grouped(progress.tokens), rate / kMib,
                     duration_text(left));
}

TokenizeSummary tokenize(const TokenizeOptions& options) { return Tokenizing(options).run(); }

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
  if (summary.unknown_characters > 0) {
    line("replaced", fmt::format("{} by the unknown token: the tokenizer has none for them",
                                 counted(summary.unknown_characters, "character")));
  }
  if (summary.invalid_bytes > 0)
    line("replaced",
         fmt::format("{} that are no UTF-8, by U+FFFD", counted(summary.invalid_bytes, "byte")));
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
