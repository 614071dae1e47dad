// The CUDA kernels of linear attention on a device.
#include <gtest/gtest.h>

#include "tests/support/gpu.h"
#include "tests/support/linear_contract.h"

namespace longhaul::attention {
namespace {

using test::LinearDevice;
using test::LinearOptions;

constexpr const char* kKinds[] = {"linear", "decay", "scalar", "vector"};

TEST(LinearCuda, MatchesTheTokenRecurrence) {
  LONGHAUL_NEEDS_GPU();
  const LinearDevice device{runtime::Stream::cuda("linear", 0)};
  const LinearOptions options{.device = &device};
  for (const char* kind : kKinds) {
    test::expect_any_rows(kind, options, {1, 7, 16, 63, 64, 65, 127, 257});
    test::expect_any_dims(kind, options, {1, 7, 65, 128, 192});
    test::expect_empty_sizes(kind, options);
    test::expect_bfloat16(kind, options);
  }
  for (const char* kind : {"decay", "scalar", "vector"}) {
    test::expect_any_gates(kind, options, 257);
    test::expect_constant_slopes(kind, options);
  }
  test::expect_whole_sequence(options);
  test::expect_slope_gradients_added(options);
}

TEST(LinearCuda, KeepsItsBits) {
  LONGHAUL_NEEDS_GPU();
  const LinearDevice device{runtime::Stream::cuda("linear", 0)};
  const LinearOptions options{.device = &device};
  for (const char* kind : kKinds) {
    test::expect_strides_change_no_bit(kind, options);
    test::expect_documents_as_alone(kind, options);
    test::expect_nan_stays_in_document(kind, options);
    test::expect_nothing_later_shows(kind, options);
    test::expect_later_nan_does_not_show(kind, options);
    test::expect_cuts_on_grid_bitwise(kind, options);
    test::expect_cuts_anywhere(kind, options);
  }
  for (const char* kind : {"scalar", "vector"})
    test::expect_no_gate_gradient_at_starts(kind, options);
}

TEST(LinearCuda, SummariesAndFolds) {
  LONGHAUL_NEEDS_GPU();
  const LinearDevice device{runtime::Stream::cuda("linear", 0)};
  const LinearOptions options{.device = &device};
  for (const char* kind : kKinds) {
    test::expect_folded_summaries(kind, options, {0, 1, 64, 200});
    test::expect_summaries_of_documents(kind, options);
    test::expect_fold_by_rows(kind, options);
  }
  test::expect_summaries_of_whole_sequences(options);
}

}  // namespace
}  // namespace longhaul::attention
