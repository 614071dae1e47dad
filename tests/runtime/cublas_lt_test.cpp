// What a CUDA build loads instead of linking is where it is looked for. Needs no device.
#include <gtest/gtest.h>

#ifdef LONGHAUL_HAS_CUDA
#include "runtime/ops/cublas_lt_impl.h"
#endif

namespace longhaul::runtime::ops {
namespace {

TEST(CublasLt, IsLoadedWithEveryFunctionOfTheBuildsVersion) {
#ifdef LONGHAUL_HAS_CUDA
  EXPECT_EQ(detail::cublas_lt().get_version() / 10000, std::size_t{CUBLAS_VER_MAJOR});
#else
  GTEST_SKIP() << "built without CUDA";
#endif
}

}  // namespace
}  // namespace longhaul::runtime::ops
