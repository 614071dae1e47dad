#pragma once
// Attention calls that benchmarks time: one local call, and the local work of one rank of many.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "attention/block_plan.h"
#include "launch/timing.h"
#include "parallel/prepared.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::launch {

/// The dtype asked for; without one float32 on the CPU, bfloat16 on CUDA. Throws Error(config).
runtime::DType bench_dtype(const std::optional<std::string>& text, bool cuda);
/// Where a benchmark computes. Throws Error(launch) without the device.
runtime::Stream bench_stream(bool cuda);
/// "NVIDIA H100 80GB HBM3", "2 threads of the CPU".
std::string bench_device(const runtime::Stream& stream);

/// Memory of a planned call: its temporaries, and its table on the device.
class CallMemory {
 public:
  CallMemory(std::int64_t scratch_bytes, std::span<const std::byte> table,
             const runtime::Stream& stream);
  const attention::BlockMemory& memory() const { return memory_; }

 private:
  runtime::Buffer scratch_, table_;
  attention::BlockMemory memory_;
};

/// Floating-point operations of attention, a multiply-add counted as two: 2 (D + E) a visible
/// (query, key) pair of a head forward (scores, output), 2 (3 D + 2 E) backward (scores again, dq
/// and dk; the weights' gradient and dv), D elements of a key and E of a value.
double attention_flops(parallel::Direction direction, std::int64_t pairs,
                       const parallel::Shapes& shapes);

/// What a rank of the context axis attends to under `mask`, which one call could, too: its queries
/// over all keys. A single rank's is the whole mask.
struct RankCall {
  parallel::Direction direction = parallel::Direction::forward;
  attention::Mask mask;
  parallel::Shapes shapes;
  parallel::Layout layout;
  int rank = 0;
  attention::Kernels kernels = attention::Kernels::automatic;  ///< on CUDA

  /// In row numbers of its queries and of all keys: in token order, or rank after rank where a
  /// rank's tokens are strided.
  std::vector<attention::Slice> bands() const;
  /// The shape of its one call.
  attention::BlockShape shape() const;
  attention::Scoring scoring() const;
  attention::BlockPlace place(const runtime::Stream& stream) const;
};

/// Its operands: random normal elements of a variance of 1, and of a backward what forward gave.
class CallTensors {
 public:
  CallTensors(const RankCall& call, const runtime::Stream& stream);

  /// One block call: its queries over all keys. Refers to this.
  Enqueue one_call() const;
  /// What training does of a call whose direction is backward: forward, delta, backward. Refers to
  /// this.
  Enqueue both_calls() const;
  /// The steps of a program of it, bound to its tensors; those that other ranks hold lie in the
  /// arena and are random too. Refers to this.
  Enqueue steps_of(parallel::Program program) const;

 private:
  runtime::Tensor random(std::int64_t rows, std::int64_t heads, std::int64_t width,
                         std::uint64_t number) const;
  runtime::Tensor zeros(std::int64_t rows, std::int64_t heads, std::int64_t width) const;

  const RankCall& call_;
  const runtime::Stream stream_;
  runtime::Tensor q_, k_, v_, dout_;   // all keys
  runtime::Tensor out_, lse_, delta_;  // of the rank's rows
  runtime::Tensor dq_, dk_, dv_;       // gradients of all keys
};

}  // namespace longhaul::launch
