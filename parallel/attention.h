#pragma once
// What a model's layers call of the other ranks of the context axis: softmax attention, recurrences
// (attention/linear.h), and the rows that short convolutions read across the borders of runs.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attention/block_plan.h"
#include "attention/head_masks.h"
#include "attention/short_conv.h"
#include "parallel/disaggregation/tasks.h"
#include "parallel/disaggregation/transport.h"
#include "parallel/executor.h"
#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

struct AttentionOptions {
  Expression scheme = {};
  /// Dtype of gradient accumulators between ranks; LSE and delta always travel as fp32.
  runtime::DType wire_dtype = runtime::DType::float32;
  /// What computes blocks on CUDA, and whether it must repeat bit for bit.
  attention::Kernels kernels = attention::Kernels::exact;
  bool deterministic = false;
  Expression linear_scheme = "lasp2";  ///< of recurrences
  /// To external attention servers, where batches have them.
  std::shared_ptr<TaskTransport> transport = nullptr;
  /// Blocks that rings circulate are lent where all ranks of the axis can read each other's memory
  /// (Communicator::lends()), on the CPU: nothing of them is copied or sent.
  bool lend = false;
  /// Softmax attention only takes time: attention::BlockPlace::pretence.
  std::optional<attention::Pretence> pretence = {};
};

/// What a rank's steps of softmax attention have taken, those that are over.
struct AttendTimes {
  double seconds = 0;      ///< on its compute stream: wall time, on a GPU the device's
  double cpu_seconds = 0;  ///< of all threads that attended; on a GPU 0: not measured
  std::int64_t pairs = 0;  ///< visible (query, key) pairs that they attended, times query heads
};

/// What the calls of a batch have in common: masks and layout, the same on all ranks, and the calls
/// that were prepared for them. For calls of the Attention whose batch() made
/// it, on any thread.
class AttentionBatch {
 public:
  ~AttentionBatch();
  const attention::HeadMasks& masks() const;
  const Layout& layout() const;
  const AttentionServers& servers() const;
  /// Of the plans that tasks were dealt by in its prepared calls, both ways: what must be equal on
  /// all ranks. 0 where no scheme has dealt any.
  std::uint64_t task_digest() const;
  /// Where the rows of a rank lie for convolutions of that width, within the documents of the
  /// masks (attention::independent_parts).
  std::shared_ptr<const attention::ConvRows> conv_rows(int rank, std::int64_t width) const;

