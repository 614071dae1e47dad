#include "launch/tokenize.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <utility>

#include "launch/records.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/file.h"
#include "runtime/io/output_file.h"
#include "runtime/io/token_files.h"
#include "runtime/io/tokenizer.h"
#include "runtime/ordered_work.h"
#include "runtime/threads.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

namespace {

// Of texts that are read and not yet in the corpus.
constexpr std::int64_t kBytesAThread = std::int64_t{4} << 20, kMostPendingAThread = 64;
constexpr std::int64_t kBatchBytes = std::int64_t{256} << 10;  // of records that go together
constexpr const char* kUnknownTokenizer = "unknown";           // of tokens that somebody else made

/// Throws Error(usage) for options that do not go with what the inputs are.
void check_options(const TokenizeOptions& options, const TokenizeInputs& inputs) {
  for (const TokenizeInput& input : inputs.files) {
    const std::string path = input.path.string();
    if (!holds_tokens(input.kind) && options.vocabulary_size) {
      fail(ExitCode::usage, path,
           ": is text, which --vocab-size has no use for; name its "
           "--tokenizer instead");
    }
    if (holds_tokens(input.kind) && !options.vocabulary_size && !options.tokenizer) {
      fail(ExitCode::usage, path,
           ": holds token ids; name the --tokenizer that they are of, or "
           "give --vocab-size");
    }
    if (input.kind == InputKind::llmc && !options.document_start) {
      fail(ExitCode::usage, path,
           ": a file of tokens of llm.c does not say where its documents "
           "begin; give --document-start ID, the id that begins each (50256 of GPT-2's, 128000 of "
           "Llama 3's)");
    }
  }
  const bool has_llmc = std::ranges::count(inputs.files, InputKind::llmc, &TokenizeInput::kind) > 0;
  if (options.document_start && !has_llmc)
    fail(ExitCode::usage, "--document-start is of llm.c's files of tokens, and no input is one");
  if (options.vocabulary_size && options.tokenizer)
    fail(ExitCode::usage, "--vocab-size stands for a tokenizer that is not named; give only one");
  if (options.vocabulary_size &&
      (*options.vocabulary_size < 1 || *options.vocabulary_size > runtime::kMaxVocabulary))
    fail(ExitCode::usage, "--vocab-size is ", *options.vocabulary_size, "; expected 1 to ",
         runtime::kMaxVocabulary);
}

TokenizeInputs inputs_of(const TokenizeOptions& options) {
  if (options.paths.empty()) fail(ExitCode::usage, "tokenize: no input; name files or folders");
  if (options.output.empty()) fail(ExitCode::usage, "tokenize: no output; give --output corpus.h5");
  TokenizeInputs inputs = tokenize_inputs(options.paths);
  runtime::require_no_input(options.output, "--output", inputs.paths());
  check_options(options, inputs);
  return inputs;
}

/// A vocabulary of which nothing but the size is known.
class UnknownTokenizer final : public runtime::Tokenizer {
 public:
  explicit UnknownTokenizer(std::int64_t size) : size_(size) {}
  const std::string& name() const override { return name_; }
  std::int64_t vocabulary_size() const override { return size_; }
  runtime::EncodedText encode(std::string_view, bool) const override { refuse("no text"); }
  std::string decode(std::span<const std::int32_t>) const override { refuse("no tokens"); }
  std::optional<std::int64_t> text_bytes(std::span<const std::int32_t>) const override {
    return std::nullopt;
  }
  std::optional<std::int32_t> token_id(std::string_view) const override { return std::nullopt; }

