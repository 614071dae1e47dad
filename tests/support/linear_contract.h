#pragma once
// What attention/linear.h promises of any device's kernels, a property a function, for one kind of
// recurrence. Kernels are run as `options` say.

#include <string>

#include "tests/support/linear_case.h"

namespace longhaul::test {

/// out and all gradients are the token recurrence's: lengths around blocks and chunks.
void expect_any_rows(const std::string& kind, const LinearOptions& options,
                     const std::vector<std::int64_t>& rows);
/// The same over dims and value dims.
void expect_any_dims(const std::string& kind, const LinearOptions& options,
                     const std::vector<std::int64_t>& dims);
/// Nothing to do, in each size.
void expect_empty_sizes(const std::string& kind, const LinearOptions& options);
/// Every kind of gates of linear_case.h.
void expect_any_gates(const std::string& kind, const LinearOptions& options, std::int64_t rows);
/// The factor of a chunk under this slope rounds by 2.4e-8 in float32, every time alike.
void expect_constant_slopes(const std::string& kind, const LinearOptions& options);
/// The gradient of a constant decay is added to.
void expect_slope_gradients_added(const LinearOptions& options);
void expect_bfloat16(const std::string& kind, const LinearOptions& options);
/// Every token reads the sum over all of them; kind linear.
void expect_whole_sequence(const LinearOptions& options);
/// Strides and threads change no bit, nor does another run.
void expect_strides_change_no_bit(const std::string& kind, const LinearOptions& options);

/// Each document has the bits that it has alone.
void expect_documents_as_alone(const std::string& kind, const LinearOptions& options);
/// One of nothing but NaN leaves the others' bits.
void expect_nan_stays_in_document(const std::string& kind, const LinearOptions& options);
void expect_no_gate_gradient_at_starts(const std::string& kind, const LinearOptions& options);
/// Changing a token (every `step`-th) leaves the bits of earlier outputs; under the sum rule also
/// of what later tokens' gradients are made of.
void expect_nothing_later_shows(const std::string& kind, const LinearOptions& options,
                                std::int64_t step = 1);
/// Nor does NaN of later tokens; under the sum rule, of earlier ones in those gradients.
void expect_later_nan_does_not_show(const std::string& kind, const LinearOptions& options);
/// A run cut on the grid of chunks is one run bit for bit.
void expect_cuts_on_grid_bitwise(const std::string& kind, const LinearOptions& options);
/// A run cut anywhere is one run.
void expect_cuts_anywhere(const std::string& kind, const LinearOptions& options);

/// Summaries, folded, are the states of the sweep.
void expect_folded_summaries(const std::string& kind, const LinearOptions& options,
                             const std::vector<std::int64_t>& rows);
/// With documents: of the last one, backward of the first.
void expect_summaries_of_documents(const std::string& kind, const LinearOptions& options);
void expect_summaries_of_whole_sequences(const LinearOptions& options);
/// Rows, heads, strides and threads of a fold's views change no bit.
void expect_fold_by_rows(const std::string& kind, const LinearOptions& options);

}  // namespace longhaul::test
