// Outputs of a run, chunk by chunk, from the state that each begins from.

#include "attention/linear_gates.cuh"

namespace longhaul::attention::detail {
namespace {

/// A block has a chunk and a head.
template <Gate gate, class T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<gate>)
    outputs_kernel(Operand<const T> q, Operand<const T> k, Operand<const T> v,
                   Operand<const float> gates, Operand<float> out, const float* states,
                   ChunkCall call) {
  __shared__ SharedGates shared;
  const Tile a = shared_tile(0), b = shared_tile(1), p = shared_tile(2);
  const std::int64_t index = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y), key_head = call.key_head(head);
  const LinearChunk chunk = call.chunks[index];
  const ChunkOf<T> q_rows(q, key_head, chunk, call.dim), k_rows(k, key_head, chunk, call.dim),
      v_rows(v, head, chunk, call.value_dim);
  const ChunkOf<float> gate_rows(gates, head, chunk, gate == Gate::channel ? call.dim : 1);
  const float* state = call.state(states, index, head);
  if (call.causal) load_weights<gate>(q_rows, k_rows, gate_rows, call.scale, a, b, p);
  if constexpr (gate == Gate::token) {
    load_token_factors<Border::start>(gate_rows.data, gate_rows.row_stride, chunk.count, shared);
  }
  for (int e = 0; e < call.value_dim; e += kEdge) {
    const int value_dims = extent(call.value_dim, e);
    Sums sums;
    clear(sums);
    for (int d = 0; d < call.dim; d += kEdge) {
      __syncthreads();
      q_rows.load(a, d, [&](int t, float x) {
        return gate == Gate::token ? call.scale * x * shared.factor[t] : call.scale * x;
      });
      load(b, state + std::int64_t{e} * call.dim + d, call.dim, value_dims, extent(call.dim, d));
      if constexpr (gate == Gate::channel) {
        scale_by_channels<Border::start>(a, gate_rows.data + d, gate_rows.row_stride, chunk.count,
                                         extent(call.dim, d), shared);
      }
      __syncthreads();
      add_product<Read::along, Read::along>(a, b, sums);
    }
    if (call.causal) {
      __syncthreads();
      v_rows.load(a, e);
      __syncthreads();
      add_product<Read::along, Read::down, Depths::up_to_row>(p, a, sums);
    }
    store(out.head(head) + chunk.begin * out.row_stride + e, out.row_stride, chunk.count,
          value_dims, 1.0f, sums);
  }
}

}  // namespace

void cuda_linear_outputs(const LinearCall& call, const float* states, runtime::TensorView out,
                         const runtime::Stream& stream) {
  const LinearShape& s = call.shape;
  if (call.chunk_count == 0 || s.heads == 0) return;
  const dim3 grid(static_cast<unsigned>(call.chunk_count), static_cast<unsigned>(s.heads));
  with_gate(call.recurrence.decay, [&](auto gate) {
    with_activation(s.activation, [&](auto activation) {
      using T = decltype(activation);
      launch(outputs_kernel<decltype(gate)::value, T>, grid, kTileThreads,
             cuda_linear_shared_bytes(LinearPass::sweep, call.recurrence), stream,
             operand<T>(call.inputs.q), operand<T>(call.inputs.k), operand<T>(call.inputs.v),
             gate_operand(call), output_operand(out), states, chunk_call(call));
    });
  });
}

}  // namespace longhaul::attention::detail
