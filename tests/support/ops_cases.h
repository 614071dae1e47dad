#pragma once
// What the operations of runtime/ops owe on a CUDA stream, against definitions in double. The same
// bodies run on a device, and on the host over the kernels' source (cuda_emulation).

#include <ostream>
#include <span>

#include "runtime/stream.h"

namespace longhaul::test {

struct OpsCase {
  const char* name;
  void (*run)(const runtime::Stream& stream);  ///< reports by gtest's expectations
  friend void PrintTo(const OpsCase& c, std::ostream* out) { *out << c.name; }
};

std::span<const OpsCase> rowwise_cases();
std::span<const OpsCase> activation_cases();
std::span<const OpsCase> loss_and_update_cases();
std::span<const OpsCase> matmul_cases();

}  // namespace longhaul::test
