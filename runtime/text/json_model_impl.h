#pragma once
// Private to runtime/text: the vocabulary of a tokenizer.json.

#include <optional>
#include <string>
#include <vector>

#include "runtime/text/added_tokens_impl.h"
#include "runtime/text/bpe_impl.h"
#include "runtime/text/json_impl.h"
#include "runtime/text/normalizer_impl.h"

namespace longhaul::runtime {

/// The member `model`, of type BPE. Throws Error(data).
Bpe read_bpe(const JsonValue& json, bool byte_level);

struct AddedVocabulary {
  AddedTokens before, after;       ///< looked for before and after normalization
  std::vector<AddedToken> tokens;  ///< as the file spells them
};
/// The member `added_tokens`, `json` being the whole file. Ids have to be those that the library
/// gives: a token of the model keeps its id, others follow one another behind the model's count.
AddedVocabulary read_added_tokens(const JsonValue& json, const Vocabulary& vocabulary,
                                  const Normalizer& normalizer);

/// Every id's token. Throws Error(data) for an id that two tokens have, and for ids so far apart
/// that a table of them would be mostly empty.
std::vector<std::optional<std::string>> tokens_by_id(const JsonValue& json,
                                                     const Vocabulary& vocabulary,
                                                     const std::vector<AddedToken>& added);

}  // namespace longhaul::runtime
