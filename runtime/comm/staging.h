#pragma once
// A message as the bytes that travel. The one place where host communicators care about layout,
// wire dtype and device: everything behind it sees host pointers.

#include <optional>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::runtime::detail {

/// Host memory that holds, or will hold, a message on the wire; `staging` when it is not the view
/// itself.
struct WireMessage {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
  Buffer staging;
};

/// Bytes of a message on the wire. Throws Error(internal) for a wire dtype that does not fit a
/// view.
std::int64_t wire_bytes(const std::vector<ConstTensorView>& views, std::optional<DType> wire_dtype);

/// Enqueues what turns the views into wire bytes; nothing for a single contiguous view in its wire
/// dtype. The bytes may be read by later work on `stream`.
WireMessage pack(const std::vector<ConstTensorView>& views, std::optional<DType> wire_dtype,
                 const Stream& stream);

/// Where the wire bytes of a message are to arrive; unpack() then puts them into the views.
WireMessage receive_place(const std::vector<TensorView>& views, std::optional<DType> wire_dtype,
                          const Stream& stream);
void unpack(const WireMessage& message, const std::vector<TensorView>& views,
            std::optional<DType> wire_dtype, const Stream& stream);

/// Refuses what host communicators cannot reach: Error(launch) for memory or streams of a GPU.
void require_host(const ConstTensorView& view, const Stream& stream);

}  // namespace longhaul::runtime::detail
