// Characters, their classes and the translation of regular expressions.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/text/nfc_impl.h"
#include "runtime/text/pattern_impl.h"
#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"

namespace longhaul::runtime {
namespace {

using test::expect_error;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

TEST(Utf8, ReplacesMaximalPartsAsPythonDoes) {
  const auto stored = nlohmann::json::parse(test::read_text(
      std::string(LONGHAUL_SOURCE_DIR) + "/tests/runtime/json_tokenizer_cases.json"));
  for (const auto& one : stored.at("invalid")) {
    const std::string bytes = from_hex(one[0]), expected = one[1];
    const Utf8Repair repair = repair_utf8(bytes, true);
    EXPECT_EQ(repair.text, expected) << one[0];
    EXPECT_EQ(valid_utf8_bytes(bytes) == bytes.size(), bytes == expected) << one[0];
    EXPECT_EQ(valid_utf8_bytes(expected), expected.size());
    ASSERT_EQ(repair.origins.size(), expected.size() + 1);
    EXPECT_EQ(repair.origins.back(), std::ssize(bytes));
    EXPECT_TRUE(std::ranges::is_sorted(repair.origins));
  }
  EXPECT_EQ(repair_utf8("12345678\xff").invalid_bytes, 1);
  EXPECT_EQ(valid_utf8_bytes("12345678\xff"), 8u);
}

TEST(Utf8, CharactersGoThereAndBack) {
  for (char32_t c = 0; c < kCharacters; c += c < 0x11000 ? 1 : 127) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_utf8(text, c);
    ASSERT_EQ(character_bytes(text), text.size()) << static_cast<unsigned>(c);
    ASSERT_EQ(character(text), c);
  }
}

TEST(Unicode, ClassesAreThoseOfVersion16) {
  const auto characters = [](const char* name) {
    std::int64_t count = 0;
    const auto set = category(name);
    for (const CharacterRange& range : *set) count += std::int64_t{range.last} - range.first + 1;
    return count;
  };
  EXPECT_EQ(characters("L"), 141028);
  EXPECT_EQ(characters("N"), 1911);
  EXPECT_EQ(complement(complement(*category("Lu"))), *category("Lu"));
  EXPECT_FALSE(category("Xx"));
  EXPECT_FALSE(category(""));
  for (const char32_t c : {U'a', U'_', U'\u0301', U'\u24b6', U'\u200d', U'\u0661', U'\u2163'})
    EXPECT_TRUE(is_word(c)) << static_cast<unsigned>(c);
  for (const char32_t c : {U' ', U'-', U'\u00bd', U'\u2028', U'\U0001f600'})
    EXPECT_FALSE(is_word(c)) << static_cast<unsigned>(c);
  EXPECT_TRUE(is_white_space(0x85) && is_white_space(0x3000) && !is_white_space(0x180e));
}

std::string composed(const std::string& text) {
  TextBuffer buffer;
  return std::string(compose(TextPart{text}, buffer).text);
}

/// Examples of the standard's annex 15 and of chapter 3.12.
TEST(Unicode, ComposesCanonically) {
  EXPECT_EQ(composed("plain"), "plain");
  EXPECT_EQ(composed("A\u030a"), "\u00c5");
  EXPECT_EQ(composed("\u212b"), "\u00c5");
  EXPECT_EQ(composed("\u1e9b\u0323"), "\u1e9b\u0323");
  EXPECT_EQ(composed("d\u0307\u0323"), "\u1e0d\u0307");
  EXPECT_EQ(composed("\u0958"), "\u0915\u093c");                // excluded from composition
  EXPECT_EQ(composed("\u1100\u1161\u11a8x"), "\uac01x");        // Hangul
  EXPECT_EQ(composed("\uac00\u11a7"), "\uac00\u11a7");          // no trailing consonant
  EXPECT_EQ(composed("\u0344"), "\u0308\u0301");                // decomposes, and stays so
  EXPECT_EQ(composed("\U000105d2\u0307"), "\U000105d2\u0307");  // composes in version 16 only
  EXPECT_EQ(composed("a\u0305\u0301"), "a\u0305\u0301");        // blocked by a mark of its class
  EXPECT_EQ(composed("x\u0301\u0327y"), "x\u0327\u0301y");
}

TEST(Pattern, TranslatesWhatBothLibrariesMean) {
  EXPECT_EQ(pcre2_pattern("a+(b|c)?", "P"), "\\x{61}+(?:\\x{62}|\\x{63})?");
  EXPECT_EQ(pcre2_pattern("[^\\r\\n]{1,3}", "P"), "[^\\x{a}\\x{d}]{1,3}");
  EXPECT_EQ(pcre2_pattern("[a-cb-e-]", "P"), "[\\x{2d}\\x{61}-\\x{65}]");
  EXPECT_EQ(pcre2_pattern("(?i:'s|'Re)", "P"), "(?i:'s|'Re)");
  EXPECT_EQ(pcre2_pattern("\\p{Zl}\\.", "P"), "\\x{2028}\\x{2e}");
  for (const char* bad :
       {"\\w",  "\\b",     "\\h",    "\\u0041", "^a",      "a$",      "[[:alpha:]]", "[a&&b]",
        "[]a]", "[a",      "[b-a]",  "[\\s-a]", "a{1,3}+", "a{2}?",   "a{,3}",       "a{1001}",
        "a{",   "(?<n>a)", "(?<=a)", "(?i)a",   "(?i:a.)", "(?i:ss)", "(?i:x|Fi)",   "\\p{Han}",
        "\\pL", "\\p{L",   "\\",     "\\1",     "\xff"}) {
    SCOPED_TRACE(bad);
    expect_error(ExitCode::data, "P: the regular expression '", [&] { pcre2_pattern(bad, "P"); });
  }
}

TEST(Pattern, RefusesATextThatNeedsTooManySteps) {
  const Pattern pattern("(?:a|a)+b|(?:(?:x+x+)+)+y", "P");
  Pattern::Room room;
  EXPECT_EQ(pattern.find("xaab", 0, room)->end, 4u);
  EXPECT_FALSE(pattern.find("zzz", 0, room));
  expect_error(ExitCode::data, "P: matching its regular expression at byte 0 of 60 failed",
               [&] { pattern.find(std::string(60, 'x'), 0, room); });
}

TEST(Pattern, TakesLongRuns) {
  const Pattern pattern("\\p{L}+|\\s+(?!\\S)|\\s+", "P");
  Pattern::Room room;
  EXPECT_EQ(pattern.find(std::string(1 << 20, 'x'), 0, room)->end, std::size_t{1} << 20);
  EXPECT_EQ(pattern.find(std::string(1 << 20, ' ') + "x", 0, room)->end,
            (std::size_t{1} << 20) - 1);
}

}  // namespace
}  // namespace longhaul::runtime
