#include "runtime/io/output_file.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/disk.h"
#include "runtime/io/file.h"

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

/// What is behind the path's links; the last of them may point at nothing yet.
fs::path follow_links(const fs::path& named) {
  constexpr int kMostLinks = 40;  // as in the kernel
  fs::path path = named;
  std::error_code code;
  for (int links = 0; fs::is_symlink(fs::symlink_status(path, code)); ++links) {
    if (links == kMostLinks)
      fail(ExitCode::usage, named.string(), ": its symbolic links lead in a circle");
    const fs::path to = fs::read_symlink(path, code);
    if (code) fail(ExitCode::io, path.string(), ": cannot read the link: ", code.message());
    path = path.parent_path() / to;
  }
  return path;
}

const char* kind_name(fs::file_type type) {
  switch (type) {
    case fs::file_type::directory:
      return "a folder";
    case fs::file_type::block:
    case fs::file_type::character:
      return "a device";
    case fs::file_type::fifo:
      return "a named pipe (FIFO)";
    case fs::file_type::socket:
      return "a socket";
    case fs::file_type::symlink:
      return "a symbolic link by now";
    default:
      return "no regular file";
  }
}

/// False where the file system has no rename that replaces nothing.
bool rename_to_free_name(const fs::path& from, const fs::path& to, int& error) {
  constexpr unsigned kNoReplace = 1;  // RENAME_NOREPLACE
  error = 0;
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kNoReplace) != 0)
    error = errno;
  return error != EINVAL && error != ENOSYS && error != ENOTSUP;
}

}  // namespace

OutputFile::OutputFile(fs::path named, Existing existing)
    : named_(std::move(named)), existing_(existing) {
  std::error_code code;
  judge(fs::status(named_, code));  // a pipe of this process has a link that leads to no name
  target_ = follow_links(named_);
  const fs::path folder = folder_of(target_);
  const fs::file_status status = fs::status(folder, code);
  if (!fs::is_directory(status)) {
    fail(ExitCode::io, named_.string(), ": there is no folder ", folder.string(),
         fs::exists(status) ? ", only a file of this name" : "");
  }
  try {
    prove_writable(folder);
  } catch (const Error& error) {
    fail(ExitCode::io, named_.string(), ": its folder cannot be written to: ", error.what());
  }
}

void OutputFile::judge(fs::file_status status) const {
  if (!fs::exists(status)) return;
  if (!fs::is_regular_file(status)) {
    fail(ExitCode::usage, named_.string(), ": is ", kind_name(status.type()),
         ", which is never replaced; name a file");
  }
  if (existing_ == Existing::refuse) {
    fail(ExitCode::usage, named_.string(),
         ": exists already; name another file, or give --force to replace it");
  }
}

fs::path OutputFile::beside(const std::string& what) const {
  return target_.parent_path() /
         concat(target_.filename().string(), ".", what, "-", unique_suffix());
}

void OutputFile::publish(const fs::path& finished) const {
  std::error_code code;
  judge(fs::symlink_status(target_, code));
  int error = 0;
  if (existing_ == Existing::replace || !rename_to_free_name(finished, target_, error)) {
    error = ::rename(finished.c_str(), target_.c_str()) == 0 ? 0 : errno;
  }
  if (error == EEXIST) judge(fs::symlink_status(target_, code));
  if (error != 0) {
    fail(ExitCode::io, named_.string(),
         ": cannot rename into place: ", std::generic_category().message(error));
  }
  sync_folder(folder_of(target_));
}

void require_no_input(const fs::path& output, const char* option,
                      const std::vector<fs::path>& inputs) {
  for (const fs::path& input : inputs) {
    std::error_code ignored;  // what does not exist is equivalent to nothing
    if (!fs::equivalent(output, input, ignored)) continue;
    fail(ExitCode::usage, option, " ", output.string(), ": is among the inputs (", input.string(),
         "); give another file");
  }
}

void write_output(const OutputFile& output, const std::string& contents) {
  const fs::path unfinished = output.beside("tmp");
  Cleanup remove([&] {
    std::error_code ignored;  // it may never have been made
    fs::remove(unfinished, ignored);
  });
  write_new_file(unfinished, contents);
  output.publish(unfinished);
  remove.dismiss();
}

}  // namespace longhaul::runtime
