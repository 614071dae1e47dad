#include "runtime/io/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::safetensors {
namespace {

using test::expect_error;
using test::TempDirectory;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::string unhex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

/// The bytes of each tensor, by name.
using Contents = std::map<std::string, std::string>;

Contents counted_contents(std::span<const TensorInfo> tensors) {
  Contents contents;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::string& bytes = contents[tensors[i].name];
    for (std::size_t j = 0; j < static_cast<std::size_t>(tensors[i].bytes()); ++j) {
      bytes += static_cast<char>((7 * j + 31 * i + 3) & 255);
    }
  }
  return contents;
}

/// Writes a file, `most` bytes at a time.
void write(const std::filesystem::path& path, std::span<const TensorInfo> tensors,
           const Metadata& metadata, const Contents& contents, std::size_t most) {
  Writer writer(path, tensors, metadata);
  while (const Entry* entry = writer.next()) {
    const std::string& bytes = contents.at(entry->name);
    for (std::size_t at = 0; at < bytes.size(); at += most) {
      ASSERT_EQ(writer.next(), entry);
      writer.append(bytes_of(bytes).subspan(at, std::min(most, bytes.size() - at)));
    }
  }
  writer.finish();
}

TEST(Safetensors, TheWriterGivesTheLibrarysBytes) {
  const TempDirectory folder;
  for (const test::LibraryFile& file : test::library_files()) {
    SCOPED_TRACE(file.what);
    const std::filesystem::path path = folder / file.what;
    write(path, file.tensors, file.metadata, counted_contents(file.tensors), 5);
    EXPECT_EQ(test::read_text(path), unhex(file.hex));
  }
}

TEST(Safetensors, TheLibrarysFilesAreRead) {
  const TempDirectory folder;
  for (const test::LibraryFile& stored : test::library_files()) {
    SCOPED_TRACE(stored.what);
    const std::string bytes = unhex(stored.hex);
    const File file(folder.write("x.safetensors", bytes));
    EXPECT_EQ(file.metadata(), stored.metadata);
    EXPECT_EQ(file.bytes(), std::ssize(bytes));
    EXPECT_EQ(file.entries().size(), stored.tensors.size());
    const Contents contents = counted_contents(stored.tensors);
    for (const TensorInfo& tensor : stored.tensors) {
      const Entry* entry = file.find(tensor.name);
      ASSERT_NE(entry, nullptr) << tensor.name;
      EXPECT_EQ(entry->element, tensor.element);
      EXPECT_EQ(entry->sizes, tensor.sizes);
      const std::string& expected = contents.at(tensor.name);
      for (std::size_t first = 0; first <= expected.size(); ++first) {
        std::string got(expected.size() - first, '?');
        file.read(*entry, static_cast<std::int64_t>(first), std::as_writable_bytes(std::span(got)));
        EXPECT_EQ(got, expected.substr(first));
      }
    }
    EXPECT_EQ(file.find("absent"), nullptr);
  }
}

TEST(Safetensors, AFileWrittenAgainIsTheSame) {
  std::mt19937 random(5);
  const TempDirectory folder;
  for (int round = 0; round < 8; ++round) {
    std::vector<TensorInfo> tensors;
    for (const std::int64_t size : {0, 1, 7, 127, 251}) {
      tensors.push_back({concat(random()), static_cast<Element>(random() % 15), {size}});
      tensors.push_back(
          {concat(random()), static_cast<Element>(random() % 15), {size, 3, 1, 2, 1, 1}});
    }
    std::ranges::shuffle(tensors, random);
    const Metadata metadata{{{"z", "1"}, {"a", ""}, {concat(random()), "\n"}}};
    const Contents contents = counted_contents(tensors);
    write(folder / concat("a", round), tensors, metadata, contents, 1 + random() % 600);
    const File file(folder / concat("a", round));
    Contents read;
    for (const Entry& entry : file.entries()) {
      std::string& bytes = read[entry.name];
      bytes.resize(static_cast<std::size_t>(entry.bytes()));
      file.read(entry, 0, std::as_writable_bytes(std::span(bytes)));
    }
    EXPECT_EQ(read, contents);
    std::ranges::shuffle(tensors, random);
    write(folder / concat("b", round), tensors, file.metadata(), read, 1 + random() % 600);
    EXPECT_EQ(test::read_text(folder / concat("a", round)),
              test::read_text(folder / concat("b", round)));
  }
}

