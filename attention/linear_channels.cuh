#pragma once
// Gradients of keys, queries and gates where the decay is a vector a token. A thread has a key dim
// and 16 keys j, and walks over the tokens t from the last, with r_j = what key j has of the
// gradients of the tokens from t on, decayed to t. What t reads of key j is k_j exp(g_t - g_j);
// times r_j it is the gradient of gate t. The state before the chunk is one more key, the state
// after it one more query. Four neighbouring lanes have all keys of a key dim. Private to
// attention/.

#include "attention/linear_head.cuh"

namespace longhaul::attention::detail {

/// What a chunk's tokens are in shared memory, beside the tiles of HeadOfChunk: the decay of each,
/// and that from its block of 16 tokens' start through it.
struct ChannelDecays {
  Tile alpha, from_block;
};

/// a <- q, p <- dq as the state before gives it, b <- dk as the state after does; the decays.
template <class T>
__device__ ChannelDecays load_channels(const HeadOfChunk<Gate::channel, T>& h, int d,
                                       const Sums& dq_in, const Sums& dk_out) {
  const ChannelDecays to{shared_tile(4), shared_tile(5)};
  const auto same = [](int, int, float x) { return x; };
  __syncthreads();
  h.load_q(h.a, d);
  store(h.p, dq_in, same);
  store(h.b, dk_out, same);
  load_alphas(to.alpha, h.gates.data + d, h.gates.row_stride, h.gates.rows, extent(h.call.dim, d));
  __syncthreads();
  float product = 1.0f;
  for (int t = own_part() * kPart; t < (own_part() + 1) * kPart; ++t)
    to.from_block.at(t, own_column()) = product *= to.alpha.at(t, own_column());
  __syncthreads();
  return to;
}

/// A thread's keys.
struct ChannelKeys {
  int first;              // token
  float received[kPart];  // r
  float key[kPart];
  float next[kPart];  // the decay of the token after; of the last key: 1
};
/// What token t has of them.
struct ChannelGradients {
  float dq = 0.0f, dk = 0.0f, gate = 0.0f;
};

/// Token t's step. fade: from the last key, or t if that is before it, through t; then from the
/// first key.
__device__ inline ChannelGradients step_keys(ChannelKeys& keys, Tile weights, int t, float query,
                                             float later, float& fade) {
  ChannelGradients sums;
#pragma unroll
  for (int u = kPart - 1; u >= 0; --u) {
    const int j = keys.first + u;
    if (j > t) continue;
    const float weight = weights.at(t, j);
    keys.received[u] = fmaf(weight, query, keys.received[u] * later);
    if (j < t) fade *= keys.next[u];
    const float faded = keys.key[u] * fade;
    sums.dq = fmaf(weight, faded, sums.dq);
    if (j < t) sums.gate = fmaf(faded, keys.received[u], sums.gate);
    if (j == t) sums.dk = keys.received[u];
  }
  return sums;
}

/// dq, dk and the gates' gradients of the key dims from d on. dq_in, dk_out: what the states alone
/// give, not yet decayed.
template <class T>
__device__ void channel_gradients(const HeadOfChunk<Gate::channel, T>& h, int d, const Sums& dq_in,
                                  const Sums& dk_out) {
  const ChannelDecays decays = load_channels(h, d, dq_in, dk_out);
  const int channel = thread() / 32 * 8 + thread() % 32 / 4, part = thread() % 4;
  const bool inside = channel < extent(h.call.dim, d);
  ChannelKeys keys;
  keys.first = part * kPart;
  const int last = keys.first + kPart - 1;
#pragma unroll
  for (int u = 0; u < kPart; ++u) {
    const int j = keys.first + u;
    keys.received[u] = h.b.at(j, channel);
    keys.key[u] = inside && j < h.chunk.count
                      ? runtime::detail::load_float(h.k.data[j * h.k.row_stride + d + channel])
                      : 0.0f;
    keys.next[u] = u + 1 < kPart ? decays.alpha.at(j + 1, channel) : 1.0f;
  }
  float state = overlap_of(h.sums, channel);
  for (int t = h.chunk.count - 1; t >= 0; --t) {
    const float later = t + 1 < h.chunk.count ? decays.alpha.at(t + 1, channel) : 1.0f,
                query = h.a.at(t, channel);
    float fade = t > last ? decays.from_block.at(t, channel) : 1.0f;
    for (int block = t / kPart - 1; block > part; --block)
      fade *= decays.from_block.at(block * kPart + kPart - 1, channel);
    ChannelGradients sums = step_keys(keys, h.x, t, query, later, fade);
    if (part == 0) {
      fade *= decays.alpha.at(0, channel);
      const float read = h.p.at(t, channel);
      state = fmaf(query, read, state * later);
      sums.dq = fmaf(fade, read, sums.dq);
      sums.gate = fmaf(fade, state, sums.gate);
    }
#pragma unroll
    for (int lanes = 1; lanes < kEdge / kPart; lanes *= 2) {
      sums.dq += __shfl_xor_sync(kAllLanes, sums.dq, lanes);
      sums.gate += __shfl_xor_sync(kAllLanes, sums.gate, lanes);
    }
    if (!inside) continue;
    const auto put = [&](const Operand<float>& of, float x) {
      float& to = h.rows_of(of, h.key_head)[t * of.row_stride + d + channel];
      to = h.add ? to + x : x;
    };
    if (keys.first <= t && t <= last) put(h.at.dk, sums.dk);
    if (part != 0) continue;
    put(h.at.dq, h.call.scale * sums.dq);
    h.rows_of(h.at.dgates, h.head)[t * h.at.dgates.row_stride + d + channel] =
        t == 0 && h.chunk.starts != 0 ? 0.0f : sums.gate;
  }
}

}  // namespace longhaul::attention::detail
