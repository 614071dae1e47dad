#include "launch/tokenize_inputs.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/token_files.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr std::size_t kNamed = 5;  // of what is left out for one reason

bool is_repository(const fs::path& name) {
  return name == ".git" || name == ".hg" || name == ".svn";
}

bool is_hdf5(const fs::path& path) {
  constexpr std::string_view kSignature("\x89HDF\r\n\x1a\n", 8);
  std::array<char, 8> head{};
  const runtime::FileHandle file = runtime::FileHandle::read(path);
  const std::size_t got = file.read_some(std::as_writable_bytes(std::span(head)));
  return std::string_view(head.data(), got) == kSignature;
}

/// A link to nothing, or round to itself.
bool is_dangling(const fs::path& path, const fs::file_status& status, const std::error_code& code) {
  std::error_code ignored;
  return fs::is_symlink(fs::symlink_status(path, ignored)) &&
         (status.type() == fs::file_type::not_found ||
          code == std::errc::too_many_symbolic_link_levels);
}

class Collector {
 public:
  TokenizeInputs inputs;

  void add(const fs::path& path) {
    std::error_code code;
    const fs::file_status status = fs::status(path, code);
    if (status.type() == fs::file_type::directory) return add_folder(path);
    if (status.type() == fs::file_type::regular && is_hdf5(path)) {
      fail(ExitCode::data, path.string(),
           ": is an HDF5 file, such as a corpus; tokenize takes text and files of token ids");
    }
    add_file(path, status, code);
  }

 private:
  void add_file(const fs::path& path, const fs::file_status& status, std::error_code code) {
    if (is_dangling(path, status, code)) {
      fail(ExitCode::io, path.string(), ": is a link to ", fs::read_symlink(path, code).string(),
           ", which does not exist");
    }
    if (status.type() == fs::file_type::not_found)
      fail(ExitCode::io, path.string(), ": does not exist");
    if (status.type() != fs::file_type::regular) {
      if (code) fail(ExitCode::io, path.string(), ": cannot read: ", code.message());
      fail(ExitCode::data, path.string(), ": is neither a file nor a folder");
    }
    if (path.extension() == ".idx" && runtime::is_megatron_index(path)) {
      add_megatron(path);
    } else if (path.extension() == ".bin") {
      const fs::path index = fs::path(path).replace_extension(".idx");
      if (fs::is_regular_file(index, code) && runtime::is_megatron_index(index)) {
        add_megatron(index);
      } else {
        take({path, runtime::is_llmc(path) ? InputKind::llmc : InputKind::text, 0}, {path});
      }
    } else {
      take({path, path.extension() == ".jsonl" ? InputKind::records : InputKind::text, 0}, {path});
    }
  }

  void add_megatron(const fs::path& index) {
    const fs::path data = runtime::megatron_data(index);
    std::error_code code;
    if (!fs::is_regular_file(data, code)) {
      fail(ExitCode::io, data.string(), ": is not there; ", index.string(),
           " is the index of a Megatron dataset, whose tokens it should hold");
    }
    if (datasets_.insert(index.lexically_normal()).second)
      take({index, InputKind::megatron, 0}, {index, data});
  }

  void take(TokenizeInput input, const std::vector<fs::path>& read) {
    for (const fs::path& path : read) {
      std::error_code code;
      const auto bytes = fs::file_size(path, code);
      if (code) fail(ExitCode::io, path.string(), ": cannot read: ", code.message());
      input.bytes += static_cast<std::int64_t>(bytes);
    }
    inputs.bytes += input.bytes;
    inputs.files.push_back(std::move(input));
  }

  void add_folder(const fs::path& folder) {
    std::vector<fs::path> found;
    std::error_code code;
    fs::recursive_directory_iterator at(folder, code);
    for (const fs::recursive_directory_iterator end; !code && at != end; at.increment(code)) {
      if (is_repository(at->path().filename())) {
        at.disable_recursion_pending();
        inputs.repositories.add(at->path().string());
      } else if (!fs::is_directory(at->symlink_status())) {
        found.push_back(at->path());
      }
    }
    if (code) fail(ExitCode::io, folder.string(), ": cannot list: ", code.message());
    std::ranges::sort(found, {}, [](const fs::path& file) { return file.string(); });
    for (const fs::path& path : found) {
      const fs::file_status status = fs::status(path, code);
      if (is_dangling(path, status, code)) {
        inputs.dangling_links.add(path.string());
      } else if (status.type() == fs::file_type::directory) {
        inputs.linked_folders.add(path.string());
      } else if (status.type() == fs::file_type::regular && is_hdf5(path)) {
        inputs.hdf5_files.add(path.string());
      } else if (fs::is_other(status)) {
        inputs.special_files.add(path.string());
      } else {
        add_file(path, status, code);
      }
    }
  }

  std::set<fs::path> datasets_;
};

}  // namespace

std::vector<fs::path> TokenizeInputs::paths() const {
  std::vector<fs::path> paths;
  for (const TokenizeInput& input : files) {
    paths.push_back(input.path);
    if (input.kind == InputKind::megatron) paths.push_back(runtime::megatron_data(input.path));
  }
  return paths;
}

void LeftOut::add(const std::string& name) {
  if (++count <= static_cast<std::int64_t>(kNamed)) first.push_back(name);
}

std::string LeftOut::text(const std::string& one, const std::string& several) const {
  if (count == 0) return "";
  std::string names;
  for (const std::string& name : first) names += (names.empty() ? "" : ", ") + name;
  if (count > std::ssize(first)) names += ", ...";
  return runtime::concat(count, " ", count == 1 ? one : several, " (", names, ")");
}

TokenizeInputs tokenize_inputs(const std::vector<fs::path>& paths) {
  Collector collector;
  for (const fs::path& path : paths) collector.add(path);
  if (collector.inputs.files.empty()) fail(ExitCode::data, paths[0].string(), ": holds no files");
  return std::move(collector.inputs);
}

}  // namespace longhaul::launch
