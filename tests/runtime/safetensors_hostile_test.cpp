#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <random>

#include "runtime/io/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::safetensors {
namespace {

using test::expect_error;
using test::TempDirectory;

std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 255);
  return bytes;
}
std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  return length_bytes(header.size()) + header + std::string(data_bytes, 'd');
}
/// One tensor 'a', U8 [4], with `fields` after it.
std::string tensor(const std::string& fields) { return R"({"a":{)" + fields + "}}"; }

struct Hostile {
  std::string part;  ///< of the error
  std::string bytes;
};

const std::string kGood = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";

std::vector<Hostile> files_without_a_header() {
  return {
      {"it holds 0 bytes", ""},
      {"it holds 7 bytes", "1234567"},
      {"expected '{' as the first byte", length_bytes(0)},
      {"18446744073709551615 bytes", length_bytes(~std::uint64_t{0}) + "{}"},
      {"9223372036854775808 bytes", length_bytes(std::uint64_t{1} << 63) + "{}"},
      {"at most 100000000 are read", length_bytes(100'000'001) + "{}"},
      {"cut short", length_bytes(100'000'000) + "{}"},
      {"cut short", length_bytes(3) + "{}"},
      {"cut short", length_bytes(10) + "{}"},
  };
}

std::vector<Hostile> texts() {
  const std::string name_begin = R"({"a)", name_end = R"(":{)" + kGood + "}}";
  const auto named = [&](const std::string& bytes) {
    return file_of(name_begin + bytes + name_end, 4);
  };
  return {
      {"expected '{' as the first byte", file_of("[]")},
      {"expected '{' as the first byte", file_of("\"a\"")},
      {"expected '{' as the first byte", file_of("null")},
      {"expected '{' as the first byte", file_of(" {}")},
      {"expected '{' as the first byte", file_of("\xef\xbb\xbf{}")},
      {"expected a string; it ends", file_of("{")},
      {"expected nothing more", file_of("{}x")},
      {"expected nothing more", file_of("{} {}")},
      {"expected nothing more", file_of(std::string("{}\0\0", 4))},
      {"expected nothing more", file_of("{}\f")},
      {"expected a string", file_of(R"({"a":{)" + kGood + "},}", 4)},
      {"expected a string", file_of("{/**/}")},
      {"expected a string", file_of("{'a':1}")},
      {"expected '{'", file_of(R"({"a":)" + std::string(90'000, '['))},
      {"unknown field 'x'", file_of(tensor(kGood + R"(,"x":)" + std::string(90'000, '[')), 4)},
      {"is not UTF-8", named("\xff")},
      {"is not UTF-8", named("\x80")},
      {"is not UTF-8", named("\xc0\x80")},
      {"is not UTF-8", named("\xe0\x9f\xbf")},
      {"is not UTF-8", named("\xed\xa0\x80")},
      {"is not UTF-8", named("\xf0\x8f\xbf\xbf")},
      {"is not UTF-8", named("\xf4\x90\x80\x80")},
      {"is not UTF-8", named("\xe2\x82")},
      {"half a surrogate pair", named(R"(\ud800)")},
      {"half a surrogate pair", named(R"(\udc00)")},
      {"half a surrogate pair", named(R"(\ud800\u0041)")},
      {"four hexadecimal digits", named(R"(\u12g4)")},
      {"unknown escape", named(R"(\x41)")},
      {"is not escaped", named("\n")},
      {"has no end", file_of(R"({"a)")},
  };
}

std::vector<Hostile> fields() {
  const auto with = [](const std::string& text, std::size_t data_bytes = 4) {
    return file_of(tensor(text), data_bytes);
  };
  const auto offsets = [&](const std::string& text) {
    return with(R"("dtype":"U8","shape":[4],"data_offsets":)" + text);
  };
  const auto shape = [&](const std::string& text) {
    return with(R"("dtype":"U8","data_offsets":[0,4],"shape":)" + text);
  };
  return {
      {"no dtype", with(R"("shape":[4],"data_offsets":[0,4])")},
      {"no shape", with(R"("dtype":"U8","data_offsets":[0,4])")},
      {"no data_offsets", with(R"("dtype":"U8","shape":[4])")},
      {"unknown field 'layout'", with(kGood + R"(,"layout":0)")},
      {"two fields 'shape'", with(kGood + R"(,"shape":[4])")},
      {"two fields 'dtype'", with(kGood + R"(,"dtype":"U8")")},
      {"two fields 'data_offsets'", with(kGood + R"(,"data_offsets":[0,4])")},
      {"the dtype 'u8'", with(R"("dtype":"u8","shape":[4],"data_offsets":[0,4])")},
      {"the dtype 'F4'", with(R"("dtype":"F4","shape":[8],"data_offsets":[0,4])")},
      {"expected a string", with(R"("dtype":4,"shape":[4],"data_offsets":[0,4])")},
      {"not negative; found '-'", offsets("[-1,4]")},
      {"not negative; found '-'", offsets("[-0,4]")},
      {"point and exponent", offsets("[0.0,4]")},
      {"point and exponent", offsets("[0,4e0]")},
      {"begins with 0", offsets("[00,4]")},
      {"expected a whole number", offsets(R"(["0",4])")},
      {"expected a whole number", offsets("[null,4]")},
      {"above 9223372036854775807", offsets("[0,9223372036854775808]")},
      {"above 9223372036854775807", offsets("[0,18446744073709551620]")},
      {"no two data_offsets", offsets("[4]")},
      {"no two data_offsets", offsets("[]")},
      {"more than two data_offsets", offsets("[0,4,4]")},
      {"expected '['", offsets("4")},
      {"expected '['", shape("4")},
      {"expected ']'", shape("[4;]")},
      {"not negative; found '-'", shape("[-4]")},
      {"U8 [5] has 5", shape("[5]")},
      {"U8 [2,1] has 2", shape("[2,1]")},
      {"U8 [0] has 0", shape("[0]")},
      {"more bytes than can be counted", shape("[4294967296,4294967296,4]")},
      {"more bytes than can be counted", shape("[9223372036854775807,9223372036854775807,0]")},
      {"has 16", with(R"("dtype":"F32","shape":[4],"data_offsets":[0,4])")},
      {"end before they begin", offsets("[4,0]")},
      {"cut short", with(kGood, 3)},
      {"from 4 on belong to no tensor", with(kGood, 5)},
      {"from 0 on belong to no tensor",
       with(R"("dtype":"U8","shape":[4],"data_offsets":[1,5])", 5)},
      {"from 0 on belong to no tensor", file_of("{}", 1)},
  };
}

std::vector<Hostile> several_tensors() {
  const auto two = [](const std::string& a, const std::string& b, std::size_t data_bytes) {
    return file_of(R"({"a":{"dtype":"U8",)" + a + R"(},"b":{"dtype":"U8",)" + b + "}}", data_bytes);
  };
  const std::string four = R"("shape":[4],"data_offsets":)";
  const auto metadata = [](const std::string& text) {
    return file_of(R"({"__metadata__":)" + text + "}");
  };
  return {
      {"some of which belong to 'a'", two(four + "[0,4]", four + "[3,7]", 7)},
      {"some of which belong to 'a'", two(four + "[0,4]", four + "[0,4]", 4)},
      {"some of which belong to 'b'", two(four + "[2,6]", four + "[0,4]", 6)},
      {"some of which belong to 'a'",
       two(four + "[0,4]", R"("shape":[0],"data_offsets":[2,2])", 4)},
      {"those from 4 on belong to no tensor", two(four + "[0,4]", four + "[5,9]", 9)},
      {"the file has 4 of them", two(four + "[0,4]", R"("shape":[0],"data_offsets":[5,5])", 4)},
      {"tensor 'a' is there twice",
       file_of(R"({"a":{)" + kGood + R"(},"\u0061":{"dtype":"U8",)" + four + "[4,8]}}", 8)},
      {"expected '{'", metadata("null")},
      {"expected '{'", metadata("[]")},
      {"expected a string", metadata(R"({"a":1})")},
      {"expected a string", metadata(R"({"a":{"b":"c"}})")},
      {"__metadata__ has 'a' twice", metadata(R"({"a":"1","b":"2","a":"1"})")},
      {"__metadata__ is there twice", metadata(R"({},"__metadata__":{})")},
  };
}

TEST(SafetensorsHostile, EachIsRefusedWithItsReason) {
  const TempDirectory folder;
  int files = 0;
  for (const auto& some : {files_without_a_header(), texts(), fields(), several_tensors()}) {
    for (const Hostile& hostile : some) {
      const std::string path = folder.write(concat(files++, ".safetensors"), hostile.bytes);
      SCOPED_TRACE(hostile.bytes.substr(0, 200));
      expect_error(ExitCode::data, hostile.part, [&] { File{path}; });
      expect_error(ExitCode::data, path, [&] { File{path}; });
    }
  }
  EXPECT_GE(files, 41);
}

TEST(SafetensorsHostile, UnusualButLegalFilesAreRead) {
  const TempDirectory folder;
  const auto entries = [&](const std::string& bytes) {
    return File(folder.write("x", bytes)).entries().size();
  };
  EXPECT_EQ(entries(file_of("{}")), 0U);
  EXPECT_EQ(entries(file_of("{ \t\r\n}\n ")), 0U);
  EXPECT_EQ(entries(file_of(R"({"__metadata__":{}})")), 0U);
  // Any order of names and fields, white space, escapes, sizes of zero where others begin and end.
  EXPECT_EQ(
      entries(file_of(
          R"({ "b" : { "data_offsets" : [ 4 , 6 ] , "shape" : [ 1 ] , "dtype" : "\u0042F1\u0036" } ,
      "a":{"dtype":"U8","shape":[4,1],"data_offsets":[0,4]}, "__metadata__" : { "\u0000" : "\ud83d\ude00" },
      "c":{"dtype":"F32","shape":[9,0],"data_offsets":[4,4]}, "":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
      "\"\\\/\b\f\n\r\t":{"dtype":"BOOL","shape":[0],"data_offsets":[6,6]} })",
          6)),
      5U);
}

/// Changes a byte, or removes, adds or cuts off some; at least one stays.
void change(std::string& bytes, std::mt19937& random) {
  const auto below = [&](std::size_t bound) { return random() % bound; };
  const std::size_t at =
      below(below(4) == 0 ? std::min<std::size_t>(8, bytes.size()) : bytes.size());
  switch (below(5)) {
    case 0:
      bytes[at] = static_cast<char>(random());
      break;
    case 1:
      bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(8));
      break;
    case 2:
      bytes.erase(at + 1, 1 + below(9));
      break;
    case 3:
      bytes.insert(at, 1 + below(3), "{}[]\",:0123456789 \x80\n"[below(20)]);
      break;
    default:
      bytes.resize(at + 1);
  }
}

TEST(SafetensorsHostile, MutationsAreRefusedOrStillSound) {
  const TempDirectory folder;
  const std::string good = file_of(
      R"({"__metadata__":{"format":"pt"},"model.a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("model.b":{"dtype":"BF16","shape":[7],"data_offsets":[24,38]},)"
      R"("n":{"dtype":"U8","shape":[1,0],"data_offsets":[38,38]}}  )",
      38);
  EXPECT_EQ(File(folder.write("x", good)).entries().size(), 3U);
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 160; ++round) {
    std::string bytes = good;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      change(bytes, random);
    }
    try {
      const File file(folder.write(concat("x", round), bytes));
      std::int64_t covered = 0;
      for (const Entry& entry : file.entries()) {
        EXPECT_EQ(entry.begin, covered);
        EXPECT_EQ(entry.bytes(), entry.end - entry.begin);
        covered = entry.end;
        std::vector<std::byte> data(static_cast<std::size_t>(entry.bytes()));
        file.read(entry, 0, data);
      }
      EXPECT_EQ(file.bytes(), std::ssize(bytes));
      EXPECT_EQ(covered, std::ssize(bytes) - 8 - static_cast<unsigned char>(bytes[0]) -
                             256 * static_cast<unsigned char>(bytes[1]));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data) << error.what();
      ++refused;
    }
  }
  EXPECT_GE(refused, 100);
}

/// `begin`, then `repeated` until there are `bytes` of header.
std::filesystem::path large_file(const TempDirectory& folder, const std::string& begin,
                                 const std::string& repeated, std::int64_t bytes) {
  std::string block;
  while (block.size() < (std::size_t{1} << 20)) block += repeated;
  std::ofstream file(folder / "large", std::ios::binary);
  file << length_bytes(static_cast<std::uint64_t>(bytes)) << begin;
  for (std::int64_t left = bytes - std::ssize(begin); left > 0; left -= std::ssize(block)) {
    file.write(block.data(), std::min<std::streamsize>(left, std::ssize(block)));
  }
  return folder / "large";
}

std::int64_t peak_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

/// Of this process, which a busy machine does not lengthen.
double seconds_computed() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

TEST(SafetensorsHostile, LargeHeadersTakeLittleMemoryAndTime) {
  const TempDirectory folder;
  const std::string of_metadata = R"({"__metadata__":{"a":")", of_shape = R"({"a":{"shape":[1)";
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  constexpr std::int64_t kMost = 100'000'000, kEnough = 40'000'000;
  for (const auto& [begin, repeated, bytes, part] :
       {std::tuple(std::string("{"), std::string(" "), kMost, "expected a string; it ends"),
        std::tuple(of_metadata, std::string("a"), kEnough, "is longer than"),
        std::tuple(of_shape, std::string(",1"), kEnough, "bytes of memory; split the file"),
        std::tuple(std::string("{"), "\"\":" + entry, kEnough,
                   "bytes of memory; split the file")}) {
    SCOPED_TRACE(begin + repeated);
    const std::filesystem::path path = large_file(folder, begin, repeated, bytes);
    const std::int64_t before = peak_bytes();
    const double start = seconds_computed();
    expect_error(ExitCode::data, part, [&] { File{path}; });
    EXPECT_LT(seconds_computed() - start, 1.0);
    EXPECT_LT(peak_bytes() - before, std::int64_t{64} << 20);
  }
}

}  // namespace
}  // namespace longhaul::runtime::safetensors
