#pragma once
// Which program this is: for --version, the metrics header, checkpoints and the check that all
// ranks run the same one.

#include <cstdint>
#include <string>

namespace longhaul::runtime {

struct BuildInfo {
  std::string version;     ///< "0.1.0"
  std::string commit;      ///< of the source when the build was configured; empty if unknown
  std::string compiler;    ///< "GNU 12.2.0"
  std::string build_type;  ///< "Release"
  bool cuda = false;       ///< the CUDA backend is built in
  bool cudnn = false;      ///< and cuDNN's attention
};

const BuildInfo& build_info();

/// XXH3-64 of the running executable's bytes, as 16 hex digits: two ranks with equal digests run
/// the same program. Read once, then remembered. Throws Error(io) when the executable cannot be
/// read.
const std::string& build_digest();

/// "longhaul 0.1.0 (commit 1234abcd, GNU 12.2.0, Release, CPU only, build 0123456789abcdef)".
std::string version_line();

}  // namespace longhaul::runtime
