#pragma once
// The configuration of a verb, held to the rules of every room and to its corpus.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/config/draft.h"
#include "runtime/io/corpus.h"

namespace longhaul::launch {

/// runtime::read_config() and the rules on schemes. Throws Error(config) with every problem, each
/// at its place; later rules may add to the draft.
runtime::ConfigDraft load_config(const std::string& path, const std::vector<std::string>& overrides,
                                 std::optional<std::int64_t> world_size = std::nullopt);

/// Opens data.corpus. Throws Error(data) for one that is none, Error(config) for keys that
/// contradict it.
runtime::Corpus open_corpus(runtime::ConfigDraft& draft);

/// model.vocab_size, or the corpus's.
std::int64_t model_vocabulary(const runtime::TrainConfig& config,
                              const runtime::CorpusInfo& corpus);

}  // namespace longhaul::launch