 private:
  [[noreturn]] void refuse(const char* what) const {
    fail(ExitCode::usage, "a tokenizer that is not named takes ", what);
  }
  const std::string name_ = kUnknownTokenizer;
  const std::int64_t size_;
};

EncodeRules rules_of(const TokenizeOptions& options) {
  EncodeRules rules;
  if (options.vocabulary_size) {
    rules.tokenizer = std::make_unique<UnknownTokenizer>(*options.vocabulary_size);
  } else {
    rules.tokenizer = runtime::make_tokenizer(options.tokenizer.value_or("bytes"));
  }
  rules.invalid_utf8 = options.invalid_utf8;
  if (options.document_start)
    token_id(*rules.tokenizer, std::to_string(*options.document_start), "--document-start");
  if (!options.bos.empty()) rules.bos = token_id(*rules.tokenizer, options.bos, "--bos");
  if (!options.eos.empty()) rules.eos = token_id(*rules.tokenizer, options.eos, "--eos");
  return rules;
}

int threads_of(const TokenizeOptions& options) {
  return options.threads > 0 ? options.threads : runtime::available_cores();
}

/// Documents on their way into the corpus: this thread reads and writes, others encode.
class Tokenizing {
 public:
  explicit Tokenizing(const TokenizeOptions& options)
      : options_(options),
        inputs_(inputs_of(options)),
        rules_(rules_of(options)),
        writer_(options.output, rules_.tokenizer->vocabulary_size(), rules_.tokenizer->name(),
                options.force ? runtime::Existing::replace : runtime::Existing::refuse),
        work_(threads_of(options), "tokenizing") {
    summary_.output = options.output;
    summary_.tokenizer = rules_.tokenizer->name();
    summary_.vocabulary_size = rules_.tokenizer->vocabulary_size();
    summary_.threads = threads_of(options);
    if (rules_.bos) summary_.bos = runtime::concat(options.bos, ", ", *rules_.bos);
    if (rules_.eos) summary_.eos = runtime::concat(options.eos, ", ", *rules_.eos);
    progress_.all_files = std::ssize(inputs_.files);
    progress_.all_bytes = inputs_.bytes;
  }

  TokenizeSummary run() {
    const auto begin = std::chrono::steady_clock::now();
    tell();
    read_all();
    if (summary_.tokens == 0) {
      fail(ExitCode::data, options_.paths[0].string(), ": no text in ",
           counted(std::ssize(inputs_.files), "file"), "; a corpus without a token is of no use");
    }
    tell();
    writer_.finish();
    const runtime::CorpusInfo info = runtime::Corpus::open(options_.output).info();
    summary_.unigram_entropy = *info.unigram_entropy;
    if (info.label_weights) summary_.label_weights = runtime::hdf5::name(*info.label_weights);
    summary_.inputs = std::move(inputs_);
    summary_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(summary_);
  }

 private:
  /// What was given to the other threads.
  struct Pending {
    std::int64_t bytes = 0;
    std::optional<std::int64_t> file_bytes;  ///< of the file that it ends, if it ends one
  };

  void read_all() {
    for (const TokenizeInput& input : inputs_.files) {
      if (input.kind == InputKind::text) {
        read_text(input);
      } else if (input.kind == InputKind::records) {
        read_records(input);
      } else {
        take_all();
        read_tokens(input);
      }
    }
    take_all();
  }

  /// What `read` gives. Where it throws, `raw` and all before it comes first: a document there may
  /// be refused as well, and is then the one to name.
  template <class Read>
  auto reading(RawDocuments& raw, const Read& read) {
    try {
      return read();
    } catch (const runtime::Error&) {
      give(std::move(raw), std::nullopt);
      take_all();
      throw;
    }
  }

  void read_text(const TokenizeInput& input) {
    RawDocuments raw{input.path, false, {}};
    std::string text = reading(raw, [&] {
      return runtime::read_file(input.path, std::numeric_limits<std::int64_t>::max() / 2);
    });
    const std::int64_t bytes = std::ssize(text);
    raw.documents.push_back({std::move(text), 0, bytes});
    give(std::move(raw), input.bytes);
  }

  void read_records(const TokenizeInput& input) {
    RawDocuments raw{input.path, true, {}};
    RecordReader records = reading(raw, [&] { return RecordReader(input.path); });
    std::int64_t bytes = 0;
    while (reading(raw, [&] { return records.next(); })) {
      if (bytes + std::ssize(records.line()) > kBatchBytes && !raw.documents.empty()) {
        give(std::exchange(raw, {input.path, true, {}}), std::nullopt);
        bytes = 0;
      }
      bytes += std::ssize(records.line());
      raw.documents.push_back({records.line(), records.line_number(), records.bytes_read()});
    }
    give(std::move(raw), input.bytes);
  }

