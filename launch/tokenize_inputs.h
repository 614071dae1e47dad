#pragma once
// Which files `longhaul tokenize` makes documents of, and what it leaves out.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace longhaul::launch {

/// What was left out for one reason: all counted, the first few named.
struct LeftOut {
  std::int64_t count = 0;
  std::vector<std::string> first;

  void add(const std::string& name);
  /// "3 dangling links (a, b, c)"; "" for none.
  std::string text(const std::string& one, const std::string& several) const;
};

enum class InputKind : unsigned char {
  text,      ///< one document
  records,   ///< a file named .jsonl, a document a line (records.h)
  megatron,  ///< an index named .idx of a Megatron dataset, with the .bin beside it
  llmc       ///< a file named .bin of llm.c's tokens (runtime/io/token_files.h)
};
constexpr bool holds_tokens(InputKind kind) {
  return kind == InputKind::megatron || kind == InputKind::llmc;
}

struct TokenizeInput {
  std::filesystem::path path;
  InputKind kind = InputKind::text;
  std::int64_t bytes = 0;  ///< of all files that it is
};

struct TokenizeInputs {
  std::vector<TokenizeInput> files;  ///< a Megatron dataset is one, by its index
  std::int64_t bytes = 0;            ///< of all files

  /// All files that are read.
  std::vector<std::filesystem::path> paths() const;

  LeftOut dangling_links;
  LeftOut linked_folders;  ///< not entered: they could lead back to where we are
  LeftOut repositories;    ///< .git, .hg, .svn
  LeftOut hdf5_files;      ///< earlier corpora and the like, which are no text
  LeftOut special_files;   ///< named pipes, sockets, devices
};

/// The files among `paths`, and below those that are folders in the order of path names (byte
/// order). Found in a folder, what TokenizeInputs names is left out; a path that was asked for is
/// taken or refused. Throws: Error(io) for what does not exist or cannot be listed; Error(data) for
/// what is neither file nor folder, for an HDF5 file asked for, and without any file. Either file
/// of a Megatron dataset stands for both, which are taken once.
TokenizeInputs tokenize_inputs(const std::vector<std::filesystem::path>& paths);

}  // namespace longhaul::launch
