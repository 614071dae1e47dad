#include "runtime/io/disk.h"

#include <sys/statvfs.h>

#include <array>
#include <cerrno>
#include <string>
#include <system_error>

#include "runtime/error.h"
#include "runtime/io/file.h"

namespace longhaul::runtime {

void prove_writable(const std::filesystem::path& folder) {
  const std::filesystem::path probe =
      (folder.empty() ? "." : folder) / concat(".longhaul-probe-", unique_suffix());
  const Cleanup remove([&] {
    std::error_code ignored;  // it may never have been made
    std::filesystem::remove(probe, ignored);
  });
  // What is made must hold something: a full disk still has room for names.
  const std::array<std::byte, 4096> contents{};
  FileHandle file = FileHandle::create(probe);
  file.write_all(contents);
  file.sync();
  file.close();
}

std::optional<std::int64_t> free_bytes(const std::filesystem::path& folder) {
  struct statvfs status {};
  if (::statvfs(folder.empty() ? "." : folder.c_str(), &status) != 0) return std::nullopt;
  // Some network file systems have no such number, and say 0 of everything.
  if (status.f_blocks == 0) return std::nullopt;
  return static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_frsize);
}

bool says_no_space(std::string_view error) {
  for (const int code : {ENOSPC, EDQUOT}) {
    if (error.find(std::generic_category().message(code)) != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace longhaul::runtime
