#pragma once
// What tests that need a GPU share. They compile in every build and skip visibly without a device.

#include <gtest/gtest.h>

#include <string>

namespace longhaul::test {

/// Why no CUDA test can run here; empty when one can.
std::string no_gpu_reason();

}  // namespace longhaul::test

/// First line of a test that needs a CUDA device.
#define LONGHAUL_NEEDS_GPU()                                                           \
  do {                                                                                 \
    if (const std::string reason = ::longhaul::test::no_gpu_reason(); !reason.empty()) \
      GTEST_SKIP() << reason;                                                          \
  } while (false)
