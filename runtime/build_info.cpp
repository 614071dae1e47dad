#include "runtime/build_info.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <array>
#include <fstream>
#include <memory>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

constexpr const char* kExecutable = "/proc/self/exe";

std::string digest_of_executable() {
  std::ifstream file(kExecutable, std::ios::binary);
  if (!file)
    fail(ExitCode::io, kExecutable, ": cannot be read, so ranks cannot compare their programs");
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  LONGHAUL_CHECK(state && XXH3_64bits_reset(state.get()) == XXH_OK, "xxHash has no state");
  std::array<char, 1 << 16> block;
  do {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    XXH3_64bits_update(state.get(), block.data(), static_cast<std::size_t>(file.gcount()));
  } while (file);
  if (file.bad() || !file.eof()) fail(ExitCode::io, kExecutable, ": reading failed");
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
}

}  // namespace

const BuildInfo& build_info() {
  static const BuildInfo info = {LONGHAUL_VERSION,         LONGHAUL_COMMIT,
                                 LONGHAUL_COMPILER,        LONGHAUL_BUILD_TYPE,
                                 LONGHAUL_CUDA_BUILD != 0, LONGHAUL_CUDNN_BUILD != 0};
  return info;
}

const std::string& build_digest() {
  static const std::string digest = digest_of_executable();
  return digest;
}

std::string version_line() {
  const BuildInfo& info = build_info();
  return fmt::format("longhaul {} ({}{}, {}, {}, build {})", info.version,
                     info.commit.empty() ? "" : "commit " + info.commit + ", ", info.compiler,
                     info.build_type,
                     !info.cuda   ? "CPU only"
                     : info.cudnn ? "CUDA with cuDNN"
                                  : "CUDA without cuDNN",
                     build_digest());
}

}  // namespace longhaul::runtime
