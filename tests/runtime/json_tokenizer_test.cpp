// tokenizer.json: what the Hugging Face library makes of small ones is stored in
// json_tokenizer_cases.json, by tests/huggingface/small_tokenizers.
#include "runtime/text/json_tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/io/hash.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using nlohmann::json;
using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

using Ids = std::vector<std::int32_t>;

const json& stored() {
  static const json all = json::parse(
      test::read_text(fs::path(LONGHAUL_SOURCE_DIR) / "tests/runtime/json_tokenizer_cases.json"));
  return all;
}

json stored_tokenizer(const std::string& name) {
  for (const json& one : stored().at("cases"))
    if (one.at("name") == name) return one.at("tokenizer");
  throw std::runtime_error("no case " + name);
}

std::unique_ptr<Tokenizer> make(const json& value) {
  TempDirectory folder;
  test::write_text(folder / "tokenizer.json", value.dump());
  return make_tokenizer(folder.path().string());
}

Ids encode(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.encode(text, false).tokens;
}

TEST(JsonTokenizer, EqualsTheLibrary) {
  const auto texts = stored().at("texts").get<std::vector<std::string>>();
  for (const json& one : stored().at("cases")) {
    SCOPED_TRACE(one.at("name").get<std::string>());
    const auto tokenizer = make(one.at("tokenizer"));
    for (std::size_t i = 0; i < texts.size(); ++i) {
      SCOPED_TRACE(texts[i]);
      Ids ids = one.at("ids")[i];
      for (const bool begins : {false, true})  // again: the second time pieces are known
        EXPECT_EQ(tokenizer->encode(texts[i], begins).tokens, ids);
      EXPECT_EQ(tokenizer->decode(ids), one.at("decoded")[i].get<std::string>());
      std::ranges::reverse(ids);
      EXPECT_EQ(tokenizer->decode(ids), one.at("decoded_backward")[i].get<std::string>());
    }
  }
}

TEST(JsonTokenizer, ForgetsPiecesAndStaysRight) {
  const auto tokenizer = make(stored_tokenizer("bytes by GPT-2's pattern"));
  const auto again = make(stored_tokenizer("bytes by GPT-2's pattern"));
  std::string text;  // more words than are remembered
  for (int i = 0; i < 60000; ++i) text += " w" + std::to_string(i * 7919);
  const std::string end = text.substr(text.size() - 2000);
  const Ids all = encode(*tokenizer, text);
  EXPECT_EQ(encode(*tokenizer, text), all);
  EXPECT_EQ(encode(*tokenizer, end), encode(*again, end));
}

TEST(JsonTokenizer, ThreadsGetTheSameTokens) {
  const auto tokenizer = make(stored_tokenizer("composed bytes"));
  const auto texts = stored().at("texts").get<std::vector<std::string>>();
  std::vector<Ids> expected;
  for (const std::string& text : texts) expected.push_back(encode(*tokenizer, text));
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int& count : wrong) {
      threads.emplace_back([&] {
        for (std::size_t i = 0; i < 20 * texts.size(); ++i)
          count += encode(*tokenizer, texts[i % texts.size()]) != expected[i % texts.size()];
      });
    }
  }
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

struct Begins {
  std::string tokenizer, text;
  std::vector<std::int64_t> begins;
};

TEST(JsonTokenizer, SaysWhereTokensBegin) {
  const std::vector<Begins> cases = {
      {"bytes by GPT-2's pattern", "hello world<s>x", {0, 5, 8, 10, 11, 14}},
      {"bytes by GPT-2's pattern", "a  <left>b", {0, 1, 9}},
      {"bytes behind a prefix", "hello w", {0, 5}},
      // e and its accent become one character of two bytes, one token.
      {"composed bytes", "xe\xcc\x81x\xcc\x81", {0, 1, 4, 5, 5}},
      {"pieces without a pattern", "hello world", {0, 5, 7, 9, 10}},
      {"pieces, first prefix", "<s>hello w", {0, 3, 8}},
      {"fused unknown characters", "x\xc3\xa9xhello", {0, 4}},
      // Nothing stands for the dash.
      {"dropped characters, digits", "w-el", {0, 1, 3}},
      // One U+FFFD, of three bytes, for two.
      {"bytes by GPT-2's pattern", "he\xe2\x82hello", {0, 2, 2, 2, 4}},
  };
  for (const Begins& one : cases) {
    SCOPED_TRACE(one.tokenizer + ": " + one.text);
    const auto tokenizer = make(stored_tokenizer(one.tokenizer));
    const EncodedText encoded = tokenizer->encode(one.text, true);
    EXPECT_EQ(encoded.begins, one.begins) << testing::PrintToString(encoded.tokens);
    EXPECT_TRUE(tokenizer->encode(one.text, false).begins.empty());
  }
}

