#pragma once
// Documents as JSON Lines, one a line, whose parts weigh differently in the loss.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/io/file.h"

namespace longhaul::launch {

/// A text whose parts, end to end, have weights.
struct WeightedText {
  struct Part {
    std::int64_t end = 0;  ///< byte of the text behind it
    float weight = 1;
  };
  std::string text;
  std::vector<Part> parts;

  void append(const std::string& part, float weight);
  /// What each token weighs: the weight of the part in which it begins, `begins` being bytes of the
  /// text; behind the end, that of the last part.
  std::vector<float> weights(std::span<const std::int64_t> begins) const;
};

/// The records of a file of JSON Lines, in order. A record is an object of one of three forms:
///   {"text": T}                                      weighs 1
///   {"prompt": P, "completion": C}                   the prompt weighs 0, the completion 1
///   {"segments": [{"text": T, "weight": W}, ...]}    W from 0 to the largest float32
/// Its other fields are counted by name and not used. Lines of white space alone are skipped.
/// Throws: Error(io) when the file cannot be read; Error(data) naming file, line and field for a
/// line that is no such record: no JSON (so also strings that are no UTF-8), a field that is
/// missing, there twice or of another type, two forms at once.
class RecordReader {
 public:
  explicit RecordReader(const std::filesystem::path& path);

  /// Nothing at the end.
  std::optional<WeightedText> next();
  /// "FILE:LINE" of the last record.
  std::string place() const;
  std::int64_t bytes_read() const { return bytes_read_; }
  /// Records in which a field that is not used was found, by its name.
  const std::map<std::string, std::int64_t>& unused_fields() const { return unused_fields_; }

 private:
  bool next_line();

  runtime::FileHandle file_;
  std::string buffer_;     // read and not yet taken
  std::size_t begin_ = 0;  // of what is not yet taken
  std::string line_;
  std::int64_t line_number_ = 0, bytes_read_ = 0;
  bool at_end_ = false;
  std::map<std::string, std::int64_t> unused_fields_;
};

}  // namespace longhaul::launch
