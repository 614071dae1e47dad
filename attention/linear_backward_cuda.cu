// Gradients of a run, chunk by chunk, from the state that each begins from and the gradient of the
// one that it ends with. A block has a chunk and a key head, whose heads it takes in their order:
// dq and dk are summed in it. The gradient of a gate sums everything that spans its token, from
// before it to it or later, and subtracts nothing.

#include "attention/linear_channels.cuh"

namespace longhaul::attention::detail {
namespace {

/// dv = P^T dout + K~ dS, K~ the keys as the state after has them.
template <Gate gate, class T>
__device__ void value_gradients(const HeadOfChunk<gate, T>& h) {
  for (int e = 0; e < h.call.value_dim; e += kEdge) {
    Sums sums;
    clear(sums);
    for (int d = 0; d < h.call.dim; d += kEdge) {
      __syncthreads();
      h.k.load(h.a, d, [&](int t, float key) {
        return gate == Gate::token ? key * h.sums.to_end[t] : key;
      });
      h.load_state(h.b, h.dstate, e, d);
      if constexpr (gate == Gate::channel) {
        scale_by_channels<Border::end>(h.a, h.gates.data + d, h.gates.row_stride, h.chunk.count,
                                       extent(h.call.dim, d), h.shared);
      }
      __syncthreads();
      add_product<Read::along, Read::along>(h.a, h.b, sums);
    }
    if (h.call.causal) {
      __syncthreads();
      h.dout.load(h.a, e);
      __syncthreads();
      add_product<Read::down, Read::down, Depths::from_row>(h.p, h.a, sums);
    }
    store(h.rows_of(h.at.dv, h.head) + e, h.at.dv.row_stride, h.chunk.count,
          extent(h.call.value_dim, e), 1.0f, sums);
  }
}

/// x <- dP, the gradient of P, lower, in a token's gates times their decays; p <- then dP P, whose
/// sums are gradients of those decays' logs.
template <Gate gate, class T>
__device__ void weight_gradients(const HeadOfChunk<gate, T>& h) {
  Sums sums;
  clear(sums);
  for (int e = 0; e < h.call.value_dim; e += kEdge) {
    __syncthreads();
    h.dout.load(h.a, e);
    h.v.load(h.b, e);
    __syncthreads();
    add_product<Read::along, Read::along>(h.a, h.b, sums);
  }
  __syncthreads();
  if constexpr (gate == Gate::token) {
    load_fades(h.x, h.gates.data, h.gates.row_stride, h.gates.rows);
    __syncthreads();
    store(h.p, sums, [&](int i, int j, float dp) { return j < i ? dp * h.p.at(i, j) : 0.0f; });
    store(h.x, sums, [&](int i, int j, float dp) { return j <= i ? dp * h.x.at(i, j) : 0.0f; });
  } else {
    store(h.x, sums, [](int i, int j, float dp) { return j <= i ? dp : 0.0f; });
  }
  __syncthreads();
}

/// sums[i] += rows . others over the thread's rows and the tile's columns.
__device__ inline void add_row_products(Tile rows, const Sums& others, float* sums) {
#pragma unroll
  for (int r = 0; r < kSide; ++r) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kSide; ++c)
      sum = fmaf(rows.at(sums_row() + r, sums_column() + c), others[r][c], sum);
#pragma unroll
    for (int lanes = kEdge / kSide / 2; lanes > 0; lanes /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    if (sums_column() == 0) sums[sums_row() + r] += sum;
  }
}

/// dq and dk of the tile of key dims from d on, from what the states alone give of them.
template <Gate gate, class T>
__device__ void key_gradients(const HeadOfChunk<gate, T>& h, int d, Sums& dq, Sums& dk) {
  __syncthreads();
  h.load_q(h.a, d);
  h.k.load(h.b, d);
  if constexpr (gate == Gate::token) {
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
#pragma unroll
      for (int c = 0; c < kSide; ++c) {
        dq[r][c] *= h.shared.factor[sums_row() + r];
        dk[r][c] *= h.sums.to_end[sums_row() + r];
      }
    }
  }
  __syncthreads();
  if constexpr (gate == Gate::token) {
    add_row_products(h.a, dq, h.sums.reads);
    add_row_products(h.b, dk, h.sums.writes);
  }
  if (h.call.causal) {
    add_product<Read::along, Read::down, Depths::up_to_row>(h.x, h.b, dq);
    add_product<Read::down, Read::down, Depths::from_row>(h.x, h.a, dk);
  }
  const int dims = extent(h.call.dim, d);
  store(h.rows_of(h.at.dq, h.key_head) + d, h.at.dq.row_stride, h.chunk.count, dims, h.call.scale,
        dq, h.add);
  store(h.rows_of(h.at.dk, h.key_head) + d, h.at.dk.row_stride, h.chunk.count, dims, 1.0f, dk,
        h.add);
}

