#pragma once
// What the CUDA kernels of linear attention are told, and the functions that launch them; the plan
// (linear_cuda.cu) calls these. A call is three steps: the states (or their gradients) that each
// chunk begins from, all tiles of a state at once, chunk after chunk; then what every chunk gives
// by itself, all chunks at once.

#include "attention/linear.h"
#include "attention/linear_segments_impl.h"

namespace longhaul::attention::detail {

/// Entries of a plan's table.
struct LinearChunk {
  std::int64_t begin = 0;
  std::int32_t count = 0;   ///< tokens, 1 to kLinearChunk
  std::int32_t starts = 0;  ///< its first row is a document's first
};
struct LinearSegment {
  Segment rows{};
  std::int64_t first_chunk = 0;
};

/// What all kernels of a call know.
struct LinearCall {
  LinearShape shape{};
  Recurrence recurrence{};
  LinearInputs inputs{};
  const LinearChunk* chunks = nullptr;  ///< on the device
  const LinearSegment* segments = nullptr;
  std::int64_t chunk_count = 0;

  std::int64_t state_elements() const { return shape.heads * shape.value_dim * shape.dim; }
  /// States kept for the chunks: one each, [H,E,D], or the one that every token reads.
  std::int64_t kept_states() const { return recurrence.causal ? chunk_count : 1; }
};

/// A walk over the chunks of some segments, in order or backward.
struct LinearStates {
  bool backward = false;            ///< of gradients, by q and dout in place of k and v
  runtime::ConstTensorView values;  ///< v or dout
  std::int64_t first_segment = 0, segments = 0;
  runtime::ConstTensorView initial;  ///< no data: zero
  runtime::TensorView final;         ///< no data: not wanted; zero where none leaves the run
  runtime::TensorView transition;    ///< no data: not wanted; of one segment
  float* kept = nullptr;             ///< before each chunk's step; not causal: what enters
};
void cuda_linear_states(const LinearCall& call, const LinearStates& states,
                        const runtime::Stream& stream);

/// out, from the kept states.
void cuda_linear_outputs(const LinearCall& call, const float* states, runtime::TensorView out,
                         const runtime::Stream& stream);

/// All gradients but the state's. `gates` takes the sum of the gradient of the log decay of each
/// chunk and head, Decay::head.
void cuda_linear_gradients(const LinearCall& call, const SweepBackwardTensors& tensors,
                           const float* states, const float* dstates, double* gates,
                           const runtime::Stream& stream);
/// Shared memory of a thread block, in bytes.
std::int64_t cuda_linear_shared_bytes(LinearPass pass, const Recurrence& recurrence);

}  // namespace longhaul::attention::detail