 private:
  friend class Attention;
  struct Impl;
  explicit AttentionBatch(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The tensors of a recurrence's call: shapes as in attention/linear.h, n = this rank's rows.
/// States are those of the sequences that begin, or end, on this rank (sequence_ends()): [s*E,H,D],
/// fp32; no data where the call has none.
struct LinearForward {
  attention::LinearInputs inputs;
  runtime::ConstTensorView initial_state;
  runtime::TensorView out, final_state;
};
struct LinearBackward {
  attention::LinearInputs inputs;
  runtime::ConstTensorView initial_state, dout, dfinal_state;
  runtime::TensorView dq, dk, dv;  ///< overwritten
  runtime::TensorView dlog_decay;  ///< overwritten; Decay::head: of this rank's rows, [1,H]
  runtime::TensorView dbeta, dinitial_state;
};
/// From softmax attention's forward to its backward, beside out and LSE: what the scheme saves;
/// mostly nothing.
struct AttentionKept {
  runtime::Tensor saved;
};

/// From a recurrence's forward to its backward: the states that entered this rank's runs, and their
/// transitions where a scheme folds them.
struct LinearKept {
  runtime::Tensor states, transitions;
};

/// The rows that a short convolution reads.
struct HaloShape {
  std::int64_t width = 1, channels = 0;  ///< K, C
  runtime::DType activation = runtime::DType::float32;
  bool operator==(const HaloShape&) const = default;
};

/// Attention of one model on one rank: the communicator and streams it uses. Calls of several
/// batches may be in flight at once. Shapes use n = this rank's rows = layout.rows(rank): batch
/// rows are rows.
class Attention {
 public:
  /// `context` is taken over; its size is the number of ranks. Collective.
  Attention(const AttentionOptions& options, std::unique_ptr<runtime::Communicator> context,
            const runtime::Stream& compute);
  ~Attention();

  /// This one, of the communicator's.
  int rank() const;

  /// masks.tokens() == layout.tokens(). `servers`: of the scheme `disaggregated`; its dedicated
  /// ones are the layout's last ranks. Prepares nothing yet.
  std::shared_ptr<const AttentionBatch> batch(attention::HeadMasks masks, Layout layout,
                                              AttentionServers servers = {}) const;
  /// Prepares the calls of a batch, both ways, under the scheme that they will be made with (of
  /// recurrences: linear_scheme()). On any thread, also while calls run; else a batch's first call
  /// does it. Throws Error for what could not run.
  void prepare(const AttentionBatch& batch, const Expression& scheme, const Shapes& shapes,
               const attention::Scoring& scoring) const;
  /// The same of a recurrence's linear_again().
  void prepare_again(const AttentionBatch& batch, Shapes shapes) const;
  void prepare_halo(const AttentionBatch& batch, const HaloShape& shape) const;
  /// Uploads what a batch's prepared calls read and takes from the system what they and their
  /// messages need; else a call's first use does. On compute's thread.
  void load(const AttentionBatch& batch) const;
  /// Most that one of a batch's prepared calls takes of compute's memory.
  std::int64_t arena_bytes(const AttentionBatch& batch) const;
  /// Calls so far that nobody had prepared.
  std::int64_t unprepared_calls() const;
  /// The scheme of the calls of its family that follow. Collective: it may open another channel.
  void set_scheme(const Expression& scheme);
  const Expression& linear_scheme() const;

  /// q[n,H,D], k[n,H_kv,D], v[n,H_kv,D_v] in the activation dtype -> out[n,H,D_v] fp32, lse[n,H,2]
  /// fp32 (natural log: high and low part, attention/block.h). A sigmoid has no LSE and no delta:
  /// their views are empty. `kept` is made here; only a scheme that saves nothing may do without.
  std::unique_ptr<Execution> forward(const AttentionBatch& batch, runtime::ConstTensorView q,
                                     runtime::ConstTensorView k, runtime::ConstTensorView v,
                                     const attention::Scoring& scoring, runtime::TensorView out,
                                     runtime::TensorView lse, AttentionKept* kept = nullptr);

  struct BackwardInputs {
    runtime::ConstTensorView q, k, v, dout;  ///< activation dtype
    runtime::ConstTensorView lse;            ///< forward's
    runtime::ConstTensorView delta;          ///< fp32 [n,H], block_delta(out, dout)
    const AttentionKept* kept = nullptr;     ///< forward's, until the call is done
  };
  /// -> dq[n,H,D], dk[n,H_kv,D], dv[n,H_kv,D_v], all fp32, overwritten.
  std::unique_ptr<Execution> backward(const AttentionBatch& batch, const BackwardInputs& inputs,
                                      const attention::Scoring& scoring, runtime::TensorView dq,
                                      runtime::TensorView dk, runtime::TensorView dv);

  /// A recurrence over the batch's rows, under its linear scheme. `kept` is what backward needs of
  /// it, made here.
  std::unique_ptr<Execution> linear_forward(const AttentionBatch& batch, const LinearCall& call,
                                            const LinearForward& tensors, LinearKept& kept);
  /// The outputs once more, from the states that entered the runs: nothing is exchanged.
  std::unique_ptr<Execution> linear_again(const AttentionBatch& batch, LinearCall call,
                                          const LinearForward& tensors, const LinearKept& kept);
  std::unique_ptr<Execution> linear_backward(const AttentionBatch& batch, const LinearCall& call,
                                             const LinearBackward& tensors, const LinearKept& kept);

  /// halo[h,C] <- the rows before this rank's runs (forward; behind them: backward), of rows[n,C]
  /// of all ranks, as AttentionBatch::conv_rows() orders them; both in shape.activation.
  std::unique_ptr<Execution> halo(const AttentionBatch& batch, const HaloShape& shape,
                                  Direction direction, runtime::ConstTensorView rows,
                                  runtime::TensorView halo);

  /// Most bytes of messages in staging memory since the last reset, all channels together; none
  /// where what is sent lies together and is not cast.
  std::int64_t peak_staging_bytes() const;
  void reset_peak() const;

  /// Since construction; pretended seconds count as both. Not of tasks that left this rank, but of
  /// those that came to it.
  AttendTimes attend_times() const;

  /// Payload bytes that this rank has sent since construction.
  std::int64_t sent_bytes() const;
  /// Those bytes by the rank that they went to.
  std::map<int, std::int64_t> sent_to() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::parallel
