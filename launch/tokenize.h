#pragma once
// `longhaul tokenize`: files and folders of text, and files of tokens, become one corpus.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "launch/encode.h"
#include "launch/tokenize_inputs.h"

namespace longhaul::launch {

struct TokenizeProgress {
  std::int64_t files = 0, all_files = 0;  ///< done, and of how many
  std::int64_t bytes = 0, all_bytes = 0;
  std::int64_t tokens = 0;
};
/// "tokenize 120 of 4,000 files | 1.5 of 62.3 MiB | 1,572,864 tokens | 812,000 tok/s | 3.1 MiB/s |
/// eta 20s"; before files are known, and once all are read, what else goes on.
std::string progress_line(const TokenizeProgress& progress, double seconds);

/// Says at regular times how far it is, from a thread of its own: a single document may take long.
class ProgressTeller {
 public:
  /// `say` gets a progress_line() every so many seconds until the teller is gone.
  ProgressTeller(double every_seconds, std::function<void(const std::string&)> say);
  void set(const TokenizeProgress& progress);

 private:
  void tell(const std::stop_token& stop);

  const std::chrono::duration<double> every_;
  const std::function<void(const std::string&)> say_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  TokenizeProgress progress_;  // under the mutex
  std::jthread thread_;        // last: it reads the others
};

struct TokenizeOptions {
  std::vector<std::filesystem::path> paths;  ///< files, and folders taken with all below them
  std::filesystem::path output;
  /// As make_tokenizer() takes it; nothing: "bytes", where all inputs are text.
  std::optional<std::string> tokenizer = {};
  bool force = false;  ///< an `output` that is a file already is replaced
  /// Called once the files are known, after every document, and before the corpus is written. May
  /// be empty.
  std::function<void(const TokenizeProgress&)> progress = {};
  int threads = 0;  ///< that encode; 0: one a core
  InvalidUtf8 invalid_utf8 = InvalidUtf8::refuse;
  /// A token or its id, put before and behind each document; empty: none.
  std::string bos = {}, eos = {};
  /// Of inputs that are all files of tokens, in place of a tokenizer.
  std::optional<std::int64_t> vocabulary_size = {};
  /// Id of the vocabulary with which each document begins in llm.c's files, which do not say where
  /// they begin.
  std::optional<std::int64_t> document_start = {};
};

struct TokenizeSummary {
  std::filesystem::path output;
  std::string tokenizer;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t longest_document_tokens = 0;
  std::int64_t vocabulary_size = 0;
  double unigram_entropy = 0;  ///< nats
  /// How label weights are stored, "" where all are 1; and how many of them are 0.
  std::string label_weights;
  std::int64_t tokens_without_weight = 0;
  std::int64_t unknown_characters = 0, invalid_bytes = 0;  ///< see runtime::EncodedText
  UnusedFields unused_fields;
  TokenizeInputs inputs;
  LeftOut files_without_start;  ///< of llm.c, in which `document_start` is not: one document each
  std::string bos, eos;         ///< "</s>, 2"; empty for none
  int threads = 0;
  double seconds = 0;
};
/// For the console: a line, and one for everything that was left out, replaced or weighed.
std::string to_string(const TokenizeSummary& summary);

/// Every file is one document, and of a file whose name ends in .jsonl every line
/// (launch/records.h), in the order of tokenize_inputs(); of files of tokens
/// (runtime/io/token_files.h) what they say are documents. An empty file is an empty document.
/// Nothing but `bos` and `eos` is added to documents. Equal inputs give equal output bytes,
/// whatever the threads; of texts at most some 4 MiB a thread, and one document, are held at a
/// time. Throws: Error(usage) without paths, for options that the inputs contradict, when the
/// output is among the inputs or may not be replaced; Error(io) for what cannot be read or written;
/// Error(data) for inputs that tokenize_inputs() refuses or that hold no token, and for records,
/// text, tokens or a model that is refused: the first in the order of documents. Nothing is left
/// under `output` then.
TokenizeSummary tokenize(const TokenizeOptions& options);

/// The verb: tokenizes with a line of progress on stderr every few seconds, prints the summary.
int run_tokenize(const TokenizeOptions& options);

}  // namespace longhaul::launch
