#pragma once
// Private to runtime/text: what a tokenizer.json does to a text before it divides it.

#include <string>
#include <variant>
#include <vector>

#include "runtime/text/json_impl.h"
#include "runtime/text/text_impl.h"

namespace longhaul::runtime {

/// Steps of the types NFC, Prepend and Replace, in order; none for a missing normalizer.
class Normalizer {
 public:
  Normalizer() = default;
  /// Throws Error(data) for other types and options.
  explicit Normalizer(const JsonValue& json);

  bool empty() const { return steps_.empty(); }
  /// The text, which may be `part` itself or lie in one of the buffers.
  TextPart apply(TextPart part, TextBuffer (&buffers)[2]) const;
  /// A text of its own.
  std::string apply(std::string_view text) const;

 private:
  struct Compose {};
  struct Prepend {
    std::string text;
  };
  struct Replace {
    std::string from, to;
  };
  void add(const JsonValue& json, int depth);

  std::vector<std::variant<Compose, Prepend, Replace>> steps_;
};

}  // namespace longhaul::runtime