TEST(JsonTokenizer, CountsWhatItDoesNotKeep) {
  const auto fused = make(stored_tokenizer("fused unknown characters"));
  EXPECT_EQ(fused->encode("x\xc3\xa9xhello", false).unknown_characters, 3);
  const auto dropped = make(stored_tokenizer("dropped characters, digits"));
  for (const bool begins : {false, true, true}) {  // known pieces count as well
    const EncodedText lost = dropped->encode("he-ll\xc3\xa9", begins);
    EXPECT_EQ(lost.dropped_characters, 2);
    EXPECT_EQ(lost.unknown_characters, 0);
    EXPECT_EQ(lost.first_dropped, "-");
    EXPECT_EQ(lost.first_dropped_at, begins ? 2 : 0);
  }
  EXPECT_EQ(dropped->encode("hell\xc3\xa9", true).first_dropped, "\xc3\xa9");
  EXPECT_EQ(fused->encode("-", false).dropped_characters, 0);
  const EncodedText invalid =
      make(stored_tokenizer("three splits"))->encode("a\xff\xe2\x82z", false);
  EXPECT_EQ(invalid.invalid_bytes, 3);
  EXPECT_EQ(invalid.tokens.size(), 2u + 2 * 3);
  EXPECT_EQ(fused->encode("hello", false).invalid_bytes, 0);
}

TEST(JsonTokenizer, CountsBytesOfText) {
  const std::string text = "he\xe2\x98\x83 \xe2\x98\x83\xe2\x98\x83hello";
  for (const char* name : {"bytes by GPT-2's pattern", "pieces without a pattern"}) {
    SCOPED_TRACE(name);
    const auto tokenizer = make(stored_tokenizer(name));
    const EncodedText encoded = tokenizer->encode(text, true);
    for (std::size_t count = 0; count <= encoded.tokens.size(); ++count) {
      Ids first(encoded.tokens.begin(),
                encoded.tokens.begin() + static_cast<std::ptrdiff_t>(count));
      const std::int64_t bytes =
          count < encoded.begins.size() ? encoded.begins[count] : std::ssize(text);
      EXPECT_EQ(tokenizer->text_bytes(first), bytes) << count;
      first.insert(first.begin(), *tokenizer->token_id("<s>"));
      EXPECT_EQ(tokenizer->text_bytes(first), bytes) << count;
    }
    expect_error(ExitCode::data, "token 0 is -1", [&] { tokenizer->text_bytes(Ids{-1}); });
  }
  const auto pieces = make(stored_tokenizer("pieces without a pattern"));
  EXPECT_EQ(pieces->text_bytes(Ids{*pieces->token_id("<unk>")}), std::nullopt);
  const auto bytes = make(stored_tokenizer("bytes by GPT-2's pattern"));
  EXPECT_EQ(bytes->text_bytes(Ids{*bytes->token_id("he wo")}), 5);  // added, but text
  EXPECT_EQ(make(stored_tokenizer("single digits"))->text_bytes(Ids{0}), std::nullopt);
}

TEST(JsonTokenizer, NamesItselfAndItsTokens) {
  TempDirectory folder;
  const std::string text = stored_tokenizer("bytes by GPT-2's pattern").dump();
  fs::create_directory(folder / "Some-Model");
  test::write_text(folder / "Some-Model/tokenizer.json", text);
  test::write_text(folder / "other.json", text);
  const auto of = [&](const std::string& what) { return make_tokenizer((folder / what).string()); };
  EXPECT_EQ(of("Some-Model")->name(), "tokenizer.json:Some-Model:" + xxh3_128(text));
  EXPECT_EQ(of("Some-Model/")->name(), of("Some-Model")->name());
  EXPECT_EQ(of("other.json")->name(), "tokenizer.json:other.json:" + xxh3_128(text));
  const auto tokenizer = of("other.json");
  EXPECT_EQ(tokenizer->vocabulary_size(), *tokenizer->token_id(" <x>") + 1);
  EXPECT_EQ(tokenizer->token_id("a"), 'a' - '!');
  EXPECT_EQ(tokenizer->decode(Ids{*tokenizer->token_id("<|end|>")}), "<|end|>");
  EXPECT_EQ(tokenizer->token_id("nothing"), std::nullopt);
  expect_error(ExitCode::data, "token 1 is -1", [&] { tokenizer->decode(Ids{0, -1}); });
  expect_error(ExitCode::data, "which stands for nothing", [&] {
    tokenizer->decode(Ids{static_cast<std::int32_t>(tokenizer->vocabulary_size())});
  });
  fs::create_directory(folder / "empty");
  expect_error(ExitCode::io, "empty: holds no tokenizer.json", [&] { of("empty"); });
  expect_error(ExitCode::io, "none.json", [&] { of("none.json"); });
}

/// A change at a JSON pointer and what its refusal says.
struct Refusal {
  const char* place;
  const char* value;
  const char* says;
};

