#pragma once
// The rows that a short convolution reads across the borders of runs, as a schedule: forward the
// rows before each run of a rank, backward those behind it, within the document, from whichever
// ranks hold them. One exchange; a rank's own rows are a message to itself, which sends nothing.
//
// Slots, one row of `channels` elements a token:
//   x (input): the rank's rows.  halo (output): attention::conv_rows()'s left tokens, or backward
//   its right tokens, in its order; its Slot::tokens names them.
// Bytes that a rank receives: rows of its halo that others hold x channels x e, at most
// (conv_width - 1) x channels x e a run.

#include <cstdint>
#include <vector>

#include "parallel/layout.h"
#include "parallel/schedule.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

/// What the programs are a function of. The layout must outlive the generator made from it.
struct HaloInputs {
  const Layout& layout;
  std::vector<std::int64_t> documents;  ///< offsets that rise from 0 to the layout's tokens
  std::int64_t conv_width = 1;          ///< K: K - 1 rows a run
  std::int64_t channels = 0;
  runtime::DType activation = runtime::DType::float32;
  Direction direction = Direction::forward;
};

/// What both slots are made of: the field `rows`, one head of `channels` elements.
Record halo_record(std::int64_t channels, runtime::DType activation);
/// What a call binds: rows[n,1,C] -> rows[h,1,C].
Signature halo_signature();
constexpr int kHaloChannels = 1;

/// Throws Error(config) for a width that the convolution does not have and for a layout whose runs
/// are not of consecutive tokens (striped).
ProgramGenerator prepare_halo(const HaloInputs& inputs);
/// All ranks' programs, for the verifier and for counting.
Schedule build_halo_schedule(const HaloInputs& inputs);

}  // namespace longhaul::parallel
