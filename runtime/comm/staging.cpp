#include "runtime/comm/staging.h"

#include <cstdint>

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

template <class Byte>
BasicTensorView<Byte> bytes_at(Byte* data, std::int64_t bytes, Device device) {
  return {data, DType::uint8, device, {bytes}};
}

bool aligned(const std::byte* data, DType dtype) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size_bytes(dtype)) ==
         0;
}

/// Views of different dtypes lie back to back on the wire, so one may begin off its alignment:
/// bytes may be copied there, elements may not.
void put_on_wire(const ConstTensorView& view, const TensorView& wire, const Stream& stream) {
  if (aligned(wire.data(), wire.dtype())) return copy(view, wire, stream);
  const Tensor elements(view.sizes(), wire.dtype(), stream);
  copy(view, elements, stream);
  copy(bytes_at<const std::byte>(elements.view().data(), wire.bytes(), wire.device()),
       bytes_at(wire.data(), wire.bytes(), wire.device()), stream);
}
void take_off_wire(const ConstTensorView& wire, const TensorView& view, const Stream& stream) {
  if (aligned(wire.data(), wire.dtype())) return copy(wire, view, stream);
  const Tensor elements(view.sizes(), wire.dtype(), stream);
  copy(bytes_at(wire.data(), wire.bytes(), wire.device()),
       bytes_at(elements.view().data(), wire.bytes(), wire.device()), stream);
  copy(elements, view, stream);
}

std::vector<ConstTensorView> as_const(const std::vector<TensorView>& views) {
  return {views.begin(), views.end()};
}

}  // namespace

void require_same_device(const ConstTensorView& view, const Stream& stream) {
  if (view.device() == stream.device()) return;
  fail(ExitCode::launch, "a communicator was given memory of ", to_string(view.device()),
       " on stream '", stream.name(), "' of ", to_string(stream.device()));
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
  for (const ConstTensorView& view : views) require_same_device(view, stream);
  const std::int64_t bytes = wire_bytes(views, wire_dtype);
  if (const auto view = in_place(views, wire_dtype)) {
    return whole(*view);
  }
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  std::byte* to = message.data;
  for (const ConstTensorView& view : views) {
    const TensorView wire(to, wire_of(view, wire_dtype), view.device(), view.sizes());
    put_on_wire(view, wire, stream);
    to += wire.bytes();
  }
  return message;
}

WireMessage receive_place(const std::vector<TensorView>& views, std::optional<DType> wire_dtype,
                          const Stream& stream) {
  for (const TensorView& view : views) require_same_device(view, stream);
  const std::int64_t bytes = wire_bytes(as_const(views), wire_dtype);
  if (const auto view = in_place(views, wire_dtype)) return {view->data(), bytes, {}};
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  return message;
}

void unpack(const WireMessage& message, const std::vector<TensorView>& views,
            std::optional<DType> wire_dtype, const Stream& stream) {
  if (message.staging.data() == nullptr) return;
  const std::byte* from = message.data;
  for (const TensorView& view : views) {
    const ConstTensorView wire(from, wire_of(view, wire_dtype), view.device(), view.sizes());
    take_off_wire(wire, view, stream);
    from += wire.bytes();
  }
}

WireMessage whole(const ConstTensorView& view) {
  return {const_cast<std::byte*>(view.data()), view.bytes(), {}};
}

WireMessage host_place(const WireMessage& place, const Stream& stream) {
  if (stream.device().kind == DeviceKind::cpu) return {place.data, place.bytes, {}};
  WireMessage host{nullptr, place.bytes, stream.allocate_host(place.bytes)};
  host.data = host.staging.data();
  return host;
}

WireMessage host_copy(WireMessage message, const Stream& stream) {
  if (stream.device().kind == DeviceKind::cpu) return message;
  WireMessage host = host_place(message, stream);
  copy(bytes_at<const std::byte>(message.data, message.bytes, stream.device()),
       bytes_at(host.data, host.bytes, Device{}), stream);
  return host;
}

void arrive(const WireMessage& host, const WireMessage& place, const Stream& stream) {
  if (host.data == place.data) return;
  copy(bytes_at<const std::byte>(host.data, host.bytes, Device{}),
       bytes_at(place.data, place.bytes, stream.device()), stream);
}

}  // namespace longhaul::runtime::detail