/// The gradients of a token's gates. `overlap`: of the thread's column, over all its tiles.
template <class T>
__device__ void token_gate_gradients(const HeadOfChunk<Gate::token, T>& h, float overlap) {
  const int t = thread();
  __syncthreads();
  if (t < kEdge) {
    h.sums.overlap[0][t] = overlap;
    float sum = 0.0f;  // of key t and any query from i on
    for (int i = kEdge - 1; i > t; --i) h.p.at(i, t) = sum += h.p.at(i, t);
  }
  __syncthreads();
  float gradient = 0.0f;
  if (t < h.chunk.count && !(t == 0 && h.chunk.starts != 0)) {
    float state = 0.0f, spans = 0.0f, read = 0.0f, written = 0.0f;
    for (int i = 0; i < kEdge; ++i) state += h.sums.overlap[0][i];
    for (int j = 0; j < t; ++j) spans += h.p.at(t, j);
    for (int i = kEdge - 1; i >= t; --i) read += h.sums.reads[i];
    for (int j = 0; j < t; ++j) written += h.sums.writes[j];
    gradient = spans + read + written + TwoFloats{h.shared.high[0], h.shared.low[0]}.of(state);
  }
  if (h.at.chunk_gates == nullptr) {
    if (t < h.chunk.count) h.rows_of(h.at.dgates, h.head)[t * h.at.dgates.row_stride] = gradient;
    return;
  }
  if (t < kEdge) h.sums.overlap[1][t] = gradient;
  __syncthreads();
  if (t > 0) return;
  double sum = 0.0;
  for (int i = 0; i < h.chunk.count; ++i) sum += static_cast<double>(h.sums.overlap[1][i]);
  h.at.chunk_gates[h.index * h.call.heads + h.head] = sum;
}

template <Gate gate, class T>
__device__ void head_gradients(const HeadOfChunk<gate, T>& h) {
  if (h.call.causal) load_weights<gate>(h.q, h.k, h.gates, h.call.scale, h.a, h.b, h.p);
  if constexpr (gate == Gate::token) {
    load_token_factors<Border::end>(h.gates.data, h.gates.row_stride, h.chunk.count, h.shared);
    if (thread() < kEdge) {
      h.sums.to_end[thread()] = h.shared.factor[thread()];
      h.sums.reads[thread()] = h.sums.writes[thread()] = 0.0f;
    }
    __syncthreads();
    load_token_factors<Border::start>(h.gates.data, h.gates.row_stride, h.chunk.count, h.shared);
  }
  value_gradients(h);
  if (h.call.causal) weight_gradients(h);
  float overlap = 0.0f;
  for (int d = 0; d < h.call.dim; d += kEdge) {
    Sums dq, dk;
    clear(dq);
    clear(dk);
    for (int e = 0; e < h.call.value_dim; e += kEdge) {
      __syncthreads();
      h.dout.load(h.a, e);
      h.load_state(h.b, h.state, e, d);
      __syncthreads();
      add_product<Read::along, Read::down>(h.a, h.b, dq);
      __syncthreads();
      h.v.load(h.a, e);
      h.load_state(h.b, h.dstate, e, d);
      __syncthreads();
      add_product<Read::along, Read::down>(h.a, h.b, dk);
    }
    if constexpr (gate != Gate::none) {
      __syncthreads();
      overlaps(h, d);
    }
    if constexpr (gate == Gate::channel) {
      channel_gradients(h, d, dq, dk);
    } else {
      key_gradients(h, d, dq, dk);
    }
    if constexpr (gate == Gate::token) overlap += overlap_of(h.sums, own_column());
  }
  if constexpr (gate == Gate::token) token_gate_gradients(h, overlap);
}

