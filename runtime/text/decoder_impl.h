#pragma once
// Private to runtime/text: how a tokenizer.json makes text of tokens.

#include <string>
#include <variant>
#include <vector>

#include "runtime/text/json_impl.h"

namespace longhaul::runtime {

/// Steps of the types ByteLevel, Replace, ByteFallback, Fuse and Strip, each from a list of texts
/// to a list of texts. A missing decoder puts spaces between the tokens.
class Decoder {
 public:
  Decoder() = default;
  /// Throws Error(data) for other types and options.
  explicit Decoder(const JsonValue& json);
  /// What becomes of bytes that are no characters.
  enum class Parts : unsigned char { replace, keep };
  std::string decode(std::vector<std::string> tokens, Parts parts = Parts::replace) const;
  bool missing() const { return missing_; }

 private:
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Replace {
    std::string from, to;
  };
  struct Strip {
    std::string content;  // one character
    std::int64_t start = 0, stop = 0;
  };
  using Step = std::variant<ByteLevel, ByteFallback, Fuse, Replace, Strip>;
  using Texts = std::vector<std::string>;
  static Texts run(const ByteLevel& step, Texts texts, Parts parts);
  static Texts run(const ByteFallback& step, Texts texts, Parts parts);
  static Texts run(const Fuse& step, Texts texts, Parts parts);
  static Texts run(const Replace& step, Texts texts, Parts parts);
  static Texts run(const Strip& step, Texts texts, Parts parts);
  void add(const JsonValue& json, int depth);

  std::vector<Step> steps_;
  bool missing_ = true;
};

}  // namespace longhaul::runtime
