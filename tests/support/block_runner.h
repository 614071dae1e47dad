#pragma once
// Runs an AttentionCase through the block contract of any device, by way of copies.

#include <functional>
#include <string>
#include <vector>

#include "attention/block_plan.h"
#include "tests/support/attention_case.h"

namespace longhaul::test {

/// The calls of the block contract and the stream that they take.
struct BlockDevice {
  runtime::Stream stream;
  decltype(&attention::block_forward) forward = attention::block_forward;
  decltype(&attention::block_backward) backward = attention::block_backward;
  decltype(&attention::block_delta) delta = attention::block_delta;
  decltype(&attention::merge) merge = attention::merge;
  decltype(&attention::apply_sinks) apply_sinks = attention::apply_sinks;
  decltype(&attention::sinks_backward) sinks_backward = attention::sinks_backward;
};

struct BlockOptions {
  std::vector<std::int64_t>
      key_cuts{};  ///< key views end here (write, then add); empty for one call
  bool merged =
      false;  ///< forward parts are merged by merge() (sigmoid: added) in place of Mode::add
  bool strided = false;  ///< heads outermost, gaps between rows
};

/// The shape that views of a call show, wider rows included.
attention::BlockShape shape_shown(runtime::ConstTensorView q, runtime::ConstTensorView k,
                                  runtime::ConstTensorView v);

/// Outputs hold NaN before.
AttentionResult run_block(const BlockDevice& device, const AttentionCase& which,
                          const BlockOptions& options = {});

struct NamedCase {
  std::string name;
  AttentionCase which;
  BlockOptions options{};
};
/// The cases that every device's kernels must pass: nasty lengths and dims, head groups, every kind
/// of band. `quick` leaves out the large ones.
std::vector<NamedCase> block_cases(bool quick);

/// Runs them all: against the reference, bitwise repeatable, strided views give the same bits.
void expect_block_contract(const BlockDevice& device, bool quick);

}  // namespace longhaul::test
