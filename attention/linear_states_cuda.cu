// The state that each chunk of a run begins from, or backward the gradient of the one that it ends
// with; the states and the gradients that leave the run; the sums of its log decays.

#include "attention/linear_gates.cuh"

namespace longhaul::attention::detail {
namespace {

struct StatesCall {
  int heads, key_heads, dim, value_dim, value_tiles, dim_tiles;
  float scale;
  bool backward, causal;
  const LinearSegment* segments;
  Operand<const float> initial;
  Operand<float> final, transition;
  float* kept;
};

/// A block's tile of a state, value dims x key dims.
struct StateTile {
  int head, e, d;            // its first value dim and key dim
  int value_dims, key_dims;  // there are

  /// body(r, c, value dim, key dim) for the thread's sums that there are.
  template <class Body>
  __device__ void each(const Body& body) const {
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
#pragma unroll
      for (int c = 0; c < kSide; ++c) {
        const int row = sums_row() + r, column = sums_column() + c;
        if (row < value_dims && column < key_dims) body(r, c, e + row, d + column);
      }
    }
  }
  __device__ void keep(const StatesCall& call, const Sums& state, std::int64_t chunk) const {
    float* to = call.kept + (chunk * call.heads + head) * call.value_dim * call.dim;
    each([&](int r, int c, int row, int column) {
      to[std::int64_t{row} * call.dim + column] = state[r][c];
    });
  }
};

/// x, y <- the chunk's values, and its keys as the state after has them; backward dout, and the
/// queries as the state before has them. Ends with a barrier.
template <Gate gate, Border border, class T>
__device__ void load_chunk(const ChunkOf<T>& values, const ChunkOf<T>& keys,
                           const ChunkOf<float>& gates, const StateTile& at, float scale, Tile x,
                           Tile y, SharedGates& shared) {
  __syncthreads();  // the chunk before is no longer read
  values.load(x, at.e);
  if constexpr (gate == Gate::token)
    load_token_factors<border>(gates.data, gates.row_stride, gates.rows, shared);
  keys.load(y, at.d, [&](int t, float key) {
    return gate == Gate::token ? scale * key * shared.factor[t] : scale * key;
  });
  if constexpr (gate == Gate::channel) {
    scale_by_channels<border>(y, gates.data + at.d, gates.row_stride, gates.rows, at.key_dims,
                              shared);
  }
  __syncthreads();
}

/// state <- the state after the chunk in x, y.
template <Gate gate>
__device__ void step(Tile x, Tile y, const SharedGates& shared, Sums& state) {
  Sums sums;
  clear(sums);
  add_product<Read::down, Read::down>(x, y, sums);
#pragma unroll
  for (int c = 0; c < kSide; ++c) {
    const int column = gate == Gate::channel ? sums_column() + c : 0;
    TwoFloats decay{1.0f, 0.0f};
    if (gate != Gate::none) decay = {shared.high[column], shared.low[column]};
#pragma unroll
    for (int r = 0; r < kSide; ++r)
      state[r][c] = (gate == Gate::none ? state[r][c] : decay.of(state[r][c])) + sums[r][c];
  }
}

/// A block has a tile of a segment's state, whose elements move by themselves.
template <Gate gate, class T>
__global__ void __launch_bounds__(kTileThreads, 2)
    states_kernel(Operand<const T> values, Operand<const T> keys, Operand<const float> gates,
                  StatesCall call) {
  __shared__ SharedGates shared;
  const Tile x = shared_tile(0), y = shared_tile(1);
  const int state_tiles = call.value_tiles * call.dim_tiles,
            tile = static_cast<int>(blockIdx.x) % state_tiles;
  const LinearSegment segment = call.segments[static_cast<int>(blockIdx.x) / state_tiles];
  const int e = tile / call.dim_tiles * kEdge, d = tile % call.dim_tiles * kEdge;
  const StateTile at{static_cast<int>(blockIdx.y), e, d, extent(call.value_dim, e),
                     extent(call.dim, d)};
  const int key_head = at.head / (call.heads / call.key_heads);

  Sums state;
  clear(state);
  const bool enters = call.backward ? segment.rows.last : segment.rows.first;
  if (enters && call.initial.data != nullptr) {
    at.each([&](int r, int c, int row, int column) {
      state[r][c] = call.initial.head(at.head)[row * call.initial.row_stride + column];
    });
  }
  double log_sum = 0.0;
  // Without causality the whole sum enters, and leaves unchanged.
  const bool whole = call.kept != nullptr && !call.causal;
  const std::int64_t chunks = whole ? 0 : segment.rows.chunks();
  for (std::int64_t i = 0; i < chunks; ++i) {
    const std::int64_t index = call.backward ? chunks - 1 - i : i;
    LinearChunk chunk;
    chunk.begin = segment.rows.begin + index * kEdge;
    chunk.count = static_cast<int>(
        segment.rows.end - chunk.begin < kEdge ? segment.rows.end - chunk.begin : kEdge);
    if (call.kept != nullptr) at.keep(call, state, segment.first_chunk + index);
    const ChunkOf<T> value_rows(values, at.head, chunk, call.value_dim),
        key_rows(keys, key_head, chunk, call.dim);
    const ChunkOf<float> gate_rows(gates, at.head, chunk, call.dim);
    if (call.backward) {
      load_chunk<gate, Border::start>(value_rows, key_rows, gate_rows, at, call.scale, x, y,
                                      shared);
    } else {
      load_chunk<gate, Border::end>(value_rows, key_rows, gate_rows, at, 1.0f, x, y, shared);
    }
    step<gate>(x, y, shared, state);
    if (gate != Gate::none)
      log_sum += GateColumn::total(&shared.sums[0][gate == Gate::channel ? own_column() : 0]);
  }

  if (whole) at.keep(call, state, 0);
  const bool leaves = call.backward ? segment.rows.first : segment.rows.last;
  const bool end = call.backward ? segment.rows.begin == 0 : segment.rows.last;
  if (call.final.data != nullptr && end) {
    at.each([&](int r, int c, int row, int column) {
      call.final.head(at.head)[row * call.final.row_stride + column] = leaves ? state[r][c] : 0.0f;
    });
  }
  if (gate == Gate::none || call.transition.data == nullptr || e > 0 || own_part() > 0) return;
  if (gate == Gate::token ? d == 0 && own_column() == 0 : own_column() < at.key_dims) {
    const int column = gate == Gate::token ? 0 : d + own_column();
    call.transition.head(at.head)[column] = static_cast<float>(log_sum);
  }
}

Operand<float> output_or_none(const runtime::TensorView& view) {
  return view.data() == nullptr ? Operand<float>{nullptr, 0, 0} : output_operand(view);
}

}  // namespace

