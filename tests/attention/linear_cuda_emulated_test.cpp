// The source of the CUDA kernels of linear attention, compiled for the host
// (support/cuda_emulation): the same arithmetic, tiles and barriers, without a device.
#include <gtest/gtest.h>

#include "attention/linear_impl.h"
#include "tests/support/linear_contract.h"

namespace longhaul::attention {
namespace {

using test::LinearDevice;
using test::LinearOptions;

constexpr const char* kKinds[] = {"linear", "decay", "scalar", "vector"};

class LinearCudaEmulated : public testing::Test {
 protected:
  const LinearDevice device_{runtime::Stream::cpu("emulated"), detail::make_cuda_linear_plan,
                             detail::cuda_fold};
  const LinearOptions options_{.device = &device_};
};

TEST_F(LinearCudaEmulated, MatchesTheTokenRecurrence) {
  for (const char* kind : kKinds) {
    test::expect_any_rows(kind, options_, {1, 7, 64, 65, 130});
    test::expect_any_dims(kind, options_, {1, 65, 128});
    test::expect_empty_sizes(kind, options_);
    test::expect_bfloat16(kind, options_);
  }
  test::expect_whole_sequence(options_);
  test::expect_slope_gradients_added(options_);
}

TEST_F(LinearCudaEmulated, AnyGates) {
  for (const char* kind : {"decay", "scalar", "vector"}) {
    test::expect_any_gates(kind, options_, 150);
    test::expect_constant_slopes(kind, options_);
  }
}

TEST_F(LinearCudaEmulated, StridesChangeNoBit) {
  for (const char* kind : kKinds) test::expect_strides_change_no_bit(kind, options_);
}

TEST_F(LinearCudaEmulated, DocumentsAreApart) {
  for (const char* kind : kKinds) {
    test::expect_documents_as_alone(kind, options_);
    test::expect_nan_stays_in_document(kind, options_);
  }
  for (const char* kind : {"scalar", "vector"})
    test::expect_no_gate_gradient_at_starts(kind, options_);
}

TEST_F(LinearCudaEmulated, NothingLaterShowsInABit) {
  for (const char* kind : kKinds) {
    test::expect_nothing_later_shows(kind, options_, 7);
    test::expect_later_nan_does_not_show(kind, options_);
  }
}

TEST_F(LinearCudaEmulated, CutsAreOneRun) {
  for (const char* kind : kKinds) {
    test::expect_cuts_on_grid_bitwise(kind, options_);
    test::expect_cuts_anywhere(kind, options_);
  }
}

TEST_F(LinearCudaEmulated, SummariesAndFolds) {
  for (const char* kind : kKinds) {
    test::expect_folded_summaries(kind, options_, {0, 1, 64, 130});
    test::expect_summaries_of_documents(kind, options_);
    test::expect_fold_by_rows(kind, options_);
  }
  test::expect_summaries_of_whole_sequences(options_);
}

}  // namespace
}  // namespace longhaul::attention