template <Gate gate, class T>
__global__ void __launch_bounds__(kTileThreads, kBlocks<gate>)
    gradients_kernel(GradientOperands<T> operands, ChunkCall call) {
  __shared__ SharedGates gates;
  __shared__ SharedSums sums;
  const int group = call.heads / call.key_heads, key_head = static_cast<int>(blockIdx.y);
  for (int head = key_head * group; head < (key_head + 1) * group; ++head) {
    __syncthreads();
    head_gradients(HeadOfChunk<gate, T>(call, operands, blockIdx.x, head, gates, sums));
  }
}

/// dslopes += the sum over the chunks, in their order. A thread a head.
__global__ void __launch_bounds__(kTileThreads)
    add_slopes_kernel(const double* gates, std::int64_t chunks, int heads, Operand<float> dslopes) {
  const int head = static_cast<int>(blockIdx.x) * kTileThreads + thread();
  if (head >= heads) return;
  double sum = 0.0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += gates[chunk * heads + head];
  *dslopes.head(head) += static_cast<float>(sum);
}

}  // namespace

std::int64_t cuda_linear_shared_bytes(LinearPass pass, const Recurrence& recurrence) {
  if (pass == LinearPass::sweep) return tiles_bytes(3);
  if (pass != LinearPass::sweep_backward) return tiles_bytes(2);
  return tiles_bytes(recurrence.decay == Decay::vector ? 6 : 4);
}

void cuda_linear_gradients(const LinearCall& call, const SweepBackwardTensors& t,
                           const float* states, const float* dstates, double* gates,
                           const runtime::Stream& stream) {
  const LinearShape& s = call.shape;
  if (call.chunk_count == 0 || s.heads == 0) return;
  const Decay decay = call.recurrence.decay;
  const bool own_gates = decay == Decay::scalar || decay == Decay::vector;
  const dim3 grid(static_cast<unsigned>(call.chunk_count), static_cast<unsigned>(s.key_heads));
  with_gate(decay, [&](auto gate) {
    with_activation(s.activation, [&](auto activation) {
      using T = decltype(activation);
      const GradientOperands<T> operands{
          operand<T>(call.inputs.q),
          operand<T>(call.inputs.k),
          operand<T>(call.inputs.v),
          operand<T>(t.dout),
          gate_operand(call),
          output_operand(t.dq),
          output_operand(t.dk),
          output_operand(t.dv),
          own_gates ? output_operand(t.dlog_decay) : Operand<float>{nullptr, 0, 0},
          states,
          dstates,
          decay == Decay::head ? gates : nullptr};
      launch(gradients_kernel<decltype(gate)::value, T>, grid, kTileThreads,
             cuda_linear_shared_bytes(LinearPass::sweep_backward, call.recurrence), stream,
             operands, chunk_call(call));
    });
  });
  if (decay != Decay::head || t.dlog_decay.data() == nullptr) return;
  launch(add_slopes_kernel, dim3(tiles(s.heads, kTileThreads)), kTileThreads, 0, stream,
         static_cast<const double*>(gates), call.chunk_count, static_cast<int>(s.heads),
         output_operand(t.dlog_decay));
}

}  // namespace longhaul::attention::detail
