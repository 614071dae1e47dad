#include "runtime/comm/staging.h"

#include <algorithm>
#include <cstdint>

namespace longhaul::runtime {
namespace detail {
namespace {

DType wire_of(const ConstTensorView& view, std::optional<DType> wire_dtype) {
  if (!wire_dtype || *wire_dtype == view.dtype()) return view.dtype();
  LONGHAUL_CHECK(view.dtype() == DType::float32 && *wire_dtype == DType::bfloat16,
                 "a message of dtype ", name(view.dtype()), " cannot travel as ", name(*wire_dtype),
                 "; only float32 travels as another dtype, bfloat16");
  return *wire_dtype;
}

template <class Byte>
BasicTensorView<Byte> bytes_at(Byte* data, std::int64_t bytes, Device device) {
  return {data, DType::uint8, device, {bytes}};
}

/// Whether the part travels from where it lies.
template <class Part>
bool in_place(const Part& part, DType wire) {
  return part.rows.moves == nullptr && part.view.contiguous() && wire == part.view.dtype();
}

/// The sizes of a part: its rows, by the dims of its view.
template <class Part>
Sizes sizes_of(const Part& part) {
  Sizes sizes{};
  std::ranges::copy(part.view.sizes(), sizes.begin());
  if (part.rows.moves != nullptr) sizes[0] = part.rows.moves->rows();
  return sizes;
}
template <class Part>
std::int64_t elements_of(const Part& part) {
  std::int64_t elements = 1;
  const Sizes sizes = sizes_of(part);
  for (int dim = 0; dim < part.view.dims(); ++dim) elements *= sizes[static_cast<std::size_t>(dim)];
  return elements;
}
/// The part as a contiguous view of wire bytes.
template <class Part, class Byte>
BasicTensorView<Byte> wire_view(const Part& part, DType wire, Byte* data) {
  const Sizes sizes = sizes_of(part);
  return {data, wire, part.view.device(),
          std::span<const std::int64_t>(sizes.data(), static_cast<std::size_t>(part.view.dims()))};
}

}  // namespace
}  // namespace detail

std::int64_t SendPart::elements() const { return detail::elements_of(*this); }
std::int64_t ReceivePart::elements() const { return detail::elements_of(*this); }

namespace detail {

void require_same_device(const ConstTensorView& view, const Stream& stream) {
  if (view.device() == stream.device()) return;
  fail(ExitCode::launch, "a communicator was given memory of ", to_string(view.device()),
       " on stream '", stream.name(), "' of ", to_string(stream.device()));
}

std::int64_t wire_bytes(const SendPart& part, std::optional<DType> wire_dtype) {
  return elements_of(part) * size_bytes(wire_of(part.view, wire_dtype));
}
std::int64_t wire_bytes(const ReceivePart& part, std::optional<DType> wire_dtype) {
  return elements_of(part) * size_bytes(wire_of(part.view, wire_dtype));
}

WireMessage pack(const SendPart& part, std::optional<DType> wire_dtype, const Stream& stream) {
  require_same_device(part.view, stream);
  const DType wire = wire_of(part.view, wire_dtype);
  if (in_place(part, wire)) return whole(part.view);
  const std::int64_t bytes = wire_bytes(part, wire_dtype);
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  const TensorView packed = wire_view(part, wire, message.data);
  if (part.rows.moves != nullptr) {
    copy_rows(part.view, packed, part.rows, stream);
  } else {
    copy(part.view, packed, stream);
  }
  return message;
}

WireMessage receive_place(const ReceivePart& part, std::optional<DType> wire_dtype,
                          const Stream& stream) {
  require_same_device(part.view, stream);
  const std::int64_t bytes = wire_bytes(part, wire_dtype);
  if (in_place(part, wire_of(part.view, wire_dtype))) return {part.view.data(), bytes, {}};
  WireMessage message{nullptr, bytes, stream.allocate(bytes)};
  message.data = message.staging.data();
  return message;
}

void unpack(const std::byte* bytes, const ReceivePart& part, std::optional<DType> wire_dtype,
            const Stream& stream) {
  if (bytes == part.view.data()) return;
  const auto packed = wire_view(part, wire_of(part.view, wire_dtype), bytes);
  if (part.rows.moves != nullptr) {
    copy_rows(packed, part.view, part.rows, stream);
  } else {
    copy(packed, part.view, stream);
  }
}

namespace {

template <class Message>
std::vector<std::int64_t> parts_of(const Message& message) {
  std::vector<std::int64_t> parts;
  for (const auto& part : message.parts) {
    const std::int64_t bytes = wire_bytes(part, message.wire_dtype);
    if (bytes > 0) parts.push_back(bytes);
  }
  return parts;
}

}  // namespace

std::vector<std::int64_t> gathered_parts(const std::vector<SendMessage>& sends,
                                         const std::vector<ReceiveMessage>& receives, int rank,
                                         int size) {
  std::optional<std::vector<std::int64_t>> common;
  const auto all_alike = [&](const auto& messages) {
    std::vector<int> met(static_cast<std::size_t>(size), 0);
    for (const auto& message : messages) {
      if (message.peer == rank) continue;
      if (met.at(static_cast<std::size_t>(message.peer))++ > 0) return false;
      std::vector<std::int64_t> parts = parts_of(message);
      if (!common)
        common = std::move(parts);
      else if (parts != *common)
        return false;
    }
    return std::ranges::count(met, 1) == size - 1;
  };
  if (!all_alike(sends) || !all_alike(receives)) return {};
  return common.value_or(std::vector<std::int64_t>());
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

}  // namespace detail
}  // namespace longhaul::runtime
