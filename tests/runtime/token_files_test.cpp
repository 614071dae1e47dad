// Files of tokens that other programs make, written here byte by byte as their writers do.
#include "runtime/io/token_files.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "tests/support/expect_error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using Documents = std::vector<std::vector<std::int32_t>>;

template <class T, class Value>
void put(std::string& bytes, Value value) {
  const T stored = static_cast<T>(value);
  bytes.append(reinterpret_cast<const char*>(&stored), sizeof(T));
}

template <class T>
void put_at(std::string& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

struct Megatron {
  std::string index, data;
};

/// Documents of several sequences each: the first tokens of a document are sequences of one.
template <class T>
Megatron megatron(const Documents& documents, int code, int alone) {
  Megatron files;
  std::vector<std::int32_t> lengths;
  std::vector<std::int64_t> places, boundaries = {0};
  for (const auto& document : documents) {
    for (std::size_t at = 0; at < document.size();) {
      const std::size_t length = static_cast<int>(at) < alone ? 1 : document.size() - at;
      lengths.push_back(static_cast<std::int32_t>(length));
      places.push_back(std::ssize(files.data));
      for (std::size_t i = 0; i < length; ++i) put<T>(files.data, document[at++]);
    }
    boundaries.push_back(std::ssize(lengths));
  }
  files.index = std::string("MMIDIDX\0\0", 9);
  put<std::uint64_t>(files.index, 1);
  files.index += static_cast<char>(code);
  put<std::uint64_t>(files.index, lengths.size());
  put<std::uint64_t>(files.index, boundaries.size());
  for (const auto length : lengths) put<std::int32_t>(files.index, length);
  for (const auto place : places) put<std::int64_t>(files.index, place);
  for (const auto boundary : boundaries) put<std::int64_t>(files.index, boundary);
  return files;
}

template <class Reading>
Documents read(const Reading& reading) {
  Documents documents(1);
  std::int64_t bytes = 0;
  reading([&](const TokenPiece& piece) {
    documents.back().insert(documents.back().end(), piece.tokens.begin(), piece.tokens.end());
    if (piece.ends_document) documents.emplace_back();
    EXPECT_GE(piece.bytes, bytes);
    bytes = piece.bytes;
  });
  EXPECT_TRUE(documents.back().empty());
  documents.pop_back();
  return documents;
}

Documents some_documents(std::int32_t most) {
  Documents documents = {{}, {most}, std::vector<std::int32_t>(200'000), {}, {1, 2, 3}, {}};
  std::iota(documents[2].begin(), documents[2].end(), 0);
  for (std::int32_t& id : documents[2]) id %= most + 1;
  return documents;
}

TEST(Megatron, DocumentsOfEveryIntegerTypeAreRead) {
  const test::TempDirectory folder;
  const auto check = [&](const Megatron& files, const Documents& expected,
                         std::int64_t vocabulary) {
    folder.write("a.idx", files.index);
    folder.write("a.bin", files.data);
    EXPECT_TRUE(is_megatron_index(folder / "a.idx"));
    EXPECT_EQ(megatron_data(folder / "a.idx"), folder / "a.bin");
    EXPECT_TRUE(read([&](const TakeTokens& take) {
                  read_megatron(folder / "a.idx", vocabulary, take);
                }) == expected);
  };
  for (const int alone : {0, 1, 2}) {
    check(megatron<std::uint8_t>(some_documents(255), 1, alone), some_documents(255), 256);
    check(megatron<std::int8_t>(some_documents(127), 2, alone), some_documents(127), 128);
    check(megatron<std::int16_t>(some_documents(32767), 3, alone), some_documents(32767), 32768);
    check(megatron<std::int32_t>(some_documents(128255), 4, alone), some_documents(128255), 128256);
    check(megatron<std::int64_t>(some_documents(128255), 5, alone), some_documents(128255), 128256);
    check(megatron<std::uint16_t>(some_documents(50256), 8, alone), some_documents(50256), 50257);
  }
  folder.write("t.idx", "MMIDIDX is a text");
  EXPECT_FALSE(is_megatron_index(folder / "t.idx"));
  folder.write("t.idx", "");
  EXPECT_FALSE(is_megatron_index(folder / "t.idx"));
}

TEST(Megatron, WhatIsNotWholeIsRefused) {
  const test::TempDirectory folder;
  const Documents documents = {{1, 2, 3}, {4, 5}};
  // 34 bytes of head, lengths from 34, places from 42, boundaries from 58; 82 in all.
  const Megatron good = megatron<std::uint16_t>(documents, 8, 0);
  ASSERT_EQ(good.index.size(), 82u);
  const auto refused = [&](const std::string& why, const Megatron& files) {
    folder.write("a.idx", files.index);
    folder.write("a.bin", files.data);
    std::int64_t tokens = 0;
    test::expect_error(ExitCode::data, why, [&] {
      read_megatron(folder / "a.idx", 6,
                    [&](const TokenPiece& piece) { tokens += std::ssize(piece.tokens); });
    });
    EXPECT_EQ(tokens, 0) << why;
  };
  const auto index = [&](const std::string& why, std::size_t at, auto value) {
    Megatron bad = good;
    put_at(bad.index, at, value);
    refused(why, bad);
  };
  index("is of version 2; expected 1", 9, std::uint64_t{2});
  for (const int code : {0, 6, 7, 9}) index("its dtype is ", 17, static_cast<std::uint8_t>(code));
  index("says that it has 18446744073709551615 entries", 18, ~std::uint64_t{0});
  index("says that it has 9223372036854775807 entries", 26, ~std::uint64_t{0} >> 1);
  index("holds 82 bytes, which 1 sequences and 3 boundaries", 18, std::uint64_t{1});
  index("sequence 0 holds -1 tokens", 34, std::int32_t{-1});
  index("sequence 0 ends behind the data", 34, std::int32_t{1} << 30);
  index("sequence 1 holds 2 tokens at byte 6; expected at least 0, at byte 4", 34, std::int32_t{2});
  index("sequence 1 holds 2 tokens at byte 0", 50, std::int64_t{0});
  index("sequence 0 holds 3 tokens at byte -2", 42, std::int64_t{-2});
  index("its first document does not begin at sequence 0", 58, std::int64_t{1});
  index("boundary 1 of documents is 3", 66, std::int64_t{3});
  index("boundary 1 of documents is -1", 66, std::int64_t{-1});
  index("boundary 2 of documents is 1", 74, std::int64_t{1});
  index("boundary 2 of documents is 3", 74, std::int64_t{3});
  for (const std::size_t size : {9u, 33u, 34u, 41u, 81u}) {
    Megatron cut = good;
    cut.index.resize(size);
    refused("the index of a Megatron dataset ", cut);
  }
  Megatron longer = good, shorter = good, modes = good, none = good;
  longer.data += '\0';
  refused("its sequences hold 5 tokens, 10 bytes; the data holds 11", longer);
  shorter.data.resize(8);
  refused("sequence 1 ends behind the data", shorter);
  modes.index += std::string(2, '\0');
  refused("a multimodal dataset", modes);
  none.data.clear();
  refused("a.bin: holds no token", none);
  // Ids are checked as they are read.
  const auto bad_id = [&](const std::string& why, const Megatron& files, std::int64_t vocabulary) {
    folder.write("a.idx", files.index);
    folder.write("a.bin", files.data);
    test::expect_error(ExitCode::data, why, [&] {
      read_megatron(folder / "a.idx", vocabulary, [](const TokenPiece&) {});
    });
  };
  bad_id("a.bin: token 4 is 5, outside the vocabulary of 5", good, 5);
  bad_id("token 0 is -1, outside the vocabulary", megatron<std::int32_t>({{-1}}, 4, 0), 6);
  Megatron wide = megatron<std::int64_t>({{1}}, 5, 0);
  put_at(wide.data, 0, (std::int64_t{1} << 32) + 1);
  bad_id("token 0 is 4294967297, outside", wide, 6);
}

template <class T>
std::string llmc(std::int32_t magic, std::int32_t version,
                 const std::vector<std::int32_t>& tokens) {
  std::string bytes;
  for (const std::int32_t word : {magic, version, static_cast<std::int32_t>(tokens.size())})
    put<std::int32_t>(bytes, word);
  bytes.resize(1024);
  for (const std::int32_t token : tokens) put<T>(bytes, token);
  return bytes;
}

TEST(Llmc, DocumentsBeginAtTheirToken) {
  const test::TempDirectory folder;
  const auto documents = [&](const std::string& bytes, std::int64_t start) {
    folder.write("a.bin", bytes);
    EXPECT_TRUE(is_llmc(folder / "a.bin"));
    return read([&](const TakeTokens& take) { read_llmc(folder / "a.bin", 128256, start, take); });
  };
  EXPECT_EQ(documents(llmc<std::uint16_t>(20240520, 1, {50256, 1, 2, 50256, 50256, 3}), 50256),
            (Documents{{50256, 1, 2}, {50256}, {50256, 3}}));
  EXPECT_EQ(documents(llmc<std::uint32_t>(20240801, 7, {5, 128000, 65536, 128000}), 128000),
            (Documents{{5}, {128000, 65536}, {128000}}));
  EXPECT_EQ(documents(llmc<std::uint16_t>(20240520, 1, {}), 7), Documents{});
  // Where a piece ends and where one begins.
  for (const std::size_t at : {65535u, 65536u, 65537u, 131071u}) {
    std::vector<std::int32_t> tokens(131072, 9);
    tokens[at] = 7;
    const Documents both = documents(llmc<std::uint16_t>(20240520, 1, tokens), 7);
    ASSERT_EQ(both.size(), 2u) << at;
    EXPECT_EQ(both[0].size(), at);
    EXPECT_EQ(both[1].size(), tokens.size() - at);
  }
}

TEST(Llmc, WhatIsNotWholeIsRefused) {
  const test::TempDirectory folder;
  const std::string good = llmc<std::uint16_t>(20240520, 1, {7, 1, 2});
  const auto refused = [&](const std::string& why, const std::string& bytes) {
    folder.write("a.bin", bytes);
    test::expect_error(ExitCode::data, why, [&] {
      read_llmc(folder / "a.bin", 8, 7, [](const TokenPiece&) { FAIL() << "a piece of it"; });
    });
  };
  refused("is cut off within its first 1024 bytes", good.substr(0, 1023));
  refused("says that it has 3 tokens of 2 bytes behind the first 1024, and holds 1029",
          good.substr(0, 1029));
  refused("and holds 1031", good + "x");
  refused("is of version 2; expected 1", llmc<std::uint16_t>(20240520, 2, {7}));
  refused("is of version 1; expected 7", llmc<std::uint32_t>(20240801, 1, {7}));
  refused("has no magic of one", llmc<std::uint16_t>(20240522, 1, {7}));
  std::string negative = good;
  put_at(negative, 8, std::int32_t{-1});
  refused("says that it has -1 tokens", negative);
  refused("token 1 is 8, outside the vocabulary of 8", llmc<std::uint16_t>(20240520, 1, {7, 8}));
  refused("token 0 is 4294967295, outside", llmc<std::uint32_t>(20240801, 7, {-1}));
  folder.write("text", "a text");
  EXPECT_FALSE(is_llmc(folder / "text"));
}

}  // namespace
}  // namespace longhaul::runtime
