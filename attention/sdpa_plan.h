#pragma once
// Which kernels a block call takes on CUDA, and how it is cut for cuDNN's. Host logic alone: the
// same answer on a machine without CUDA.

#include <cstdint>
#include <string>
#include <vector>

#include "attention/block_plan.h"
#include "attention/sdpa_pieces.h"

namespace longhaul::attention {

/// Pieces that one graph of cuDNN's takes at once: apart in their queries and in their keys.
/// Dense: equal ones at equal distances. Ragged: of one mask, both ranges rising.
struct SdpaCall {
  bool ragged = false;
  SdpaMask mask = {};
  std::vector<Piece> pieces = {};
};

struct KernelChoice {
  std::vector<SdpaCall> calls = {};  ///< of cuDNN, in order; none where the exact kernels serve
  std::string why = {};              ///< why they do; empty where cuDNN does
  bool exact() const { return calls.empty(); }
};

/// What `place.kernels` means for a call. `bands` are disjoint, tightened and sorted. Throws
/// Error(config) with the reason where cuDNN is demanded and cannot.
KernelChoice choose_kernels(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
                            const Scoring& scoring, const BlockPlace& place);

/// Visible pairs of calls by what computes them.
struct KernelShares {
  std::int64_t dense = 0, ragged = 0, exact = 0;
  std::int64_t total() const { return dense + ragged + exact; }
  double by_cudnn() const {
    return total() == 0 ? 0 : static_cast<double>(dense + ragged) / static_cast<double>(total());
  }
  KernelShares& operator+=(const KernelShares& other);
  KernelShares& operator*=(std::int64_t factor);
};
KernelShares shares_of(const KernelChoice& choice, const std::vector<Slice>& bands);

}  // namespace longhaul::attention
