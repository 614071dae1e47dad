#pragma once
// Many block calls that depend on nothing of each other, as one piece of work: tiles begin at the
// first row and key of each, so the result of one does not depend on what is beside it.

#include <span>
#include <vector>

#include "attention/block_plan.h"

namespace longhaul::attention {

/// Sizes and bands of one of them.
struct BlockProblem {
  BlockShape shape;
  std::vector<Slice> bands;
};

/// Immutable, like the plans that it is made of. On the CPU one task of the stream: a call that is
/// large among them has all threads, small ones a thread each.
class BlockBatch {
 public:
  /// Throws Error as plan_block().
  BlockBatch(Pass pass, std::span<const BlockProblem> problems, const Scoring& scoring,
             const BlockPlace& place);

  std::int64_t scratch_bytes() const { return scratch_bytes_; }
  /// Of all of them together: BlockPlan::pretended_seconds().
  double pretended_seconds() const;
  /// What the device reads of the plans; empty on the CPU.
  std::span<const std::byte> table() const { return table_; }

  /// The tensors of each problem, in their order; no output of one overlaps another's tensors.
  void forward(std::vector<BlockForwardTensors> tensors, const BlockMemory& memory,
               const runtime::Stream& stream) const;
  void backward(std::vector<BlockBackwardTensors> tensors, const BlockMemory& memory,
                const runtime::Stream& stream) const;

 private:
  struct Calls;
  template <class Tensors>
  void run(std::vector<Tensors> tensors, const BlockMemory& memory,
           const runtime::Stream& stream) const;

  const BlockPlace place_;
  std::shared_ptr<const Calls> calls_;
  std::vector<std::byte> table_;
  std::int64_t scratch_bytes_ = 0;
};

}  // namespace longhaul::attention