TEST(JsonTokenizer, RefusesWhatItDoesNotKnow) {
  const json good = stored_tokenizer("bytes by Llama 3's pattern");
  const std::vector<Refusal> refusals = {
      {"/version", "\"2.0\"", "tokenizer.json: version: '2.0'"},
      {"/truncation", "{\"max_length\": 9}", "truncation: is set"},
      {"/padding", "{}", "padding: is set"},
      {"/surprise", "1", "has a member 'surprise'"},
      {"/normalizer", "{\"type\": \"NFKC\"}", "normalizer: normalizer 'NFKC'"},
      {"/normalizer", "{\"type\": \"NFC\", \"form\": 3}", "has a member 'form'"},
      {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": \"\"}",
       "'Regex'"},
      {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"\"}",
       "empty text"},
      {"/normalizer", "{\"type\": \"Prepend\"}", "has no member 'prepend'"},
      {"/pre_tokenizer", "{\"type\": \"Punctuation\"}", "pre-tokenizer 'Punctuation'"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"",
       "pretokenizers[0]: behavior 'Removed'"},
      {"/pre_tokenizer/pretokenizers/0/invert", "true", "'invert'"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "{\"Regex\": \"a*\"}", "matches the empty text"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "{\"Regex\": \"a(\"}", "is no regular expression"},
      {"/pre_tokenizer/pretokenizers/1",
       "{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"first\", "
       "\"add_prefix_space\": false}",
       "add_prefix_space false and prepend_scheme 'first'"},
      {"/pre_tokenizer/pretokenizers/2", "{\"type\": \"Digits\"}", "follows ByteLevel"},
      {"/post_processor", "{\"type\": \"BertProcessing\"}", "post-processor 'BertProcessing'"},
      {"/decoder", "{\"type\": \"WordPiece\"}", "decoder 'WordPiece'"},
      {"/model/type", "\"Unigram\"", "model: a model of type 'Unigram'"},
      {"/model/dropout", "0.1", "dropout"},
      {"/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix '</w>'"},
      {"/model/unk_token", "\"<unk>\"", "unk_token '<unk>' is not in the vocabulary"},
      {"/model/vocab", "[]", "model.vocab: is array, not an object"},
      {"/model/vocab/a", "-1", "model.vocab.a: is -1, not a whole number"},
      {"/model/vocab/a", "2147483648", "model.vocab.a: is 2147483648"},
      {"/model/vocab/a", "1.5", "model.vocab.a: is 1.5"},
      {"/model/vocab/a", "\"0\"", "model.vocab.a: is string"},
      {"/model/vocab/a", "2000000", "ids go up to 2000000"},
      {"/model/vocab/a", "1", "id 1 belongs to both"},
      {"/model/merges/1", "\"a b c\"", "model.merges[1]: 'a b c' is not two tokens"},
      {"/model/merges/1", "[\"a\"]", "model.merges[1]: has 1 tokens, not 2"},
      {"/model/merges/1", "[\"a\", \"nothing\"]", "'nothing' is not in the vocabulary"},
      {"/model/merges/1", "[\"a\", \"b\"]", "'ab' is not in the vocabulary"},
      {"/model/merges/1", "7", "model.merges[1]: is number, not a string"},
      {"/added_tokens/0/id", "3", "added_tokens[0]: '<s>' has id 3"},
      {"/added_tokens/1/content", "\"<s>\"", "'<s>' is there twice"},
      {"/added_tokens/1/content", "\"\"", "has no content"},
      {"/added_tokens/1/lstrip", "1", "added_tokens[1].lstrip: is number"},
  };
  for (const Refusal& one : refusals) {
    SCOPED_TRACE(std::string(one.place) + " = " + one.value);
    json bad = good;
    bad[json::json_pointer(one.place)] = json::parse(one.value);
    expect_error(ExitCode::data, one.says, [&] { make(bad); });
  }
  json bad = good;
  bad["normalizer"] = {{"type", "Prepend"}, {"prepend", std::string(1025, 'x')}};
  expect_error(ExitCode::data, "prepend has 1025 bytes", [&] { make(bad); });
  make(good);
}

TEST(JsonTokenizer, SurvivesDamage) {
  const std::string good = stored_tokenizer("pieces, first prefix").dump();
  TempDirectory folder;
  const fs::path path = folder / "tokenizer.json";
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"),
        std::string("\xff"), std::string("{\"version\": 1e999}"), good + "x",
        std::string(1 << 20, '['), "{\"model\":" + std::string(100000, '[')}) {
    test::write_text(path, text);
    expect_error(ExitCode::data, "tokenizer.json", [&] { make_json_tokenizer(path); });
  }
  for (std::size_t i = 0; i < 80; ++i) {  // cut short, or a byte changed: an error or a tokenizer
    std::string text = good;
    if (i % 2 == 0) {
      text.resize(text.size() * i / 80);
    } else {
      text[(i * 7919) % text.size()] = static_cast<char>(' ' + i % 95);
    }
    test::write_text(path, text);
    try {
      encode(*make_json_tokenizer(path), "hello world");
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.code()), 65) << error.what();
    }
  }
}

}  // namespace
}  // namespace longhaul::runtime
