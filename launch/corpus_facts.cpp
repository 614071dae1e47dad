#include "launch/corpus_facts.h"

#if __has_include("runtime/io/corpus.h")
#include "runtime/io/corpus.h"

namespace longhaul::launch {

std::optional<CorpusFacts> corpus_facts(const std::string& path) {
  const runtime::Corpus corpus = runtime::Corpus::open(path);
  return CorpusFacts{corpus.info().tokens, corpus.info().documents, corpus.info().vocabulary_size};
}

std::optional<double> corpus_unigram_entropy(const std::string& path) {
  return runtime::Corpus::open(path).unigram_entropy();
}

}  // namespace longhaul::launch
#else
namespace longhaul::launch {
std::optional<CorpusFacts> corpus_facts(const std::string&) { return std::nullopt; }
std::optional<double> corpus_unigram_entropy(const std::string&) { return std::nullopt; }
}  // namespace longhaul::launch
#endif