/// The value of a pattern, from what its fields mean.
double value_of(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Half {
  Element element;
  int exponent_bits;
};
constexpr Half kHalves[] = {{Element::bf16, 8}, {Element::f16, 5}};

std::vector<std::uint16_t> narrowed(Element element, std::span<const float> values) {
  std::vector<std::uint16_t> bits(values.size());
  EXPECT_EQ(from_floats(element, values, std::as_writable_bytes(std::span(bits))), std::nullopt);
  return bits;
}

TEST(Safetensors, EveryHalfBecomesItsValueAndComesBack) {
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  for (const auto& [element, exponent_bits] : kHalves) {
    std::vector<float> values(patterns.size());
    to_floats(element, std::as_bytes(std::span(patterns)), values);
    const std::vector<std::uint16_t> back = narrowed(element, values);
    int wrong = 0;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      const double expected = value_of(patterns[i], exponent_bits);
      if (std::isnan(expected)) {
        wrong += !std::isnan(values[i]) || !std::isnan(value_of(back[i], exponent_bits)) ||
                 std::signbit(values[i]) != ((patterns[i] & 0x8000) != 0);
      } else {
        wrong += static_cast<double>(values[i]) != expected || back[i] != patterns[i] ||
                 std::signbit(values[i]) != std::signbit(expected);
      }
    }
    EXPECT_EQ(wrong, 0) << name(element);
  }
}

/// Between each two neighbours: what is below their middle goes down, above it up, and the middle
/// to the even one. Both are exact in float32, as is the middle.
TEST(Safetensors, ValuesAreRoundedToNearestEven) {
  for (const auto& [element, exponent_bits] : kHalves) {
    std::vector<float> values;
    std::vector<std::uint16_t> expected;
    const auto infinity =
        static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << (15 - exponent_bits));
    for (std::uint16_t low = 0; low + 1 < infinity; ++low) {
      const auto high = static_cast<std::uint16_t>(low + 1);
      const auto middle =
          static_cast<float>((value_of(low, exponent_bits) + value_of(high, exponent_bits)) / 2);
      const std::uint16_t even = low % 2 == 0 ? low : high;
      for (const std::uint16_t sign : {std::uint16_t{0}, std::uint16_t{0x8000}}) {
        const float of_sign = sign == 0 ? 1.0F : -1.0F;
        for (const auto& [value, bits] :
             {std::pair(middle, even), std::pair(std::nextafter(middle, 0.0F), low),
              std::pair(std::nextafter(middle, kInfinity), high)}) {
          values.push_back(of_sign * value);
          expected.push_back(static_cast<std::uint16_t>(bits | sign));
        }
      }
    }
    EXPECT_EQ(narrowed(element, values), expected) << name(element);
  }
}

TEST(Safetensors, WhatAHalfCannotHoldIsRefused) {
  std::vector<std::byte> out(14);
  const auto first = [&](Element element, std::vector<float> values) {
    values.resize(7);
    return from_floats(element, values, out);
  };
  EXPECT_EQ(first(Element::f16, {65519.0F, -65519.0F, kInfinity, -kInfinity}), std::nullopt);
  EXPECT_EQ(first(Element::f16, {1, 2, 65520.0F, 1e9F}), 2);
  EXPECT_EQ(first(Element::f16, {1, 2, 3, -1e9F}), 3);
  // The greatest bfloat16 is 2^128 - 2^120; the middle to 2^128, which is even, rounds up.
  EXPECT_EQ(first(Element::bf16, {std::nextafter(0x1.ffp127F, 0.0F), -kInfinity}), std::nullopt);
  EXPECT_EQ(first(Element::bf16, {1, 0x1.ffp127F}), 1);
  EXPECT_EQ(first(Element::bf16, {-std::numeric_limits<float>::max()}), 0);

  const TempDirectory folder;
  const std::vector<TensorInfo> tensors{{"model.w", Element::f16, {3, 100000}}};
  Writer writer(folder / "x", tensors, std::nullopt);
  std::vector<float> values(300000, 0.5F);
  writer.append_floats(std::span(values).first(7));
  values[200006] = 70000.0F;
  expect_error(ExitCode::data, "tensor 'model.w', element 200013 (row-major) is 70000",
               [&] { writer.append_floats(std::span(values).first(299993)); });
  const std::vector<TensorInfo> brain{{"model.w", Element::bf16, {1}}};
  Writer other(folder / "y", brain, std::nullopt);
  const std::vector<float> greatest{std::numeric_limits<float>::max()};
  try {
    other.append_floats(greatest);
    ADD_FAILURE() << "nothing is refused";
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).ends_with("BF16 holds; write float32")) << error.what();
  }
}

