#include "runtime/tensor.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "runtime/tensor_impl.h"

namespace longhaul::runtime {
namespace {

std::int64_t count(std::span<const std::int64_t> sizes) {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes) {
    LONGHAUL_CHECK(size >= 0, "a tensor size is ", size, "; expected at least 0");
    product *= size;
  }
  return product;
}

/// Calls body(pointer to row, length, stride) for each innermost row of one view in lockstep with
/// another.
template <class Body>
void for_each_row(const ConstTensorView& src, const TensorView& dst, const Body& body) {
  const int dims = dst.dims();
  const std::int64_t row = dims == 0 ? 1 : dst.size(dims - 1);
  if (dst.elements() == 0) return;
  const std::int64_t rows = dst.elements() / row;
  for (std::int64_t index = 0; index < rows; ++index) {
    std::int64_t rest = index, src_offset = 0, dst_offset = 0;
    for (int dim = dims - 2; dim >= 0; --dim) {
      const std::int64_t at = rest % dst.size(dim);
      rest /= dst.size(dim);
      src_offset += at * src.stride(dim);
      dst_offset += at * dst.stride(dim);
    }
    body(src_offset, dst_offset, row);
  }
}

/// apply(an element of src, its element of dst) for all of them.
template <class From, class To, class Apply>
void for_each_element(const ConstTensorView& src, const TensorView& dst, const Apply& apply) {
  const From* from = src.as<From>();
  To* to = dst.as<To>();
  const int last = dst.dims() - 1;
  const std::int64_t from_stride = last < 0 ? 1 : src.stride(last);
  const std::int64_t to_stride = last < 0 ? 1 : dst.stride(last);
  for_each_row(src, dst, [&](std::int64_t src_at, std::int64_t dst_at, std::int64_t n) {
    const From* a = from + src_at;
    To* b = to + dst_at;
    if (from_stride == 1 && to_stride == 1) {
      for (std::int64_t i = 0; i < n; ++i) apply(a[i], b[i]);
    } else {
      for (std::int64_t i = 0; i < n; ++i) apply(a[i * from_stride], b[i * to_stride]);
    }
  });
}

template <class From, class To>
void convert(const ConstTensorView& src, const TensorView& dst) {
  for_each_element<From, To>(src, dst, [](const From& value, To& converted) {
    converted = static_cast<To>(static_cast<float>(value));
  });
}

template <class From>
void convert_from(const ConstTensorView& src, const TensorView& dst) {
  switch (dst.dtype()) {
    case DType::float32:
      return convert<From, float>(src, dst);
    case DType::bfloat16:
      return convert<From, BFloat16>(src, dst);
    case DType::float64:
      return convert<From, double>(src, dst);
    default:
      fail(ExitCode::internal, "no cast to ", name(dst.dtype()));
  }
}

template <class T>
void copy_same(const ConstTensorView& src, const TensorView& dst) {
  const int last = dst.dims() - 1;
  if (last < 0 || src.stride(last) != 1 || dst.stride(last) != 1)
    return for_each_element<T, T>(src, dst, [](const T& value, T& copied) { copied = value; });
  for_each_row(src, dst, [&](std::int64_t src_at, std::int64_t dst_at, std::int64_t n) {
    std::memcpy(dst.as<T>() + dst_at, src.as<T>() + src_at,
                static_cast<std::size_t>(n) * sizeof(T));
  });
}

void copy_cpu(const ConstTensorView& src, const TensorView& dst) {
  if (src.dtype() == dst.dtype()) {
    if (src.contiguous() && dst.contiguous()) {
      if (dst.elements() > 0)
        std::memcpy(dst.data(), src.data(), static_cast<std::size_t>(dst.bytes()));
      return;
    }
    switch (src.dtype()) {
      case DType::float32:
        return copy_same<float>(src, dst);
      case DType::bfloat16:
        return copy_same<BFloat16>(src, dst);
      case DType::float64:
        return copy_same<double>(src, dst);
      case DType::int32:
        return copy_same<std::int32_t>(src, dst);
      case DType::int64:
        return copy_same<std::int64_t>(src, dst);
      case DType::uint8:
        return copy_same<std::uint8_t>(src, dst);
    }
  }
  switch (src.dtype()) {
    case DType::float32:
      return convert_from<float>(src, dst);
    case DType::bfloat16:
      return convert_from<BFloat16>(src, dst);
    case DType::float64:
      return convert_from<double>(src, dst);
    default:
      fail(ExitCode::internal, "no cast from ", name(src.dtype()), " to ", name(dst.dtype()));
  }
}

template <class T>
void fill_typed(const TensorView& dst, T value) {
  T* to = dst.as<T>();
  const int last = dst.dims() - 1;
  const std::int64_t stride = last < 0 ? 1 : dst.stride(last);
  for_each_row(dst, dst, [&](std::int64_t, std::int64_t at, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) to[at + i * stride] = value;
  });
}

