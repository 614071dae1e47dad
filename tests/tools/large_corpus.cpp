// Makes a corpus of random bytes, for measuring what depends on a corpus's size: see start_time.
//   large_corpus TOKENS MEAN_DOCUMENT_TOKENS OUTPUT.h5
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "runtime/io/corpus.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: large_corpus TOKENS MEAN_DOCUMENT_TOKENS OUTPUT.h5\n");
    return 64;
  }
  try {
    std::int64_t left = std::atoll(argv[1]);
    const std::int64_t mean = std::atoll(argv[2]);
    longhaul::runtime::CorpusWriter writer(argv[3], 256, "bytes");
    std::mt19937_64 random(1);
    std::uniform_int_distribution<std::int64_t> lengths(1, 2 * mean - 1);
    std::vector<std::int32_t> tokens;
    while (left > 0) {
      tokens.resize(static_cast<std::size_t>(std::min(left, lengths(random))));
      std::uint64_t bits = 0;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (i % 8 == 0) bits = random();
        tokens[i] = static_cast<std::int32_t>(bits >> (8 * (i % 8)) & 0xff);
      }
      writer.append(tokens);
      writer.end_document();
      left -= std::ssize(tokens);
    }
    writer.finish();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