  void read_tokens(const TokenizeInput& input) {
    const std::int64_t vocabulary = summary_.vocabulary_size;
    bool begins = true, has_start = false;
    const std::int64_t documents = summary_.documents;
    const auto take = [&](const runtime::TokenPiece& piece) {
      if (begins && !piece.tokens.empty())
        has_start = has_start || piece.tokens.front() == options_.document_start;
      if (begins && rules_.bos) add({&*rules_.bos, 1}, {});
      add(piece.tokens, {});
      if (piece.ends_document && rules_.eos) add({&*rules_.eos, 1}, {});
      begins = piece.ends_document;
      progress_.bytes = file_begin_ + piece.bytes;
      if (piece.ends_document) end_document();
    };
    if (input.kind == InputKind::megatron) {
      runtime::read_megatron(input.path, vocabulary, take);
    } else {
      runtime::read_llmc(input.path, vocabulary, *options_.document_start, take);
      if (summary_.documents > documents && !has_start)
        summary_.files_without_start.add(input.path.string());
    }
    end_file(input.bytes);
  }

  void end_file(std::int64_t bytes) {
    file_begin_ += bytes;
    progress_.bytes = file_begin_;
    ++progress_.files;
  }

  /// `file_bytes`: of the file, where these are its last documents.
  void give(RawDocuments raw, std::optional<std::int64_t> file_bytes) {
    std::int64_t bytes = 0;
    for (const RawDocuments::Document& document : raw.documents) bytes += std::ssize(document.text);
    while (work_.pending() > 0 &&
           (pending_bytes_ + bytes > kBytesAThread * (summary_.threads + 1) ||
            work_.pending() >= kMostPendingAThread * summary_.threads))
      take_one();
    pending_.push_back({bytes, file_bytes});
    pending_bytes_ += bytes;
    work_.give([this, documents = std::move(raw)] { return encode(rules_, documents); });
  }

  void take_all() {
    while (work_.pending() > 0) take_one();
  }

  /// The oldest work that is not yet in the corpus.
  void take_one() {
    const Pending pending = pending_.front();
    pending_.pop_front();
    pending_bytes_ -= pending.bytes;
    const EncodedDocuments encoded = work_.take();
    const std::span<const std::int32_t> tokens(encoded.tokens);
    const std::span<const float> weights(encoded.weights);
    std::size_t begin = 0;
    for (const EncodedDocuments::Document& document : encoded.documents) {
      const std::size_t count = static_cast<std::size_t>(document.end) - begin;
      add(tokens.subspan(begin, count), weights.empty() ? weights : weights.subspan(begin, count));
      begin += count;
      progress_.bytes = file_begin_ + document.bytes;
      end_document();
    }
    summary_.tokens_without_weight += encoded.tokens_without_weight;
    summary_.unknown_characters += encoded.unknown_characters;
    summary_.invalid_bytes += encoded.invalid_bytes;
    for (const auto& [field, count] : encoded.unused_fields) summary_.unused_fields[field] += count;
    if (pending.file_bytes) end_file(*pending.file_bytes);
  }

  /// Tokens of the document at hand.
  void add(std::span<const std::int32_t> tokens, std::span<const float> weights) {
    writer_.append(tokens, weights);
    document_tokens_ += std::ssize(tokens);
  }

  void end_document() {
    writer_.end_document();
    ++summary_.documents;
    summary_.tokens += document_tokens_;
    summary_.longest_document_tokens =
        std::max(summary_.longest_document_tokens, std::exchange(document_tokens_, 0));
    tell();
  }

  void tell() {
    progress_.tokens = summary_.tokens + document_tokens_;
    if (options_.progress) options_.progress(progress_);
  }

  const TokenizeOptions& options_;
  TokenizeInputs inputs_;
  const EncodeRules rules_;
  runtime::CorpusWriter writer_;
  TokenizeSummary summary_;
  TokenizeProgress progress_;
  std::int64_t file_begin_ = 0;       // bytes of all files before the one that is taken
  std::int64_t document_tokens_ = 0;  // of the document at hand
  std::deque<Pending> pending_;
  std::int64_t pending_bytes_ = 0;
  runtime::OrderedWork<EncodedDocuments> work_;  // last: it uses the others
};

}  // namespace

TokenizeSummary tokenize(const TokenizeOptions& options) { return Tokenizing(options).run(); }

}  // namespace longhaul::launch
