// Encodes or decodes with a tokenizer what tests/huggingface/tokenizers gives it.
//   huggingface_tokens TOKENIZER encode|decode INPUT OUTPUT
// Both files are records of a length (uint64) and so many bytes: texts on one side, int32 ids on
// the other. Prints how fast a core encodes, once more, without reading or writing.

#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/io/tokenizer.h"

namespace {

using longhaul::runtime::Tokenizer;

std::vector<std::string> read_records(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> records;
  std::uint64_t size = 0;
  while (file.read(reinterpret_cast<char*>(&size), sizeof size)) {
    records.emplace_back(size, '\0');
    file.read(records.back().data(), static_cast<std::streamsize>(size));
  }
  return records;
}

void write_record(std::ofstream& file, std::span<const char> bytes) {
  const std::uint64_t size = bytes.size();
  file.write(reinterpret_cast<const char*>(&size), sizeof size);
  file.write(bytes.data(), static_cast<std::streamsize>(size));
}

void encode(const Tokenizer& tokenizer, const std::vector<std::string>& texts, std::ofstream& out) {
  double bytes = 0;
  for (const std::string& text : texts) {
    const auto tokens = tokenizer.encode(text, false).tokens;
    write_record(
        out, {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(std::int32_t)});
    bytes += static_cast<double>(text.size());
  }
  const std::clock_t begin = std::clock();
  std::size_t tokens = 0;
  for (const std::string& text : texts) tokens += tokenizer.encode(text, false).tokens.size();
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  std::printf("%.1f MB, %zu tokens, %.1f MB/s a core\n", bytes / 1e6, tokens,
              bytes / 1e6 / seconds);
}

void decode(const Tokenizer& tokenizer, const std::vector<std::string>& records,
            std::ofstream& out) {
  for (const std::string& record : records) {
    std::vector<std::int32_t> ids(record.size() / sizeof(std::int32_t));
    std::memcpy(ids.data(), record.data(), record.size());
    write_record(out, tokenizer.decode(ids));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: huggingface_tokens TOKENIZER encode|decode INPUT OUTPUT\n");
    return 64;
  }
  try {
    const auto tokenizer = longhaul::runtime::make_tokenizer(argv[1]);
    const auto records = read_records(argv[3]);
    std::ofstream out(argv[4], std::ios::binary);
    std::string(argv[2]) == "encode" ? encode(*tokenizer, records, out)
                                     : decode(*tokenizer, records, out);
    return out.flush() ? 0 : 74;
  } catch (const longhaul::runtime::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
