#pragma once
// A TOML text as plain data with positions. toml++ stays behind toml_document.cpp: it costs seconds
// a file.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace longhaul::runtime {

/// 1-based; columns count characters, not bytes.
struct TextPosition {
  std::uint32_t line = 1;
  std::uint32_t column = 1;
};

/// A value that no key takes: its name for messages ("a date").
struct OtherToml {
  std::string what;
};

struct TomlValue;
using TomlArray = std::vector<TomlValue>;
struct TomlEntry;
using TomlTable = std::vector<TomlEntry>;  ///< in order of position

struct TomlValue {
  std::variant<std::int64_t, double, bool, std::string, TomlArray, TomlTable, OtherToml> value;
  TextPosition position;
};

struct TomlEntry {
  std::string key;
  TextPosition key_position;
  TomlValue value;
};

/// A key at the top: a section with entries, or a value where a section belongs.
struct TomlSection {
  std::string name;
  TextPosition position;  ///< of its header, or of the key
  std::optional<TomlValue> stray_value;
  TomlTable entries;
};

struct TomlSyntaxError {
  std::string message;
  TextPosition position;
};

/// The sections in order of position, or the first syntax error.
std::variant<std::vector<TomlSection>, TomlSyntaxError> parse_toml(const std::string& text);
/// One value; nullopt when the text is no TOML value, and why not in `wrong`.
std::optional<TomlValue> parse_toml_value(const std::string& text, std::string* wrong = nullptr);
/// How a syntax error about a number that is too large ends.
inline constexpr const char* kBeyond64Bits = "is not representable in 64 bits";
/// `text` as a TOML basic string, with quotes.
std::string quote_toml(const std::string& text);
/// A double as a TOML float that reads back to the same bits.
std::string toml_number(double value);

/// "a string", "an integer", ...
std::string describe_type(const TomlValue& value);
/// The value as it would be written in TOML, shortened for messages.
std::string describe_value(const TomlValue& value);

}  // namespace longhaul::runtime
