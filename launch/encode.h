#pragma once
// Documents to tokens: what each thread of `longhaul tokenize` does.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launch/records.h"
#include "runtime/io/tokenizer.h"

namespace longhaul::launch {

/// What becomes of bytes that are no UTF-8, where the tokenizer wants UTF-8.
enum class InvalidUtf8 : unsigned char {
  refuse,  ///< Error(data) with the place of the first
  replace  ///< by U+FFFD (runtime/text/utf8.h), and counted
};

struct EncodeRules {
  std::unique_ptr<const runtime::Tokenizer> tokenizer;
  InvalidUtf8 invalid_utf8 = InvalidUtf8::refuse;
  std::optional<std::int32_t> bos, eos;  ///< put before and behind each document
};

/// The id of a token that is given by its name or as its id. `option` names it in errors. Throws
/// Error(usage) where the tokenizer has no such token.
std::int32_t token_id(const runtime::Tokenizer& tokenizer, const std::string& token,
                      const char* option);

/// Documents of one file, one behind the other, as they lie there.
struct RawDocuments {
  struct Document {
    std::string text;        ///< a whole file, or the line of a record
    std::int64_t line = 0;   ///< of a record, from 1
    std::int64_t bytes = 0;  ///< of the file, up to its end
  };
  std::filesystem::path file;
  bool records = false;
  std::vector<Document> documents;
};

/// The same as tokens.
struct EncodedDocuments {
  struct Document {
    std::int64_t end = 0;    ///< in tokens, behind its last
    std::int64_t bytes = 0;  ///< of the file, up to its end
  };
  std::vector<std::int32_t> tokens;
  std::vector<float> weights;  ///< of each token; empty where all are 1
  std::vector<Document> documents;
  std::int64_t tokens_without_weight = 0;
  std::int64_t unknown_characters = 0, invalid_bytes = 0;  ///< see runtime::EncodedText
  UnusedFields unused_fields;
};

/// BOS takes the weight of a document's first token, EOS that of its last; both weigh 1 in a
/// document without tokens. Throws Error(data) naming file and line for what is no record, and for
/// text that the tokenizer or the rules refuse, or of which the tokenizer would drop a character.
EncodedDocuments encode(const EncodeRules& rules, const RawDocuments& raw);

}  // namespace longhaul::launch
