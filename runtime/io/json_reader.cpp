#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/io/json_reader_impl.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{64} << 10;
constexpr int kMostNesting = 64;
constexpr std::size_t kMostScalarBytes = 64;
constexpr std::int64_t kMostSkippedBytes = std::int64_t{1} << 20;  // of one string

bool white(int byte) { return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t'; }
bool digit(int byte) { return byte >= '0' && byte <= '9'; }

/// Whether all of `text` is a number as JSON writes it.
bool number(std::string_view text) {
  const auto digits = [&] {
    const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
    text.remove_prefix(count);
    return count > 0;
  };
  if (text.starts_with('-')) text.remove_prefix(1);
  if (text.starts_with('0')) {
    text.remove_prefix(1);
  } else if (!digits()) {
    return false;
  }
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    if (!digits()) return false;
  }
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
    if (!digits()) return false;
  }
  return text.empty();
}

}  // namespace

JsonReader::JsonReader(const FileHandle& file, std::int64_t begin, std::int64_t end,
                       std::string what)
    : file_(file),
      begin_(begin),
      end_(end),
      offset_(begin),
      what_(std::move(what)),
      piece_(
          static_cast<std::size_t>(std::min(static_cast<std::int64_t>(kPieceBytes), end - begin))) {
}

void JsonReader::refill() {
  const auto rest = static_cast<std::size_t>(end_ - offset_);
  have_ = std::min(rest, piece_.size());
  at_ = 0;
  file_.read_at(offset_, std::span(piece_).first(have_));
}

int JsonReader::next_byte() {
  if (at_ == have_) {
    if (offset_ == end_) return -1;
    refill();
  }
  return std::to_integer<int>(piece_[at_]);
}

int JsonReader::take() {
  const int taken = next_byte();
  if (taken >= 0) {
    ++at_;
    ++offset_;
  }
  return taken;
}

int JsonReader::peek() {
  for (int next = next_byte();; next = next_byte()) {
    if (!white(next)) return next;
    const std::size_t begin = at_;
    while (at_ < have_ && white(std::to_integer<int>(piece_[at_]))) ++at_;
    offset_ += static_cast<std::int64_t>(at_ - begin);
  }
}

std::string JsonReader::found() {
  const int next = next_byte();
  if (next < 0) return concat("it ends");
  const auto text = static_cast<char>(next);
  return concat("found ", printable(std::string_view(&text, 1)));
}

bool JsonReader::accept(char byte) {
  if (peek() != static_cast<unsigned char>(byte)) return false;
  take();
  return true;
}

void JsonReader::expect(char byte) {
  if (!accept(byte)) refuse("expected '", byte, "'; ", found());
}

void JsonReader::expect_end() {
  if (peek() >= 0) refuse("expected nothing more; ", found());
}

std::string JsonReader::string(std::int64_t most_bytes) {
  if (peek() != '"') refuse("expected a string; ", found());
  take();
  std::string text;
  for (;;) {
    const int next = next_byte();
    if (next < 0x20) {
      refuse(next < 0 ? "the string that begins with " : "a control character in the string ",
             printable(text), next < 0 ? " has no end" : " is not escaped");
    }
    if (next == '"') break;
    if (next == '\\') {
      escaped(text);
    } else {
      text += static_cast<char>(take());
    }
    if (std::ssize(text) > most_bytes) {
      refuse("the string that begins with ", printable(text), " is longer than the ", most_bytes,
             " bytes that are read here");
    }
  }
  take();
  // An escape is whole characters, so it completes no bytes before it.
  if (valid_utf8_bytes(text) != text.size()) {
    refuse("the string that begins with ", printable(text), " is not UTF-8");
  }
  return text;
}

std::uint32_t JsonReader::hex4() {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const int next = take();
    const int lower = next | 0x20;
    if (!digit(next) && (lower < 'a' || lower > 'f')) refuse("\\u needs four hexadecimal digits");
    value = value << 4 | static_cast<std::uint32_t>(digit(next) ? next - '0' : lower - 'a' + 10);
  }
  return value;
}

/// What a backslash begins.
void JsonReader::escaped(std::string& text) {
  constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
  take();
  const int letter = take();
  if (letter != 'u') {
    const auto which =
        letter < 0 ? std::string_view::npos : kLetters.find(static_cast<char>(letter));
    if (which == std::string_view::npos) {
      refuse("the string that begins with ", printable(text), " has an unknown escape");
    }
    text += kMeanings[which];
    return;
  }
  std::uint32_t code = hex4();
  if (code >= 0xd800 && code < 0xe000) {
    const bool pair = code < 0xdc00 && take() == '\\' && take() == 'u';
    const std::uint32_t low = pair ? hex4() : 0;
    if (low < 0xdc00 || low >= 0xe000) {
      refuse("the string that begins with ", printable(text), " has half a surrogate pair");
    }
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(text, code);
}

std::int64_t JsonReader::integer() {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  if (!digit(peek())) refuse("expected a whole number that is not negative; ", found());
  const bool zero = next_byte() == '0';
  std::int64_t value = 0;
  for (int count = 0; digit(next_byte()); ++count) {
    if (zero && count > 0) refuse("a number begins with 0");
    const int units = take() - '0';
    if (value > (kMost - units) / 10) refuse("a number is above ", kMost);
    value = value * 10 + units;
  }
  const int next = next_byte();
  if (next == '.' || next == 'e' || next == 'E') {
    refuse("expected a whole number, written without point and exponent; ", found());
  }
  return value;
}

/// A value that is neither object nor array nor string.
void JsonReader::skip_scalar() {
  std::string text;
  for (int next = next_byte(); digit(next) || next == '-' || next == '+' || next == '.' ||
                               (next >= 'a' && next <= 'z') || next == 'E';
       next = next_byte()) {
    text += static_cast<char>(take());
    if (text.size() > kMostScalarBytes) break;
  }
  if (text.empty()) refuse("expected a value; ", found());
  if (!number(text) && text != "true" && text != "false" && text != "null") {
    refuse("expected a value; found ", printable(text));
  }
}

void JsonReader::skip_value(int depth) {
  if (depth > kMostNesting) refuse("is nested deeper than ", kMostNesting);
  const int next = peek();
  if (next == '"') {
    static_cast<void>(string(kMostSkippedBytes));
  } else if (next == '{') {
    object(kMostSkippedBytes, [&](const std::string&) { skip_value(depth + 1); });
  } else if (next == '[') {
    array([&] { skip_value(depth + 1); });
  } else {
    skip_scalar();
  }
}

std::string printable(std::string_view text) {
  constexpr std::size_t kMostBytes = 120;
  std::string shown = "'";
  for (const char byte : text.substr(0, kMostBytes)) {
    const auto code = static_cast<unsigned char>(byte);
    if (code < 0x20 || code >= 0x7f) {
      shown += fmt::format("\\x{:02x}", code);
    } else {
      shown += byte;
    }
  }
  return shown + (text.size() > kMostBytes ? "...'" : "'");
}

}  // namespace longhaul::runtime
