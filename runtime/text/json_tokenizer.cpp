#include "runtime/text/json_tokenizer.h"

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "runtime/text/decoder_impl.h"
#include "runtime/text/json_model_impl.h"
#include "runtime/text/piece_cache_impl.h"
#include "runtime/text/pre_tokenizer_impl.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMaxFileBytes = std::int64_t{1} << 26;
constexpr int kMaxDepth = 8;

/// Types and shape of a post-processor, which is not applied.
void check_post_processor(const JsonValue& json, int depth = 0) {
  const std::string& type = json.text("type");
  if (type == "Sequence" && depth < kMaxDepth) {
    for (const JsonValue& one : json.only({"type", "processors"}).at("processors").elements())
      check_post_processor(one, depth + 1);
  } else if (type == "ByteLevel") {
    json.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    json.only({"type", "single", "pair", "special_tokens"});
    for (const JsonValue& part : json.at("single").elements())
      part.only({"SpecialToken", "Sequence"});
  } else {
    json.bad("post-processor '", type,
             "' is not supported; ByteLevel, TemplateProcessing and Sequence are");
  }
}

/// What one call of encode() works in.
struct EncodeRoom {
  TextBuffer normal[2];
  std::vector<AddedTokens::Section> sections, inner;
  PreTokenizer::Room dividing;
  PieceCache cache;
  Bpe::Room merging;
  std::vector<PieceToken> tokens;
};

/// The rooms that no call uses; a call takes one or makes one, so there are as many as threads.
class EncodeRooms {
 public:
  std::unique_ptr<EncodeRoom> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<EncodeRoom> room = std::move(free_.back());
        free_.pop_back();
        return room;
      }
    }
    return std::make_unique<EncodeRoom>();
  }
  void give_back(std::unique_ptr<EncodeRoom> room) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(room));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<EncodeRoom>> free_;
};

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(std::string name, const JsonValue& json)
      : name_(std::move(name)),
        normalizer_(json.has("normalizer") ? Normalizer(json.at("normalizer")) : Normalizer()),
        pre_tokenizer_(json.has("pre_tokenizer") ? PreTokenizer(json.at("pre_tokenizer"))
                                                 : PreTokenizer()),
        bpe_(read_bpe(json.at("model"), pre_tokenizer_.byte_level())),
        added_(read_added_tokens(json, bpe_.vocabulary(), normalizer_)),
        decoder_(json.has("decoder") ? Decoder(json.at("decoder")) : Decoder()),
        tokens_(tokens_by_id(json, bpe_.vocabulary(), added_.tokens)) {
    if (json.has("post_processor")) check_post_processor(json.at("post_processor"));
    for (const AddedToken& token : added_.tokens)
      if (token.special) special_.insert(token.id);
  }

  const std::string& name() const override { return name_; }
  std::int64_t vocabulary_size() const override { return std::ssize(tokens_); }
  EncodedText encode(std::string_view text, bool begins) const override;

  std::string decode(std::span<const std::int32_t> ids) const override {
    return decoder_.decode(texts_of(ids));
  }

  std::optional<std::int64_t> text_bytes(std::span<const std::int32_t> ids) const override {
    if (decoder_.missing()) return std::nullopt;
    std::vector<std::int32_t> kept;
    for (const std::int32_t id : ids) {
      if (id == bpe_.unknown()) return std::nullopt;
      if (!special_.contains(id)) kept.push_back(id);
    }
    return std::ssize(decoder_.decode(texts_of(kept), Decoder::Parts::keep));
  }

  std::optional<std::int32_t> token_id(std::string_view token) const override {
    for (const AddedToken& added : added_.tokens)
      if (added.content == token) return added.id;
    const auto found = bpe_.vocabulary().find(token);
    if (found == bpe_.vocabulary().end()) return std::nullopt;
    return found->second;
  }

 private:
  class Encoding;

  std::vector<std::string> texts_of(std::span<const std::int32_t> ids) const {
    std::vector<std::string> texts;
    texts.reserve(ids.size());
    for (const std::int32_t id : ids) {
      if (id < 0 || id >= std::ssize(tokens_) || !tokens_[static_cast<std::size_t>(id)]) {
        fail(ExitCode::data, "token ", texts.size(), " is ", id,
             ", which stands for nothing in the vocabulary of ", tokens_.size(), " of tokenizer '",
             name_, "'");
      }
      texts.push_back(*tokens_[static_cast<std::size_t>(id)]);
    }
    return texts;
  }

  const std::string name_;
  const Normalizer normalizer_;
  const PreTokenizer pre_tokenizer_;
  const Bpe bpe_;
  const AddedVocabulary added_;
  const Decoder decoder_;
  const std::vector<std::optional<std::string>> tokens_;  // by id
  std::unordered_set<std::int32_t> special_;
  mutable EncodeRooms rooms_;
};

/// One text on its way to tokens.
class JsonTokenizer::Encoding {
 public:
  Encoding(const JsonTokenizer& owner, EncodeRoom& room, bool begins)
      : owner_(owner), room_(room), begins_(begins) {
    const bool origins =
        begins || (owner.pre_tokenizer_.asks_for_origins() && !owner.normalizer_.empty());
    for (TextBuffer& buffer : room.normal) buffer.keeps_origins = origins;
    owner.pre_tokenizer_.prepare(room.dividing, begins);
  }