void fill_cpu(const TensorView& dst, double value) {
  switch (dst.dtype()) {
    case DType::float32:
      return fill_typed(dst, static_cast<float>(value));
    case DType::bfloat16:
      return fill_typed(dst, BFloat16(static_cast<float>(value)));
    case DType::float64:
      return fill_typed(dst, value);
    case DType::int32:
      return fill_typed(dst, static_cast<std::int32_t>(value));
    case DType::int64:
      return fill_typed(dst, static_cast<std::int64_t>(value));
    case DType::uint8:
      return fill_typed(dst, static_cast<std::uint8_t>(value));
  }
}

}  // namespace

namespace {

/// An error names the tensor.
Buffer allocate(std::span<const std::int64_t> sizes, DType dtype, const Stream& stream) {
  try {
    return stream.allocate(count(sizes) * size_bytes(dtype));
  } catch (const Error& error) {
    if (error.code() != ExitCode::memory) throw;
    std::string text;
    for (const std::int64_t size : sizes) text += concat(text.empty() ? "" : ", ", size);
    throw Error(ExitCode::memory,
                concat(error.what(), " (a ", name(dtype), " tensor of [", text, "])"));
  }
}

}  // namespace

Tensor::Tensor(std::span<const std::int64_t> sizes, DType dtype, const Stream& stream)
    : buffer_(allocate(sizes, dtype, stream)),
      view_(buffer_.data(), dtype, stream.device(), sizes) {}

void copy(ConstTensorView src, TensorView dst, const Stream& stream) {
  LONGHAUL_CHECK(std::ranges::equal(src.sizes(), dst.sizes()), "copy between views of ",
                 src.elements(), " and ", dst.elements(), " elements of different sizes");
  if (stream.device().kind == DeviceKind::cuda) return detail::cuda_copy(src, dst, stream);
  LONGHAUL_CHECK(src.device() == stream.device() && dst.device() == stream.device(),
                 "copy on stream '", stream.name(), "' of memory on another device");
  stream.count_work({.bytes = static_cast<double>(src.bytes() + dst.bytes())});
  stream.cpu_task([src, dst] { copy_cpu(src, dst); });
}

void detail::copy_now(ConstTensorView src, TensorView dst) { copy_cpu(src, dst); }

void accumulate(ConstTensorView src, TensorView dst, const Stream& stream) {
  LONGHAUL_CHECK(std::ranges::equal(src.sizes(), dst.sizes()) && src.dtype() == DType::float32 &&
                     dst.dtype() == DType::float32,
                 "accumulate needs float32 views of equal sizes; got ", name(src.dtype()), " of ",
                 src.elements(), " and ", name(dst.dtype()), " of ", dst.elements(), " elements");
  if (stream.device().kind == DeviceKind::cuda) return detail::cuda_accumulate(src, dst, stream);
  stream.count_work({.bytes = static_cast<double>(src.bytes() + 2 * dst.bytes())});
  stream.cpu_task([src, dst] { detail::accumulate_now(src, dst); });
}

void detail::accumulate_now(ConstTensorView src, TensorView dst) {
  for_each_element<float, float>(src, dst, [](float value, float& sum) { sum += value; });
}

void fill(TensorView dst, double value, const Stream& stream) {
  if (stream.device().kind == DeviceKind::cuda) return detail::cuda_fill(dst, value, stream);
  stream.count_work({.bytes = static_cast<double>(dst.bytes())});
  stream.cpu_task([dst, value] { fill_cpu(dst, value); });
}

}  // namespace longhaul::runtime
