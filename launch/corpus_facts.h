#pragma once
// The few things about a corpus that validate and report show.

#include <cstdint>
#include <optional>
#include <string>

namespace longhaul::launch {

struct CorpusFacts {
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::int64_t vocabulary_size = 0;
};

/// Throws Error(data) for a damaged corpus.
std::optional<CorpusFacts> corpus_facts(const std::string& path);
/// Nats a token. Reads the whole corpus.
std::optional<double> corpus_unigram_entropy(const std::string& path);

}  // namespace longhaul::launch
