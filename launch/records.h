#pragma once
// Documents as JSON Lines, one a line, whose parts weigh differently in the loss.

#include <cstdint>
#include <filesystem>
#include <map>
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

/// In how many records a field that is not used was found, by its name.
using UnusedFields = std::map<std::string, std::int64_t>;

/// A record is an object of one of three forms:
///   {"text": T}                                      weighs 1
///   {"prompt": P, "completion": C}                   the prompt weighs 0, the completion 1
///   {"segments": [{"text": T, "weight": W}, ...]}    W from 0 to the largest float32
/// Its other fields are counted and not used. `place` begins errors. Throws Error(data) naming
/// place and field for what is no such record: no JSON (so also strings that are no UTF-8), a field
/// that is missing, there twice or of another type, two forms at once.
WeightedText parse_record(const std::string& line, const std::string& place, UnusedFields& unused);

/// The lines of a file of JSON Lines that are records, in order: all but those of white space
/// alone. Throws: Error(io) when the file cannot be read; Error(data) for a line beyond 2 GiB.
class RecordReader {
 public:
  explicit RecordReader(const std::filesystem::path& path);

  /// False at the end.
  bool next();
  const std::string& line() const { return line_; }
  /// "FILE:LINE" of the line.
  std::string place() const;
  std::int64_t line_number() const { return line_number_; }
  std::int64_t bytes_read() const { return bytes_read_; }

 private:
  bool next_line();

  runtime::FileHandle file_;
  std::string buffer_;     // read and not yet taken
  std::size_t begin_ = 0;  // of what is not yet taken
  std::string line_;
  std::int64_t line_number_ = 0, bytes_read_ = 0;
  bool at_end_ = false;
};

}  // namespace longhaul::launch
