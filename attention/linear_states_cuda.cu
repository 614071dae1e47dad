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

/// A block has a tile of a segment's state, value dims x key dims, whose elements move by
/// themselves.
template <Gate gate, class T>
__global__ void __launch_bounds__(kTileThreads, 2)
    states_kernel(Operand<const T> values, Operand<const T> keys, Operand<const float> gates,
                  StatesCall call) {
  __shared__ SharedGates shared;
  const Tile x = shared_tile(0), y = shared_tile(1);
  const int head = static_cast<int>(blockIdx.y), key_head = head / (call.heads / call.key_heads);
  const int item = static_cast<int>(blockIdx.x), tile = item % (call.value_tiles * call.dim_tiles);
  const LinearSegment segment = call.segments[item / (call.value_tiles * call.dim_tiles)];
  const int e = tile / call.dim_tiles * kEdge, d = tile % call.dim_tiles * kEdge;
  const int value_dims = extent(call.value_dim, e), dims = extent(call.dim, d);
  const bool enters = call.backward ? segment.rows.last : segment.rows.first;
  const auto each = [&](const auto& body) {
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
#pragma unroll
      for (int c = 0; c < kSide; ++c) {
        const int row = sums_row() + r, column = sums_column() + c;
        if (row < value_dims && column < dims) body(r, c, e + row, d + column);
      }
    }
  };
  const auto keep = [&](const Sums& state, std::int64_t chunk) {
    each([&](int r, int c, int row, int column) {
      call.kept[((chunk * call.heads + head) * call.value_dim + row) * call.dim + column] =
          state[r][c];
    });
  };

  Sums state;
  clear(state);
  if (enters && call.initial.data != nullptr) {
    each([&](int r, int c, int row, int column) {
      state[r][c] = call.initial.head(head)[row * call.initial.row_stride + column];
    });
  }
  double log_sum = 0.0;
  const std::int64_t chunks = segment.rows.chunks();
  for (std::int64_t step = 0; step < chunks; ++step) {
    const std::int64_t at = call.backward ? chunks - 1 - step : step;
    LinearChunk chunk;
    chunk.begin = segment.rows.begin + at * kEdge;
    chunk.count = static_cast<int>(
        segment.rows.end - chunk.begin < kEdge ? segment.rows.end - chunk.begin : kEdge);
    if (call.kept != nullptr && call.causal) keep(state, segment.first_chunk + at);
    const ChunkOf<T> value_rows(values, head, chunk, call.value_dim),
        key_rows(keys, key_head, chunk, call.dim);
    const float scale = call.backward ? call.scale : 1.0f;
    __syncthreads();  // the chunk before is no longer read
    value_rows.load(x, e);
    if constexpr (gate == Gate::token) {
      const float* from = gates.head(head) + chunk.begin * gates.row_stride;
      if (call.backward) {
        load_token_factors<Border::start>(from, gates.row_stride, chunk.count, shared);
      } else {
        load_token_factors<Border::end>(from, gates.row_stride, chunk.count, shared);
      }
      key_rows.load(y, d, [&](int t, float key) { return scale * key * shared.factor[t]; });
    } else {
      key_rows.load(y, d, [&](int, float key) { return scale * key; });
    }
    if constexpr (gate == Gate::channel) {
      const float* from = gates.head(head) + chunk.begin * gates.row_stride + d;
      if (call.backward) {
        scale_by_channels<Border::start>(y, from, gates.row_stride, chunk.count, dims, shared);
      } else {
        scale_by_channels<Border::end>(y, from, gates.row_stride, chunk.count, dims, shared);
      }
    }
    __syncthreads();
    Sums sums;
    clear(sums);
    add_product<Read::down, Read::down>(x, y, sums);
#pragma unroll
    for (int c = 0; c < kSide; ++c) {
      const int column = gate == Gate::channel ? sums_column() + c : 0;
      TwoFloats decay{1.0f, 0.0f};
      if (gate != Gate::none) decay = {shared.high[column], shared.low[column]};
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        state[r][c] = (gate == Gate::none ? state[r][c] : decay.of(state[r][c])) + sums[r][c];
      }
    }
    if (gate != Gate::none)
      log_sum += GateColumn::total(&shared.sums[0][gate == Gate::channel ? own_column() : 0]);
  }

  if (call.kept != nullptr && !call.causal) keep(state, 0);
  const bool leaves = call.backward ? segment.rows.first : segment.rows.last;
  const bool end = call.backward ? segment.rows.begin == 0 : segment.rows.last;
  if (call.final.data != nullptr && end) {
    each([&](int r, int c, int row, int column) {
      call.final.head(head)[row * call.final.row_stride + column] = leaves ? state[r][c] : 0.0f;
    });
  }
  if (gate == Gate::none || call.transition.data == nullptr || e > 0 || own_part() > 0) return;
  if (gate == Gate::token ? d == 0 && own_column() == 0 : own_column() < dims) {
    const int column = gate == Gate::token ? 0 : d + own_column();
    call.transition.head(head)[column] = static_cast<float>(log_sum);
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