void cuda_linear_states(const LinearCall& call, const LinearStates& states,
                        const runtime::Stream& stream) {
  const LinearShape& s = call.shape;
  if (s.heads == 0) return;
  StatesCall told{};
  told.heads = static_cast<int>(s.heads);
  told.key_heads = static_cast<int>(s.key_heads);
  told.dim = static_cast<int>(s.dim);
  told.value_dim = static_cast<int>(s.value_dim);
  told.value_tiles = std::max(1, static_cast<int>(tiles(s.value_dim, kEdge)));
  told.dim_tiles = std::max(1, static_cast<int>(tiles(s.dim, kEdge)));
  told.scale = call.recurrence.scale;
  told.backward = states.backward;
  told.causal = call.recurrence.causal;
  told.segments = call.segments + states.first_segment;
  if (states.initial.data() != nullptr) told.initial = operand<float>(states.initial);
  told.final = output_or_none(states.final);
  told.transition = output_or_none(states.transition);
  told.kept = states.kept;
  const dim3 grid(static_cast<unsigned>(states.segments * told.value_tiles * told.dim_tiles),
                  static_cast<unsigned>(s.heads));
  with_gate(call.recurrence.decay, [&](auto gate) {
    with_activation(s.activation, [&](auto activation) {
      using T = decltype(activation);
      launch(states_kernel<decltype(gate)::value, T>, grid, kTileThreads, tiles_bytes(2), stream,
             operand<T>(states.values), operand<T>(states.backward ? call.inputs.q : call.inputs.k),
             gate_operand(call), told);
    });
  });
}

}  // namespace longhaul::attention::detail
