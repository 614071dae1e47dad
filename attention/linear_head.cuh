#pragma once
// What a thread block of the backward kernel of linear attention works on: a head of a chunk.
// Private to attention/.

#include "attention/linear_gates.cuh"

namespace longhaul::attention::detail {

/// Of the whole call.
template <class T>
struct GradientOperands {
  Operand<const T> q, k, v, dout;
  Operand<const float> gates;
  Operand<float> dq, dk, dv, dgates;
  const float *states, *dstates;  // kept
  double* chunk_gates;            // [chunk, head], Decay::head
};

/// Sums over tokens of what gates need, in shared memory.
struct SharedSums {
  float to_end[kEdge];                  // a token's factors to the chunk's end
  float reads[kEdge];                   // of the state before, by a token
  float writes[kEdge];                  // of a token, into the state after
  float overlap[kEdge / kPart][kEdge];  // of a key dim: state times its gradient
};

/// What a block works on: one head of its chunk.
template <Gate gate, class T>
struct HeadOfChunk {
  const ChunkCall& call;
  const GradientOperands<T>& at;
  LinearChunk chunk;
  std::int64_t index;
  int head, key_head;
  bool add;  // to dq and dk
  ChunkOf<T> q, k, v, dout;
  ChunkOf<float> gates;
  const float *state, *dstate;
  SharedGates& shared;
  SharedSums& sums;
  Tile a, b, p, x;

  __device__ HeadOfChunk(const ChunkCall& told, const GradientOperands<T>& operands,
                         std::int64_t chunk_index, int which, SharedGates& gates_memory,
                         SharedSums& sums_memory)
      : call(told),
        at(operands),
        chunk(told.chunks[chunk_index]),
        index(chunk_index),
        head(which),
        key_head(told.key_head(which)),
        add(which % (told.heads / told.key_heads) != 0),
        q(at.q, key_head, chunk, told.dim),
        k(at.k, key_head, chunk, told.dim),
        v(at.v, head, chunk, told.value_dim),
        dout(at.dout, head, chunk, told.value_dim),
        gates(at.gates, head, chunk, gate == Gate::channel ? told.dim : 1),
        state(told.state(at.states, chunk_index, head)),
        dstate(told.state(at.dstates, chunk_index, head)),
        shared(gates_memory),
        sums(sums_memory),
        a(shared_tile(0)),
        b(shared_tile(1)),
        p(shared_tile(2)),
        x(shared_tile(3)) {}

  __device__ void load_q(Tile to, int d) const {
    const float scale = call.scale;
    q.load(to, d, [scale](int, float value) { return scale * value; });
  }
  __device__ void load_state(Tile to, const float* from, int e, int d) const {
    load(to, from + std::int64_t{e} * call.dim + d, call.dim, extent(call.value_dim, e),
         extent(call.dim, d));
  }
  __device__ float* rows_of(const Operand<float>& of, int which) const {
    return of.head(which) + chunk.begin * of.row_stride;
  }
};

/// sums.overlap <- its parts of the tile of key dims from d on.
template <Gate gate, class T>
__device__ void overlaps(const HeadOfChunk<gate, T>& h, int d) {
  const int column = own_column();
  float sum = 0.0f;
  if (d + column < h.call.dim) {
    for (int e = own_part(); e < h.call.value_dim; e += kTileThreads / kEdge) {
      const std::int64_t i = std::int64_t{e} * h.call.dim + d + column;
      sum = fmaf(h.state[i], h.dstate[i], sum);
    }
  }
  h.sums.overlap[own_part()][column] = sum;
}
__device__ inline float overlap_of(const SharedSums& sums, int column) {
  return (sums.overlap[0][column] + sums.overlap[1][column]) +
         (sums.overlap[2][column] + sums.overlap[3][column]);
}

}  // namespace longhaul::attention::detail
