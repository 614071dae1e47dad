#pragma once
// A part of a message as the bytes that travel. The one place where communicators care about layout
// and wire dtype, and where host communicators care about the device: everything behind it sees
// host pointers.

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/comm/communicator.h"

namespace longhaul::runtime::detail {

/// Memory that holds, or will hold, a part on the wire; `staging` when it is not the view
/// itself.
struct WireMessage {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
  Buffer staging;
};

/// Bytes of a part on the wire. Throws Error(internal) for a wire dtype that does not fit its view.
std::int64_t wire_bytes(const SendPart& part, std::optional<DType> wire_dtype);
std::int64_t wire_bytes(const ReceivePart& part, std::optional<DType> wire_dtype);

/// Enqueues what turns the part into wire bytes; nothing for all rows of a contiguous view in its
/// wire dtype. The bytes may be read by later work on `stream`.
WireMessage pack(const SendPart& part, std::optional<DType> wire_dtype, const Stream& stream);

/// Where the wire bytes of a part are to arrive; unpack() then puts them into the view, if they are
/// not there.
WireMessage receive_place(const ReceivePart& part, std::optional<DType> wire_dtype,
                          const Stream& stream);
void unpack(const std::byte* bytes, const ReceivePart& part, std::optional<DType> wire_dtype,
            const Stream& stream);

/// What a native all_gather of a group of messages takes: the wire bytes of each part that a rank
/// sends to all others, empty parts left out. Empty where the messages are not that: where the
/// ranks' parts differ. So ranks whose messages match come to the same answer. `sends` and
/// `receives` are marked ExchangeKind::all_gather; those of the rank to itself do not count.
std::vector<std::int64_t> gathered_parts(const std::vector<SendMessage>& sends,
                                         const std::vector<ReceiveMessage>& receives, int rank,
                                         int size);

/// The bytes of a contiguous view. Sends only read; one struct for both directions saves a const
/// twin.
WireMessage whole(const ConstTensorView& view);

// Host communicators run their exchanges as host tasks of the stream. On a CPU stream the next
// three do nothing; on a CUDA stream they go through pinned memory, in the stream's order.

/// What host tasks enqueued after the call can read of `message`.
WireMessage host_copy(WireMessage message, const Stream& stream);
/// Where host tasks can put what `place` is to receive; arrive() then brings it there.
WireMessage host_place(const WireMessage& place, const Stream& stream);
void arrive(const WireMessage& host, const WireMessage& place, const Stream& stream);

/// Refuses memory that is not the stream's: Error(launch).
void require_same_device(const ConstTensorView& view, const Stream& stream);

}  // namespace longhaul::runtime::detail
