#pragma once
// Private to runtime/text: how a tokenizer.json divides a text into pieces, each of which is
// encoded by itself.

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/text/json_impl.h"
#include "runtime/text/pattern_impl.h"
#include "runtime/text/text_impl.h"

namespace longhaul::runtime {

/// Stages of the types Split, Digits, Metaspace and, as the last, ByteLevel; each divides the
/// pieces of the one before. None for a missing pre-tokenizer: the whole text is a piece.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// Throws Error(data) for other types and options.
  explicit PreTokenizer(const JsonValue& json);

  /// Whether pieces are bytes, for a vocabulary that spells bytes as characters.
  bool byte_level() const { return byte_level_; }
  /// Whether it matters that a text's first byte is the document's first, so that origins have to
  /// be kept through a normalizer.
  bool asks_for_origins() const { return asks_for_origins_; }

  struct Room {
    Pattern::Room matching;
    std::vector<TextBuffer> buffers;  // one a stage
  };
  void prepare(Room& room, bool keeps_origins) const;
  /// Calls `piece(TextPart)` for every piece in order, none of them empty. `room` is prepared.
  template <class Piece>
  void divide(const TextPart& text, Room& room, const Piece& piece) const {
    divide(0, text, room, piece);
  }

 private:
  struct Split {
    std::unique_ptr<Pattern> pattern;  // or, where there is none, a text
    std::string text;
    bool joins_gap = false;  // a match belongs to the gap before it; else it is a piece of its own
    std::optional<Pattern::Match> find(std::string_view in, std::size_t from, Room& room) const;
  };
  struct Digits {
    bool individual = false;
  };
  struct Metaspace {
    enum class Prepend { always, first, never };
    std::string replacement;
    Prepend prepend = Prepend::always;
    bool split = true;
  };
  struct PrefixSpace {};
  using Stage = std::variant<Split, Digits, Metaspace, PrefixSpace>;

  void add(const JsonValue& json, int depth);
  void add_split(const JsonValue& json);
  void add_metaspace(const JsonValue& json);
  void add_byte_level(const JsonValue& json);
  /// Text to divide, with the stage's own changes.
  TextPart change(const Stage& stage, const TextPart& text, TextBuffer& buffer) const;
  /// The end of the piece that begins at `at`.
  std::size_t piece_end(const Stage& stage, std::string_view text, std::size_t at, Room& room,
                        std::optional<Pattern::Match>& match) const;

  template <class Piece>
  void divide(std::size_t number, const TextPart& given, Room& room, const Piece& piece) const {
    if (given.text.empty()) return;
    if (number == stages_.size()) {
      piece(given);
      return;
    }
    const TextPart text = change(stages_[number], given, room.buffers[number]);
    std::optional<Pattern::Match> match;  // found, and not yet a piece
    for (std::size_t at = 0; at < text.text.size();) {
      const std::size_t end = piece_end(stages_[number], text.text, at, room, match);
      divide(number + 1, text.part(at, end - at), room, piece);
      at = end;
    }
  }

  std::vector<Stage> stages_;
  bool byte_level_ = false, asks_for_origins_ = false;
};

}  // namespace longhaul::runtime
