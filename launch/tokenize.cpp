#include "launch/tokenize.h"

#include <algorithm>
#include <iomanip>
#include <limits>
#include <sstream>

#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/file.h"
#include "runtime/io/tokenizer.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// Adds the files of a path. Throws for what is neither file nor folder, e.g. a broken link or a
/// pipe.
void collect(const fs::path& path, std::vector<fs::path>& files) {
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (status.type() == fs::file_type::regular) {
    files.push_back(path);
    return;
  }
  if (status.type() == fs::file_type::directory) {
    std::vector<fs::path> found;
    fs::recursive_directory_iterator at(path, code);
    for (const fs::recursive_directory_iterator end; !code && at != end; at.increment(code)) {
      // A linked folder is not entered: it could lead back to where we are.
      const bool linked_folder = at->is_symlink() && fs::is_directory(at->path(), code);
      if (!linked_folder && !fs::is_directory(at->symlink_status())) collect(at->path(), found);
    }
    if (code) fail(ExitCode::io, path.string(), ": cannot list: ", code.message());
    std::ranges::sort(found, {}, [](const fs::path& file) { return file.string(); });
    files.insert(files.end(), found.begin(), found.end());
    return;
  }
  if (status.type() == fs::file_type::not_found) {
    fail(ExitCode::io, path.string(), ": does not exist");
  }
  if (code) fail(ExitCode::io, path.string(), ": cannot read: ", code.message());
  fail(ExitCode::data, path.string(), ": is neither a file nor a folder");
}

std::vector<fs::path> collect(const TokenizeOptions& options) {
  if (options.paths.empty()) fail(ExitCode::usage, "tokenize: no input; name files or folders");
  if (options.output.empty()) fail(ExitCode::usage, "tokenize: no output; give --output corpus.h5");
  std::vector<fs::path> files;
  for (const fs::path& path : options.paths) collect(path, files);
  if (files.empty()) fail(ExitCode::data, options.paths[0].string(), ": holds no files");
  for (const fs::path& file : files) {
    std::error_code code;  // an output that does not exist yet is equivalent to nothing
    if (fs::equivalent(file, options.output, code)) {
      fail(ExitCode::usage, options.output.string(),
           ": is among the inputs; put the output elsewhere or remove it first");
    }
  }
  return files;
}

}  // namespace

TokenizeSummary tokenize(const TokenizeOptions& options) {
  const std::vector<fs::path> files = collect(options);
  const auto tokenizer = runtime::make_tokenizer(options.tokenizer);
  runtime::CorpusWriter writer(options.output, tokenizer->vocabulary_size(), tokenizer->name());
  TokenizeSummary summary{
      options.output, tokenizer->name(), std::ssize(files), 0, 0, tokenizer->vocabulary_size(), 0};
  for (const fs::path& file : files) {
    const std::string text = runtime::read_file(file, std::numeric_limits<std::int64_t>::max() / 2);
    try {
      const std::vector<std::int32_t> tokens = tokenizer->encode(text);
      writer.append(tokens);
      writer.end_document();
      summary.tokens += std::ssize(tokens);
      summary.longest_document_tokens =
          std::max<std::int64_t>(summary.longest_document_tokens, std::ssize(tokens));
    } catch (const runtime::Error& error) {
      fail(error.code(), file.string(), ": ", error.what());
    }
  }
  writer.finish();
  summary.unigram_entropy = *runtime::Corpus::open(options.output).info().unigram_entropy;
  return summary;
}

std::string to_string(const TokenizeSummary& summary) {
  std::ostringstream text;
  text << summary.output.string() << ": " << runtime::counted(summary.documents, "document") << ", "
       << runtime::counted(summary.tokens, "token") << " (" << summary.tokenizer << ", vocabulary "
       << summary.vocabulary_size << "), longest document "
       << runtime::counted(summary.longest_document_tokens, "token") << ", unigram entropy "
       << std::fixed << std::setprecision(4) << summary.unigram_entropy << " nats";
  return text.str();
}

}  // namespace longhaul::launch
