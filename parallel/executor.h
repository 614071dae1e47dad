#pragma once
// Runs one rank's prepared program: local steps on the compute stream, transfers on the channels'
// streams. It knows no masks, layouts or tokens, nor what a step does: only slots, and steps that
// run themselves. Every ordering between streams is an event on a wait that the builder derived.

#include <memory>
#include <span>
#include <vector>

#include "parallel/prepared.h"
#include "runtime/work_clock.h"

namespace longhaul::parallel {

/// One call in flight: a prepared program bound to tensors; others may be in flight at the same
/// time, on the same streams, and take turns: what is enqueued between two phases of one runs
/// beside its exchanges. Each phase only enqueues; all ranks call in the same order. Its arena is
/// allocated on the compute stream by start() and returned by the destructor; destroy it only after
/// finish(), or after the streams have been abandoned.
class Execution {
 public:
  /// The tensors are those of the signature's names, in its order; [rows, heads, width], or [rows,
  /// heads] for a number. Inputs are never written. `saved`: Prepared::saved_bytes() bytes of the
  /// compute stream, written forward and read backward. `clock`: of the steps that attend; may be
  /// null. Throws Error where a tensor does not fit its slot.
  Execution(std::shared_ptr<const Loaded> call, std::span<const runtime::ConstTensorView> inputs,
            std::span<const runtime::TensorView> outputs, const runtime::Stream& compute,
            const std::vector<Channel>& channels, std::byte* saved = nullptr,
            runtime::WorkClock* clock = nullptr);

  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  /// What comes before the first exchange, and the exchange.
  void start();
  /// Attention and all other exchanges. Calls start() if nobody did.
  void advance();
  /// What is left to do with what the last exchange brought; the compute stream waits for all of
  /// this call. Calls advance() if nobody did.
  void finish();

 private:
  void bind(std::span<const runtime::ConstTensorView> inputs,
            std::span<const runtime::TensorView> outputs);
  void place(Role role, std::byte* memory);
  void enqueue_phase(int phase);
  void enqueue(std::size_t index);
  void run(const PreparedStep& step, const Frame& frame);

  std::shared_ptr<const Loaded> call_;
  const Prepared& prepared_;
  runtime::Stream compute_;
  const std::vector<Channel>& channels_;
  runtime::WorkClock* const clock_;
  std::vector<FieldViews<runtime::ConstTensorView>> read_;  // by slot
  std::vector<FieldViews<runtime::TensorView>> written_;
  std::vector<Loan> loans_;
  runtime::Buffer arena_;
  std::vector<runtime::Event> events_;  // of awaited steps
  int phases_ = 0;                      // enqueued so far
};

}  // namespace longhaul::parallel
