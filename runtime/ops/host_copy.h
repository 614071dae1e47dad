#pragma once
// Between host memory and tensors, in the order of a stream, on either device.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// dst <- values, which are kept until they have been read. dst: contiguous, of T's dtype and as
/// many elements. T: any element type of a tensor.
template <class T>
void upload(std::vector<T> values, TensorView dst, const Stream& stream);

/// to[0, bytes.size()) <- bytes, copied before the call returns; memory of the stream's device.
void upload_bytes(std::span<const std::byte> bytes, std::byte* to, const Stream& stream);

/// src's elements on the host: may be read once the stream has passed the call (after a
/// synchronize). src: contiguous, of T's dtype. T as in upload().
template <class T>
[[nodiscard]] std::shared_ptr<const std::vector<T>> download(ConstTensorView src,
                                                             const Stream& stream);

/// Values of the host as a contiguous tensor of these sizes.
[[nodiscard]] TensorView host_view(std::span<float> values, std::span<const std::int64_t> sizes);

}  // namespace longhaul::runtime::ops
