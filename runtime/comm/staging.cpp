#include "runtime/comm/staging.h"

#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
namespace {

DType wire_of(const ConstTensorView& view, std::optional<DType> wire_dtype) {
  if (!wire_dtype || *wire_dtype == view.dtype()) return view.dtype();
  LONGHAUL_CHECK(view.dtype() == DType::float32 && *wire_dtype == DType::bfloat16,
                 "a message of dtype ", name(view.dtype()), " cannot travel as ", name(*wire_dtype),
                 "; only float32 travels as another dtype, bfloat16");
  return *wire_dtype;
}

/// The only view with elements, when it already is what travels.
template <class Byte>
std::optional<BasicTensorView<Byte>> in_place(const std::vector<BasicTensorView<Byte>>& views,
                                              std::optional<DType> wire_dtype) {
  std::optional<BasicTensorView<Byte>> only;
  for (const auto& view : views) {
    if (view.elements() == 0) continue;
    if (only || !view.contiguous() || wire_of(view, wire_dtype) != view.dtype())
      return std::nullopt;
    only = view;
  }
  return only;
}

std::vector<ConstTensorView> as_const(const std::vector<TensorView>& views) {
  return {views.begin(), views.end()};
}

}  // namespace

void require_host(const ConstTensorView& view, const Stream& stream) {
  if (view.device().kind != DeviceKind::cpu || stream.device().kind != DeviceKind::cpu) {
    fail(ExitCode::launch, "a host communicator was given memory of ", to_string(view.device()),
         " on stream '", stream.name(),
         "'; host communicators move CPU tensors only, use comm.backend = \"nccl\"");
  }
}

std::int64_t wire_bytes(const std::vector<ConstTensorView>& views,
                        std::optional<DType> wire_dtype) {
  std::int64_t bytes = 0;
  for (const ConstTensorView& view : views) {
    bytes += view.elements() * size_bytes(wire_of(view, wire_dtype));
  }
  return bytes;
}

WireMessage pack(const std::vector<ConstTensorView>& views, std::optional<DType> wire_dtype,
                 const Stream& stream) {
  for (const ConstTensorView& view : views) require_host(view, stream);
  const std::int64_t bytes = wire_bytes(views, wire_dtype);
  if (const auto view = in_place(views, wire_dtype)) {
    // Sends only read; one struct for both directions saves a const twin.
    return {const_cast<std::byte*>(view->data()), bytes, {}};
  }
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  stream.enqueue([views, wire_dtype, to = message.data]() mutable {
    for (const ConstTensorView& view : views) {
      const TensorView wire(to, wire_of(view, wire_dtype), view.device(), view.sizes());
      copy_now(view, wire);
      to += wire.bytes();
    }
  });
  return message;
}

WireMessage receive_place(const std::vector<TensorView>& views, std::optional<DType> wire_dtype,
                          const Stream& stream) {
  for (const TensorView& view : views) require_host(view, stream);
  const std::int64_t bytes = wire_bytes(as_const(views), wire_dtype);
  if (const auto view = in_place(views, wire_dtype)) return {view->data(), bytes, {}};
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  return message;
}

void unpack(const WireMessage& message, const std::vector<TensorView>& views,
            std::optional<DType> wire_dtype, const Stream& stream) {
  if (message.staging.data() == nullptr) return;
  stream.enqueue([views, wire_dtype, from = static_cast<const std::byte*>(message.data)]() mutable {
    for (const TensorView& view : views) {
      const ConstTensorView wire(from, wire_of(view, wire_dtype), view.device(), view.sizes());
      copy_now(wire, view);
      from += wire.bytes();
    }
  });
}

}  // namespace longhaul::runtime::detail
