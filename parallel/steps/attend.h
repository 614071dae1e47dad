#pragma once
// Softmax (or sigmoid) attention of some query rows over some key rows, and its gradients: the
// steps, what their slots are made of, and beside them all that is true of a step.

#include <memory>
#include <optional>
#include <vector>

#include "parallel/shapes.h"
#include "parallel/slot.h"

namespace longhaul::parallel {

struct Count;
struct KernelUse;
struct Program;
class Form;
class Preparation;
class PreparedStep;
class Shadow;

using attention::Mode;

/// What the slots of such a call are made of. Inputs have the activation dtype; partials,
/// gradients, LSE and delta are fp32. A sigmoid has neither LSE nor delta, and its partials add.
struct AttentionRecords {
  explicit AttentionRecords(const Shapes& shapes);
  Record q,
      kv,        ///< k, v
      k, v,      ///< where keys and values travel apart
      q_bundle,  ///< q, dout, lse, delta: what backward needs of a query
      partial,   ///< out, lse
      dq,
      dkv;             ///< dk, dv
  Record dout_bundle;  ///< dout, lse, delta: of a query whose q is already there
};

/// What calls bind: q, k, v -> out, lse; and q, dout, lse, delta, k, v -> dq, dk, dv. A sigmoid has
/// neither LSE nor delta.
Signature forward_signature(attention::Weighting weighting);
Signature backward_signature(attention::Weighting weighting);

/// partial <- attention of q over kv where the bands allow; in `write` mode rows that see nothing
/// become neutral. Bands are in row numbers of the two views. `kv` is a view of keys and values, or
/// of keys with the values in `v`.
struct Attend {
  static constexpr const char* kName = "Attend";
  static constexpr bool kOnChannel = false;
  static constexpr bool kReadsLoans = true;  ///< its inputs may be borrowed (steps/move.h)
  View q, kv;
  std::vector<Slice> bands;
  View partial;
  Mode mode = Mode::write;
  std::optional<View> v = {};
};
/// dq and dkv <- gradients of the same pairs. `q`: the queries, where `q_bundle` is a view of a
/// dout_bundle.
struct AttendBackward {
  static constexpr const char* kName = "AttendBackward";
  static constexpr bool kOnChannel = false;
  static constexpr bool kReadsLoans = true;
  View q_bundle, kv;
  std::vector<Slice> bands;
  View dq;
  Mode dq_mode = Mode::write;
  View dkv;
  Mode dkv_mode = Mode::write;
  std::optional<View> v = {};
  std::optional<View> q = {};
};

std::vector<Access> accesses(const Attend& step);
std::vector<Access> accesses(const AttendBackward& step);

/// What makes it malformed.
void check(const Attend& step, const Form& form);
void check(const AttendBackward& step, const Form& form);

/// What the verifier's shadow values become: each query row gains the keys that it sees, each key
/// row the queries that see it.
void rehearse(const Attend& step, Shadow& shadow);
void rehearse(const AttendBackward& step, Shadow& shadow);

/// Plans it; what could be refused is refused here.
std::unique_ptr<const PreparedStep> prepare(const Attend& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const AttendBackward& step, Preparation& with);

/// The same step without what it merges: its results are written, whatever the views hold.
std::optional<Attend> without_merging(Attend step);
std::optional<AttendBackward> without_merging(AttendBackward step);

/// What would compute it on CUDA.
void add_kernels(const Attend& step, const Preparation& with, KernelUse& use);
void add_kernels(const AttendBackward& step, const Preparation& with, KernelUse& use);

void add_cost(const Attend& step, const Program& program, int stream, Count& count);
void add_cost(const AttendBackward& step, const Program& program, int stream, Count& count);

}  // namespace longhaul::parallel
