#pragma once
// Private to runtime/io/*.cpp: JSON of a known shape (RFC 8259), read from a file front to back.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"
#include "runtime/io/file.h"

namespace longhaul::runtime {

/// The caller asks for what must come next, and anything else is refused; so nesting is no deeper
/// than the caller's, and nothing is in memory but a piece of the file and what is asked for. Text
/// that is not UTF-8 is refused, numbers are whole and not negative, and who keeps an object's keys
/// compares them. Throws: Error(data) naming the file and the byte.
class JsonReader {
 public:
  /// Of the file's bytes [begin, end). `what` names them in errors: "header".
  JsonReader(const FileHandle& file, std::int64_t begin, std::int64_t end, std::string what);

  /// The next byte, which stays; -1 at the end.
  int next_byte();
  /// The same behind white space.
  int peek();
  /// Takes the byte if it comes next, white space before it or not.
  bool accept(char byte);
  void expect(char byte);
  /// A string of at most `most_bytes`, decoded.
  std::string string(std::int64_t most_bytes);
  /// A whole number from 0 to 2^63 - 1.
  std::int64_t integer();
  /// One value of any kind, nested at most 64 deep.
  void skip_value() { skip_value(0); }
  /// Only white space may be left.
  void expect_end();

  /// Calls entry(key) for each key of an object; it reads the value.
  template <class Entry>
  void object(std::int64_t most_key_bytes, const Entry& entry) {
    expect('{');
    if (accept('}')) return;
    do {
      std::string key = string(most_key_bytes);
      expect(':');
      entry(std::move(key));
    } while (accept(','));
    expect('}');
  }
  /// Calls item() for each item of an array; it reads the item.
  template <class Item>
  void array(const Item& item) {
    expect('[');
    if (accept(']')) return;
    do item();
    while (accept(','));
    expect(']');
  }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(ExitCode::data, file_.path().string(), ": ", what_, ", byte ", offset_ - begin_, ": ",
         parts...);
  }

 private:
  int take();
  void refill();
  void escaped(std::string& text);
  std::uint32_t hex4();
  void skip_value(int depth);
  void skip_scalar();
  std::string found();

  const FileHandle& file_;
  const std::int64_t begin_, end_;
  std::int64_t offset_;  // of the next byte, in the file
  const std::string what_;
  std::vector<std::byte> piece_;
  std::size_t at_ = 0, have_ = 0;  // of the piece
};

/// How messages show text from a file: quoted, escaped where it is no printable character of
/// ASCII, cut where it is long.
std::string printable(std::string_view text);

}  // namespace longhaul::runtime
