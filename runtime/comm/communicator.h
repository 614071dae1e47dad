#pragma once
// A communicator: an ordered group of ranks that exchange tensors.
//
// Every operation takes its stream, last, and only enqueues; its outputs are valid after it on that
// stream, and its buffers must stay alive until then (stream-ordered memory of that stream does).
// All ranks of a communicator issue its operations in the same order, and a communicator is used
// from one stream at a time: concurrent traffic takes another communicator (split with one colour).
// Waiting for a peer past the communicator's timeout throws Error(hang) naming rank, peer and
// operation. Sums are fp32 or fp64 and add in rank order, so every host backend gives the same
// bits.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/rows.h"
#include "runtime/tensor.h"

namespace longhaul::runtime {

/// A view, or some of its rows one after another, in one piece: contiguous ones travel from where
/// they lie, others by way of staging memory of the stream.
struct SendPart {
  SendPart(ConstTensorView whole) : view(whole) {}
  SendPart(TensorView whole) : view(whole) {}
  SendPart(const Tensor& whole) : view(whole.view()) {}
  /// The moves go from rows of the view to rows of the piece, which they fill.
  SendPart(ConstTensorView of, RowList some) : view(of), rows(std::move(some)) {}
  std::int64_t elements() const;
  ConstTensorView view;
  RowList rows = {};  ///< without moves: all
};
struct ReceivePart {
  ReceivePart(TensorView whole) : view(whole) {}
  ReceivePart(const Tensor& whole) : view(whole.view()) {}
  /// The moves go from rows of the piece, all of them, to rows of the view.
  ReceivePart(TensorView of, RowList some) : view(of), rows(std::move(some)) {}
  std::int64_t elements() const;
  TensorView view;
  RowList rows = {};
};

/// A message is a list of parts; the two sides' parts have equal elements one by one. Empty parts
/// are not sent at all: both sides drop them by the same rule.
///
/// Instead of parts a message may lend views: what arrives is where they lie, and the receiver
/// reads them there. Between ranks that share memory (Communicator::lends()) and as many on both
/// sides, of the same sizes and dtypes. What is lent must stay as it is until the borrower has said
/// that it is done, by a message of its own; an empty view that is lent says no more than that. No
/// payload is sent.
struct SendMessage {
  int peer = 0;
  std::vector<SendPart> parts;
  /// What travels when it differs from the views' dtype: float32 views as bfloat16, cast on both
  /// sides. Applies to every part of the message; both sides must agree.
  std::optional<DType> wire_dtype = std::nullopt;
  /// Read when the message is sent: what was borrowed is lent on as well.
  std::vector<std::shared_ptr<const ConstTensorView>> lent = {};
};
struct ReceiveMessage {
  int peer = 0;
  std::vector<ReceivePart> parts;
  std::optional<DType> wire_dtype = std::nullopt;
  /// Of the right sizes and dtypes; they point to the lender's memory once the exchange is over.
  std::vector<std::shared_ptr<ConstTensorView>> borrowed = {};
};

/// A hint that a group of messages is a collective over all ranks of the communicator: every rank
/// sends one message to every other and receives one from it, all of as many bytes, and all ranks
/// say so. all_gather: what a rank sends is the same for all. It changes no byte of what arrives.
enum class ExchangeKind : unsigned char { none, all_gather, all_to_all };

/// Memory that messages take of a stream beside their tensors while they are exchanged.
struct MessageMemory {
  std::int64_t stream_bytes = 0;  ///< Stream::allocate()
  std::int64_t host_bytes = 0;    ///< Stream::allocate_host(): the same memory on a CPU
  std::int64_t buffers = 0;
};

/// What a group of messages is made of.
struct GroupBytes {
  std::int64_t moved = 0;   ///< sent and received, to oneself too
  std::int64_t staged = 0;  ///< of those, in parts that go by way of staging memory
  /// In a native all_gather: its output, with a place for every rank, and what is staged of one
  /// message. 0 where the group is none.
  std::int64_t gathered = 0;
  std::int64_t parts = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Shown in errors and traces, e.g. "context".
  virtual const std::string& name() const = 0;

  /// Grouped sends and receives: all progress together, the group completes when all have. Messages
  /// between a pair of ranks match in order. A message to oneself is a copy. `what` names it in
  /// errors.
  virtual void exchange(std::vector<SendMessage> sends, std::vector<ReceiveMessage> receives,
                        const std::string& what, const Stream& stream) = 0;
  /// The same, with a hint for a backend that has something better than messages.
  virtual void exchange_as(ExchangeKind, std::vector<SendMessage> sends,
                           std::vector<ReceiveMessage> receives, const std::string& what,
                           const Stream& stream) {
    exchange(std::move(sends), std::move(receives), what, stream);
  }

  /// Whether all its ranks can read each other's memory of CPU streams, so that messages may lend.
  virtual bool lends() const { return false; }

  /// What exchange_as() of such a group takes on a stream of that kind, at most.
  virtual MessageMemory memory_of(const GroupBytes& group, DeviceKind kind) const = 0;

  /// Sum over ranks, in place, contiguous. Adjoint: all_reduce.
  virtual void all_reduce(TensorView values, const Stream& stream) = 0;
  /// output = inputs of all ranks one after another; counts[r] = elements of rank r's input.
  /// Adjoint: reduce_scatter.
  virtual void all_gather(ConstTensorView input, TensorView output,
                          std::span<const std::int64_t> counts, const Stream& stream) = 0;
  /// output = the sum over ranks of the caller's segment of input; counts as in all_gather.
  /// Adjoint: all_gather.
  virtual void reduce_scatter(ConstTensorView input, TensorView output,
                              std::span<const std::int64_t> counts, const Stream& stream) = 0;
  /// What reduce_scatter() and all_gather() of these counts take on a stream of that kind, at most,
  /// one at a time. An all_reduce of n elements is both, of n dealt evenly.
  virtual MessageMemory memory_of_segments(std::span<const std::int64_t> counts, DType dtype,
                                           DeviceKind kind) const = 0;
  /// Completes when every rank has reached it.
  virtual void barrier(const Stream& stream) = 0;

  /// Ranks of one colour form a communicator, ordered by (key, rank). Collective; blocks the host.
  virtual std::unique_ptr<Communicator> split(int color, int key, const std::string& name) = 0;

  /// From now on operations wait this long for a peer; returns what held before. All ranks alike.
  virtual double set_timeout(double seconds) = 0;

  /// Payload bytes that this rank has sent to others since the last reset, on the wire dtype.
  virtual std::int64_t sent_bytes() const = 0;
  virtual void reset_sent_bytes() = 0;
  /// Those of exchange() alone, by the rank that they went to; size() entries, 0 for oneself.
  virtual std::span<const std::int64_t> exchanged_bytes() const = 0;
};

/// What an all_reduce deals to each rank.
std::vector<std::int64_t> even_counts(std::int64_t elements, int ranks);

}  // namespace longhaul::runtime
