#pragma once
// Proves a schedule: for every rank count and mask, without tensors, on one core.
//
// 0. Form: views, records and sizes fit, and every rank has just the call's inputs and outputs, as
//    the layout has them.
// 1. Hazards: overlapping accesses of a rank, one of them a write, are ordered by its streams and
//    waits alone.
// 2. Run: in-order queues, rendezvous transfers, messages matched in order per (channel, sender,
//    receiver). Every queue runs empty, or the stuck step is named. One order proves all, since a
//    ready step stays ready. Transfers that are marked as collectives are what they say.
// 3. Shadow values in that run: a row and head of a slot of inputs carries its global token and
//    head, one of an accumulator also the sum mod 2^64 of random weights of what contributed. At
//    the end every output must hold the mask's row (or column) sum: each visible pair exactly once,
//    up to a hash collision. Of a recurrence the sums are states that tokens map one after another:
//    each earlier token of the document once and in order (linear_shadow.h).
//
// Not proved: kernels, casts, the mask itself, that the LSE given to backward is the global one,
// and the order in which a recurrence's transitions are multiplied.

#include <string>

#include "attention/head_masks.h"
#include "parallel/layout.h"
#include "parallel/schedule.h"

namespace longhaul::parallel {

enum class Fault : unsigned char {
  none,
  malformed,  ///< a view outside its slot, records or sizes that do not fit, a write to an input,
              ///< inputs or outputs other than the call's, scratch that nothing uses
  hazard,     ///< conflicting accesses that nothing orders
  deadlock,   ///< a step that can never run
  mismatch,   ///< a message whose two sides differ
  undefined,  ///< a read of, or an add to, rows that nothing has written
  misplaced,  ///< rows of other tokens or heads than they are combined with or declared as
  coverage    ///< an output that misses pairs or counts some twice
};
const char* name(Fault fault);

struct Verdict {
  Fault fault = Fault::none;
  std::string message;  ///< names rank, step and slot
  /// Most bytes of scratch slots that any rank holds. Slots live for the whole call, so this is the
  /// peak; a slot that nothing uses is malformed.
  std::int64_t peak_scratch_bytes = 0;
  /// Most bytes that the exchanges of any rank stage at once (Count::staging_bytes()).
  std::int64_t peak_staging_bytes = 0;
  bool ok() const { return fault == Fault::none; }
};

/// `schedule` must be the attention of `masks` over `layout`: a program for every rank, each with
/// just the inputs and outputs of the direction, over all its rows and heads.
Verdict verify(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout);

/// Whether every rank's backward is given just what its forward keeps: slots of the same names,
/// records, sizes and tokens.
Verdict verify_saved(const Schedule& forward, const Schedule& backward);

}  // namespace longhaul::parallel
