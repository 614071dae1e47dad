#pragma once
// Runs one rank's program: local steps on the compute stream, transfers on the channels' streams.
// It knows no masks, layouts or tokens: only slots, views and steps that run themselves. Every
// ordering between streams is an event on a wait that the builder derived.

#include <memory>
#include <span>
#include <vector>

#include "parallel/frame.h"

namespace longhaul::parallel {

/// One call in flight. Each phase only enqueues; all ranks call in the same order. Scratch is
/// allocated on the compute stream by start() and returned by the destructor; destroy it only after
/// finish(), or after the streams have been abandoned.
class Execution {
 public:
  /// `inputs` and `outputs` are the tensors of the signature's names; inputs are never written.
  /// Throws Error where one does not fit its slot.
  Execution(std::shared_ptr<const Program> program, const Signature& signature,
            const attention::Scoring& scoring, std::span<const runtime::ConstTensorView> inputs,
            std::span<const runtime::TensorView> outputs, const runtime::Stream& compute,
            const std::vector<Channel>& channels);

  /// Enqueues phase 0: what comes before the first exchange, and the exchange.
  void start();
  /// Enqueues the rest. Calls start() if nobody did.
  void advance();
  /// Makes the compute stream wait for everything. Calls advance() if nobody did.
  void finish();

 private:
  void enqueue_until(int phase);
  void enqueue(int index);
  const runtime::Stream& stream_of(int stream) const;

  std::shared_ptr<const Program> program_;
  attention::Scoring scoring_;
  runtime::Stream compute_;
  const std::vector<Channel>& channels_;
  std::vector<FieldViews<runtime::ConstTensorView>> read_;  // by slot
  std::vector<FieldViews<runtime::TensorView>> written_;
  std::vector<runtime::Tensor> scratch_;
  std::vector<bool> awaited_;           // steps that another stream waits for
  std::vector<runtime::Event> events_;  // theirs
  int next_ = 0;
  bool started_ = false, finished_ = false;
};

}  // namespace longhaul::parallel
