#pragma once
// Kernels replaced by timed waits, for studies of schedules where there are fewer cores than ranks.

namespace longhaul::attention {

/// How long a softmax block call is pretended to take: slowdown (seconds + flops /
/// flops_per_second), with
///   flops = c (A_full + partial A_partial + rows R),
/// c = 4 D H forward and 10 D H backward (2 (D + D_v) H and (6 D + 4 D_v) H where D_v differs),
/// A_full and A_partial the (query, key) pairs of tiles of 128 x 128 that the bands cover whole, or
/// in part (each taken whole), R the query rows that see a key, backward the keys that are seen as
/// well. With this `rows` and 405 TFLOP/s it is within 5.4% of FlashAttention's published times on
/// an H100 from 512 to 32K tokens; `partial` is an estimate.
struct Pretence {
  double flops_per_second = 2e9;
  double rows = 260;     ///< pairs that a row costs beside its own
  double partial = 1.5;  ///< what a pair of a partial tile costs beside a full one's
  double seconds = 0;    ///< of each call
  double slowdown = 1;   ///< of this rank, or server
  bool operator==(const Pretence&) const = default;
};

}  // namespace longhaul::attention
