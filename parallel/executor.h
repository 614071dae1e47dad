#pragma once
// Runs one rank's program: local steps on the compute stream, transfers on the channels' streams.
// It knows no masks, layouts or tokens: only slots, views, bands and messages. Every ordering
// between streams is an event on a wait that the builder derived.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/schedule.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

/// A communication stream and the communicator that only it uses.
struct Channel {
  runtime::Stream stream;
  std::unique_ptr<runtime::Communicator> communicator;
};

/// The caller's tensors for an input or output slot, by the slot's name; one view per field, in
/// order: [rows, heads, width], or [rows, heads] for fields of width one. Inputs are never written.
struct Binding {
  std::string slot;
  std::vector<runtime::TensorView> fields;
};

/// One call in flight; others may be at the same time, on the same streams. Scratch is allocated on
/// the compute stream by start() and returned by the destructor; destroy it only after finish(), or
/// after the streams have been abandoned.
class Execution {
 public:
  Execution(std::shared_ptr<const Program> program, const Shapes& shapes,
            const attention::Scoring& scoring, std::vector<Binding> bindings,
            const runtime::Stream& compute, std::vector<Channel>& channels);

  /// Enqueues phase 0: what comes before the first exchange, and the exchange.
  void start();
  /// Enqueues phase 1: attention and all other exchanges. Calls start() if nobody did.
  void advance();
  /// Enqueues phase 2, and makes the compute stream wait for all of this call. Calls advance() if
  /// nobody did.
  void finish();

 private:
  using Fields = std::vector<runtime::TensorView>;
  void bind(const std::vector<Binding>& bindings);
  void enqueue_phase(int phase);
  void enqueue(int index);
  Fields resolve(const View& view) const;
  Fields resolve_keys(const View& kv, const std::optional<View>& v) const;
  void run(const Attend& attend);
  void run(const AttendBackward& attend);
  void run(const Accumulate& accumulate);
  void run(const Copy& copy);
  void run(const Transfer& transfer, const Step& step);
  const runtime::Stream& stream_of(int stream) const;

  std::shared_ptr<const Program> program_;
  Shapes shapes_;
  attention::Scoring scoring_;
  runtime::Stream compute_;
  std::vector<Channel>& channels_;
  std::vector<Fields> slots_;
  std::vector<runtime::Tensor> scratch_;
  std::vector<bool> awaited_;                     // steps that another stream waits for
  std::vector<runtime::Event> events_;            // theirs
  std::vector<std::optional<std::size_t>> last_;  // step of each channel
  int phases_ = 0;                                // enqueued so far
};

}  // namespace longhaul::parallel
