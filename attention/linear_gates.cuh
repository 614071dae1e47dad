#pragma once
// Decays in the CUDA kernels of linear attention. Factors to a chunk's borders are exponentials of
// float64 sums that begin where the factor does; those between two tokens of a chunk whose decay is
// a vector are products of single tokens'. No exponent is positive. Private to attention/.

#include <type_traits>

#include "attention/linear_tile.cuh"

namespace longhaul::attention::detail {

/// What a log decay belongs to. Decay::head is a token's whose rows are all one row.
enum class Gate { none, token, channel };

/// Calls body(std::integral_constant<Gate, ...>()).
template <class Body>
void with_gate(Decay decay, const Body& body) {
  if (decay == Decay::none) return body(std::integral_constant<Gate, Gate::none>());
  if (decay == Decay::vector) return body(std::integral_constant<Gate, Gate::channel>());
  body(std::integral_constant<Gate, Gate::token>());
}
inline Operand<const float> gate_operand(const LinearCall& call) {
  if (call.recurrence.decay == Decay::none) return {nullptr, 0, 0};
  Operand<const float> gates = operand<float>(call.inputs.log_decay);
  if (call.recurrence.decay == Decay::head) gates.row_stride = 0;
  return gates;
}

/// exp of the sum of log decays over a chunk or a run, in two floats. One would repeat its rounding
/// error chunk after chunk where the slopes are constant.
struct TwoFloats {
  float high, low;
  __device__ float of(float x) const { return fmaf(high, x, low * x); }
};
__device__ inline TwoFloats two_floats(double log) {
  const double value = exp(log);
  const float high = static_cast<float>(value);
  return {high, static_cast<float>(value - static_cast<double>(high))};
}

enum class Border { start, end };

/// Of one column of gates, a token's or a channel's: sums of this thread's part of the tokens, and
/// by way of the other parts' (in shared memory) factors to a border of the chunk.
class GateColumn {
 public:
  /// `from`: of the chunk's first token. Publishes the part's sum; wait for all threads then.
  __device__ GateColumn(const float* from, std::int64_t row_stride, int tokens, int part,
                        double* sums)
      : part_(part) {
    double sum = 0.0;
#pragma unroll
    for (int u = 0; u < kPart; ++u) {
      const int t = part * kPart + u;
      logs_[u] = t < tokens ? from[t * row_stride] : 0.0f;
      sum += static_cast<double>(logs_[u]);
    }
    sums[part * kEdge] = sum;
  }
  /// of(token, factor): from the chunk's start through the token, or after the token to its end.
  template <Border border, class Of>
  __device__ void factors(const double* sums, const Of& of) const {
    double sum = 0.0;
    if (border == Border::start) {
      for (int p = 0; p < part_; ++p) sum += sums[p * kEdge];
#pragma unroll
      for (int u = 0; u < kPart; ++u) {
        sum += static_cast<double>(logs_[u]);
        of(part_ * kPart + u, expf(static_cast<float>(sum)));
      }
    } else {
      for (int p = kEdge / kPart - 1; p > part_; --p) sum += sums[p * kEdge];
#pragma unroll
      for (int u = kPart - 1; u >= 0; --u) {
        of(part_ * kPart + u, expf(static_cast<float>(sum)));
        sum += static_cast<double>(logs_[u]);
      }
    }
  }
  /// Over the chunk.
  __device__ static double total(const double* sums) {
    double sum = 0.0;
    for (int p = 0; p < kEdge / kPart; ++p) sum += sums[p * kEdge];
    return sum;
  }