TEST(Safetensors, FloatsAreWrittenAndReadInPiecesOfAnySize) {
  const TempDirectory folder;
  constexpr std::int64_t kCount = 300007;  // more than two pieces of each kind
  const std::vector<TensorInfo> tensors{{"single", Element::f32, {kCount}},
                                        {"brain", Element::bf16, {kCount, 1}},
                                        {"empty", Element::f16, {0}},
                                        {"half", Element::f16, {kCount}}};
  std::vector<float> values(kCount);  // exact in all three
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 253) - 127.0F;
  {
    Writer writer(folder / "x", tensors, std::nullopt);
    for (int tensor = 0; tensor < 3; ++tensor) {
      writer.append_floats(std::span(values).first(1));
      writer.append_floats(std::span(values).subspan(1, 200003));
      writer.append_floats(std::span(values).subspan(200004));
    }
    EXPECT_EQ(writer.next(), nullptr);
    writer.finish();
  }
  const File file(folder / "x");
  for (const Entry& entry : file.entries()) {
    for (const std::int64_t first : {0, 1, 7, 150001, 300006, 300007}) {
      if (first > entry.elements()) continue;
      std::vector<float> got(static_cast<std::size_t>(entry.elements() - first));
      file.read_floats(entry, first, got);
      EXPECT_TRUE(std::ranges::equal(
          got, std::span(values).subspan(static_cast<std::size_t>(first), got.size())))
          << entry.name << " from " << first;
    }
  }
}

TEST(Safetensors, TheWriterRefusesWhatNoFileHolds) {
  const TempDirectory folder;
  const auto refused = [&](const std::string& part, std::vector<TensorInfo> tensors,
                           const Metadata& metadata = std::nullopt) {
    expect_error(ExitCode::data, part, [&] { Writer(folder / "x", tensors, metadata); });
    EXPECT_FALSE(std::filesystem::exists(folder / "x"));
  };
  refused("'a': it is given twice",
          {{"a", Element::f32, {1}}, {"b", Element::f16, {1}}, {"a", Element::f16, {}}});
  refused("the name is the metadata's", {{"__metadata__", Element::f32, {1}}});
  refused("is not UTF-8", {{"a\xff", Element::f32, {1}}});
  refused("is not UTF-8", {}, Metadata{{{"format", "\xc0\x80"}}});
  refused("F32 [3,-1] has more bytes", {{"a", Element::f32, {3, -1}}});
  const std::int64_t large = std::int64_t{1} << 40;
  refused("more bytes than can be counted", {{"a", Element::u8, {large, large}}});
  refused("more bytes than can be counted",
          {{"a", Element::u8, {large, large >> 18}}, {"b", Element::u8, {large, large >> 18}}});
}

TEST(Safetensors, TheWriterWantsAllBytesAndNoMore) {
  const TempDirectory folder;
  const std::vector<TensorInfo> tensors{{"b", Element::u8, {3}}, {"a", Element::u8, {2}}};
  {
    Writer writer(folder / "x", tensors, std::nullopt);
    expect_error(ExitCode::io, "cannot create",
                 [&] { Writer(folder / "x", tensors, std::nullopt); });
    EXPECT_TRUE(std::filesystem::exists(folder / "x")) << "the other's file";
    expect_error(ExitCode::internal, "'a' wants 2 more bytes; 3 came",
                 [&] { writer.append(bytes_of("123")); });
    writer.append(bytes_of("12"));
    writer.append(bytes_of("34"));
    expect_error(ExitCode::internal, "'b' have not come", [&] { writer.finish(); });
    writer.append(bytes_of("5"));
    expect_error(ExitCode::internal, "has all its bytes", [&] { writer.append(bytes_of("6")); });
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "x")) << "it was not finished";
}

TEST(Safetensors, AFileCutShortWhileItIsOpenIsNoticed) {
  const TempDirectory folder;
  const std::vector<TensorInfo> tensors{{"a", Element::u8, {127}}, {"b", Element::f16, {7}}};
  write(folder / "x", tensors, std::nullopt, counted_contents(tensors), 1000);
  const File file(folder / "x");
  std::filesystem::resize_file(folder / "x", static_cast<std::uintmax_t>(file.bytes()) - 1);
  std::vector<float> floats(7);
  file.read_floats(*file.find("b"), 0, floats);  // lies before the cut
  std::vector<std::byte> bytes(127);
  expect_error(ExitCode::data, concat("x: ends at byte ", file.bytes() - 1),
               [&] { file.read(*file.find("a"), 0, bytes); });
  expect_error(ExitCode::internal, "tensor 'a' has 127 bytes; asked for 127 from 1 on",
               [&] { file.read(*file.find("a"), 1, bytes); });
}

}  // namespace
}  // namespace longhaul::runtime::safetensors
