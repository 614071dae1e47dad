#pragma once
// A file that a user has named for a result: what may be replaced, and how.

#include <filesystem>
#include <string>
#include <vector>

namespace longhaul::runtime {

/// What becomes of a regular file that is there already.
enum class Existing : unsigned char {
  refuse,   ///< its name is given to nothing else
  replace,  ///< the result takes its place
};

/// Made before the work whose result it is, so that an hour is not spent on what cannot be written.
/// The result is written beside its place under another name, which it changes in one step. Of a
/// symbolic link the target is written, and the link stays. Devices, named pipes, sockets and
/// folders are never replaced.
class OutputFile {
 public:
  /// Throws: Error(usage) when something that may not be replaced has the name; Error(io) when its
  /// folder is missing or cannot be written to.
  OutputFile(std::filesystem::path named, Existing existing);

  /// As the user wrote it.
  const std::filesystem::path& named() const { return named_; }
  /// The file itself, behind all links.
  const std::filesystem::path& target() const { return target_; }
  /// A free name in the target's folder, "TARGET.WHAT-SUFFIX".
  std::filesystem::path beside(const std::string& what) const;
  /// The complete and synced file `finished`, which beside() named, becomes the target. What has
  /// the name by now is judged again. Throws: Error(usage), as before; Error(io).
  void publish(const std::filesystem::path& finished) const;

 private:
  void judge(std::filesystem::file_status status) const;

  std::filesystem::path named_, target_;
  Existing existing_;
};

/// Throws Error(usage) when an output is, behind all links, a file that is read; empty names are
/// none. `option` is what names the output on the command line.
void require_no_input(const std::filesystem::path& output, const char* option,
                      const std::vector<std::filesystem::path>& inputs);

/// Writes all of `contents` as an output.
void write_output(const OutputFile& output, const std::string& contents);

}  // namespace longhaul::runtime