 private:
  int part_;
  float logs_[kPart];
};

/// What one chunk's gates are in shared memory. A token's: column 0 alone.
struct SharedGates {
  double sums[kEdge / kPart][kEdge];
  float factor[kEdge];            // of each token, to one border
  float high[kEdge], low[kEdge];  // of the chunk
};

/// shared.factor, high and low of a token's gates. All threads; ends with a barrier.
template <Border border>
__device__ void load_token_factors(const float* from, std::int64_t row_stride, int tokens,
                                   SharedGates& shared) {
  const bool mine = own_column() == 0;
  const GateColumn column(from, row_stride, mine ? tokens : 0, own_part(),
                          &shared.sums[0][own_column()]);
  __syncthreads();
  if (mine) {
    column.factors<border>(&shared.sums[0][0], [&](int t, float x) { shared.factor[t] = x; });
    if (own_part() == 0) {
      const TwoFloats decay = two_floats(GateColumn::total(&shared.sums[0][0]));
      shared.high[0] = decay.high;
      shared.low[0] = decay.low;
    }
  }
  __syncthreads();
}

/// tile *= each token and channel's factor to the border. `from`: of the tile's first channel. All
/// threads, after the tile was stored, which needs no barrier; ends with one.
template <Border border>
__device__ void scale_by_channels(Tile tile, const float* from, std::int64_t row_stride, int tokens,
                                  int columns, SharedGates& shared) {
  const int channel = own_column();
  double* sums = &shared.sums[0][channel];
  const GateColumn column(from + channel, row_stride, channel < columns ? tokens : 0, own_part(),
                          sums);
  __syncthreads();
  column.factors<border>(sums, [&](int t, float x) { tile.at(t, channel) *= x; });
  if (own_part() == 0) {
    const TwoFloats decay = two_floats(GateColumn::total(sums));
    shared.high[channel] = decay.high;
    shared.low[channel] = decay.low;
  }
  __syncthreads();
}

/// tile[i][j] <- exp of the sum of a token's gates after j through i, j <= i.
__device__ inline void load_fades(Tile tile, const float* from, std::int64_t row_stride,
                                  int tokens) {
  const int j = own_column(), first = own_part() * kPart;
  const auto gate = [&](int t) {
    return t < tokens ? static_cast<double>(from[t * row_stride]) : 0.0;
  };
  double sum = 0.0;
  for (int t = j + 1; t < first; ++t) sum += gate(t);
  for (int i = first; i < first + kPart; ++i) {
    if (i > j) sum += gate(i);
    if (i >= j) tile.at(i, j) = expf(static_cast<float>(sum));
  }
}

/// tile <- exp of each token and channel's gate; 1 where there is none.
__device__ inline void load_alphas(Tile tile, const float* from, std::int64_t row_stride, int rows,
                                   int columns) {
  const int column = own_column();
  for (int row = own_part(); row < kEdge; row += kTileThreads / kEdge) {
    const bool inside = row < rows && column < columns;
    tile.at(row, column) = inside ? expf(from[row * row_stride + column]) : 1.0f;
  }
}

/// weights[u] += sum over the tile's channels of q_i k_j times the decay from j to i, for the
/// thread's key j = own_column() and the queries i >= j of its part.
__device__ inline void add_channel_weights(Tile q, Tile k, Tile alpha, float (&weights)[kPart]) {
  const int j = own_column(), first = own_part() * kPart;
  if (j >= first + kPart) return;
  const auto times = [](float4& x, const float4& y) {
    x.x *= y.x;
    x.y *= y.y;
    x.z *= y.z;
    x.w *= y.w;
  };
#pragma unroll 1
  for (int d = 0; d < kEdge; d += 4) {
    const auto four = [d](Tile tile, int row) {
      return *reinterpret_cast<const float4*>(tile.row(row) + d);
    };
    float4 key = four(k, j);
    for (int t = j + 1; t < first; ++t) times(key, four(alpha, t));
#pragma unroll
    for (int u = 0; u < kPart; ++u) {
      const int i = first + u;
      if (i < j) continue;
      if (i > j) times(key, four(alpha, i));
      const float4 query = four(q, i);
      weights[u] = fmaf(query.x, key.x, weights[u]);
      weights[u] = fmaf(query.y, key.y, weights[u]);
      weights[u] = fmaf(query.z, key.z, weights[u]);
      weights[u] = fmaf(query.w, key.w, weights[u]);
    }
  }
}

/// One chunk and head of a kernel's operands.
template <class T>
struct ChunkOf {
  const T* data;
  std::int64_t row_stride;
  int rows, width;
  __device__ ChunkOf(const Operand<const T>& of, int head, const LinearChunk& chunk, int dim)
      : data(of.head(head) + chunk.begin * of.row_stride),
        row_stride(of.row_stride),
        rows(chunk.count),
        width(dim) {}
  /// The tile of columns from `first` on.
  template <class Of>
  __device__ void load(Tile tile, int first, const Of& of) const {
    detail::load(tile, data + first, row_stride, rows, extent(width, first), of);
  }
  __device__ void load(Tile tile, int first) const {
    load(tile, first, [](int, float x) { return x; });
  }
};

/// p <- P_ij = sum_d scale q_id k_jd exp(g_id - g_jd), j <= i, zero elsewhere; overwrites a and b.
/// All threads; ends with a barrier.
template <Gate gate, class T>
__device__ void load_weights(const ChunkOf<T>& q, const ChunkOf<T>& k, const ChunkOf<float>& gates,
                             float scale, Tile a, Tile b, Tile p) {
  const auto scaled = [scale](int, float x) { return scale * x; };
  if constexpr (gate == Gate::channel) {
    float weights[kPart] = {};
    for (int d = 0; d < q.width; d += kEdge) {
      __syncthreads();
      q.load(a, d, scaled);
      k.load(b, d);
      load_alphas(p, gates.data + d, gates.row_stride, gates.rows, extent(gates.width, d));
      __syncthreads();
      add_channel_weights(a, b, p, weights);
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < kPart; ++u) {
      const int i = own_part() * kPart + u, j = own_column();
      p.at(i, j) = j <= i ? weights[u] : 0.0f;
    }
  } else {
    Sums sums;
    clear(sums);
    for (int d = 0; d < q.width; d += kEdge) {
      __syncthreads();
      q.load(a, d, scaled);
      k.load(b, d);
      __syncthreads();
      add_product<Read::along, Read::along>(a, b, sums);
    }
    __syncthreads();
    if (gate == Gate::token) {
      load_fades(p, gates.data, gates.row_stride, gates.rows);
      __syncthreads();
    }
    store(p, sums, [&](int i, int j, float sum) {
      if (j > i) return 0.0f;
      return gate == Gate::token ? sum * p.at(i, j) : sum;
    });
  }
  __syncthreads();
}

/// Thread blocks that should fit onto a multiprocessor; more would spill registers.
template <Gate gate>
constexpr int kBlocks = gate == Gate::channel ? 1 : 2;

/// What the kernels that give all chunks at once know of the call.
struct ChunkCall {
  int heads, key_heads, dim, value_dim;
  float scale;
  bool causal;
  const LinearChunk* chunks;
  __device__ int key_head(int head) const { return head / (heads / key_heads); }
  /// The kept state of a chunk and head, [E,D].
  __device__ const float* state(const float* states, std::int64_t chunk, int head) const {
    return states + ((causal ? chunk : 0) * heads + head) * value_dim * dim;
  }
};
inline ChunkCall chunk_call(const LinearCall& call) {
  const LinearShape& s = call.shape;
  return {static_cast<int>(s.heads),
          static_cast<int>(s.key_heads),
          static_cast<int>(s.dim),
          static_cast<int>(s.value_dim),
          call.recurrence.scale,
          call.recurrence.causal,
          call.chunks};
}

}  // namespace longhaul::attention::detail