  EncodedText run(const TextPart& text) {
    room_.sections.clear();
    owner_.added_.before.divide(text.text, room_.sections);
    for (const auto& section : room_.sections) {
      const TextPart part = text.part(section.begin, section.end - section.begin);
      if (section.id < 0) {
        normalized(owner_.normalizer_.apply(part, room_.normal));
      } else {
        put(section.id, part.origin(0));
      }
    }
    return std::move(encoded_);
  }

 private:
  void normalized(const TextPart& text) {
    room_.inner.clear();
    owner_.added_.after.divide(text.text, room_.inner);
    for (const auto& section : room_.inner) {
      const TextPart part = text.part(section.begin, section.end - section.begin);
      if (section.id < 0) {
        owner_.pre_tokenizer_.divide(part, room_.dividing,
                                     [&](const TextPart& one) { piece(one); });
      } else {
        put(section.id, part.origin(0));
      }
    }
  }

  void piece(const TextPart& whole) {
    for (std::size_t at = 0; at < whole.text.size();) {
      const std::size_t end = owner_.bpe_.part_end(whole.text, at);
      piece_part(whole.part(at, end - at));
      at = end;
    }
  }

  void piece_part(const TextPart& part) {
    const bool cached = part.text.size() <= PieceCache::kMaxPieceBytes;
    if (cached) {
      if (const auto* found = room_.cache.find(part.text)) {
        put(part, found->tokens, found->unknown_characters);
        return;
      }
    }
    room_.tokens.clear();
    const std::int64_t unknown = owner_.bpe_.encode(part.text, room_.merging, room_.tokens);
    const bool drops = unknown > 0 && !owner_.bpe_.unknown();
    if (drops) {
      dropped(part, unknown);  // each time anew: pieces that are known do not say which
    } else if (cached) {
      room_.cache.put(part.text, room_.tokens, unknown);
    }
    put(part, room_.tokens, drops ? 0 : unknown);
  }

  void dropped(const TextPart& part, std::int64_t characters) {
    const Bpe::Room& room = room_.merging;
    if (encoded_.dropped_characters == 0) {
      encoded_.first_dropped = part.text.substr(room.unknown_at, room.unknown_bytes);
      if (begins_) encoded_.first_dropped_at = part.origin(room.unknown_at);
    }
    encoded_.dropped_characters += characters;
  }

  void put(const TextPart& part, std::span<const PieceToken> tokens, std::int64_t unknown) {
    std::size_t at = 0;
    for (const PieceToken& token : tokens) {
      put(token.id, begins_ ? part.origin(std::min(at, part.text.size() - 1)) : 0);
      at += static_cast<std::size_t>(token.bytes);
    }
    encoded_.unknown_characters += unknown;
  }

  void put(std::int32_t id, std::int64_t begin) {
    encoded_.tokens.push_back(id);
    if (!begins_) return;
    encoded_.begins.push_back(encoded_.begins.empty() ? begin
                                                      : std::max(begin, encoded_.begins.back()));
  }

  const JsonTokenizer& owner_;
  EncodeRoom& room_;
  const bool begins_;
  EncodedText encoded_;
};

EncodedText JsonTokenizer::encode(std::string_view text, bool begins) const {
  Utf8Repair repair;
  TextPart part{text};
  if (valid_utf8_bytes(text) < text.size()) {
    repair = repair_utf8(text, begins);
    part = {repair.text, 0, begins ? repair.origins.data() : nullptr};
  }
  std::unique_ptr<EncodeRoom> room = rooms_.take();
  EncodedText encoded = Encoding(*this, *room, begins).run(part);
  encoded.invalid_bytes = repair.invalid_bytes;
  rooms_.give_back(std::move(room));
  return encoded;
}

}  // namespace

std::unique_ptr<Tokenizer> make_json_tokenizer(const std::filesystem::path& path) {
  std::error_code ignored;
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(path, ignored)) {
    file /= "tokenizer.json";
    if (!std::filesystem::exists(file, ignored)) {
      fail(ExitCode::io, path.string(),
           ": holds no tokenizer.json; name the file of a SentencePiece "
           "model if there is one");
    }
  }
  const std::string text = read_file(file, kMaxFileBytes);
  const auto absolute = std::filesystem::absolute(path).lexically_normal();
  const auto last = absolute.has_filename() ? absolute : absolute.parent_path();
  const std::string name = concat("tokenizer.json:", last.filename().string(), ":", xxh3_128(text));
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    fail(ExitCode::data, file.string(), ": is no JSON, from byte ", error.byte, " on");
  } catch (const nlohmann::json::exception& error) {  // a number that no double holds
    fail(ExitCode::data, file.string(), ": ", error.what());
  }
  const JsonValue top(json, file.string() + ":");
  top.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
            "post_processor", "decoder", "model"});
  if (top.has("version") && top.text("version") != "1.0")
    top.at("version").bad("'", top.text("version"), "' is not supported; '1.0' is");
  for (const char* name_of_limit : {"truncation", "padding"}) {
    if (top.has(name_of_limit))
      top.at(name_of_limit).bad("is set, which would cut or fill up texts; set it to null");
  }
  return std::make_unique<JsonTokenizer>(name, top);
}

}  // namespace longhaul::runtime
