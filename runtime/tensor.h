#pragma once
// Tensors: an owner with stream-ordered memory, and small copyable views.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <type_traits>

#include "runtime/dtype.h"
#include "runtime/error.h"
#include "runtime/stream.h"

namespace longhaul::runtime {

constexpr int kMaxDims = 5;
using Sizes = std::array<std::int64_t, kMaxDims>;

/// Pointer, dtype, device, sizes and strides (in elements). Does not own. `Byte` is std::byte or
/// const std::byte; a mutable view converts to a const one.
template <class Byte>
class BasicTensorView {
 public:
  BasicTensorView() = default;
  /// A contiguous (row-major) view.
  BasicTensorView(Byte* data, DType dtype, Device device, std::span<const std::int64_t> sizes)
      : data_(data), dtype_(dtype), device_(device), dims_(static_cast<int>(sizes.size())) {
    LONGHAUL_CHECK(sizes.size() <= kMaxDims, "a view has at most ", kMaxDims, " dims, got ",
                   sizes.size());
    std::int64_t stride = 1;
    for (int dim = dims_ - 1; dim >= 0; --dim) {
      const auto d = static_cast<std::size_t>(dim);
      sizes_[d] = sizes[d];
      strides_[d] = stride;
      stride *= sizes[d];
    }
  }
  BasicTensorView(Byte* data, DType dtype, Device device, std::initializer_list<std::int64_t> sizes)
      : BasicTensorView(data, dtype, device, std::span(sizes.begin(), sizes.size())) {}

  operator BasicTensorView<const std::byte>() const requires(!std::is_const_v<Byte>) {
    BasicTensorView<const std::byte> view;
    view.assign(data_, dtype_, device_, dims_, sizes_, strides_);
    return view;
  }

  Byte* data() const { return data_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int dims() const { return dims_; }
  std::int64_t size(int dim) const { return sizes_[static_cast<std::size_t>(dim)]; }
  std::int64_t stride(int dim) const { return strides_[static_cast<std::size_t>(dim)]; }
  std::span<const std::int64_t> sizes() const {
    return {sizes_.data(), static_cast<std::size_t>(dims_)};
  }
  std::int64_t elements() const {
    std::int64_t product = 1;
    for (const std::int64_t size : sizes()) product *= size;
    return product;
  }
  std::int64_t bytes() const { return elements() * size_bytes(dtype_); }
  bool contiguous() const {
    std::int64_t expected = 1;
    for (int dim = dims_ - 1; dim >= 0; --dim) {
      if (size(dim) != 1 && stride(dim) != expected) return elements() == 0;
      expected *= size(dim);
    }
    return true;
  }

  /// Typed pointer to the first element; T must match the dtype.
  template <class T>
  auto* as() const {
    LONGHAUL_CHECK(DTypeOf<T>::value == dtype_, "view holds ", name(dtype_), "; asked for ",
                   name(DTypeOf<T>::value));
    using Pointee = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return reinterpret_cast<Pointee*>(data_);
  }

  /// The sub-view [begin, end) of one dim.
  BasicTensorView slice(int dim, std::int64_t begin, std::int64_t end) const {
    LONGHAUL_CHECK(dim < dims_ && 0 <= begin && begin <= end && end <= size(dim), "slice [", begin,
                   ", ", end, ") of dim ", dim, " of size ", dim < dims_ ? size(dim) : 0);
    BasicTensorView view = *this;
    view.data_ += begin * stride(dim) * size_bytes(dtype_);
    view.sizes_[static_cast<std::size_t>(dim)] = end - begin;
    return view;
  }
  /// The same elements under other sizes; the view must be contiguous.
  BasicTensorView reshape(std::initializer_list<std::int64_t> sizes) const {
    LONGHAUL_CHECK(contiguous(), "only a contiguous view can be reshaped");
    BasicTensorView view(data_, dtype_, device_, sizes);
    LONGHAUL_CHECK(view.elements() == elements(), "reshape of ", elements(), " elements to ",
                   view.elements());
    return view;
  }

  /// Everything by hand; for code that builds strided views.
  void assign(Byte* data, DType dtype, Device device, int dims, const Sizes& sizes,
              const Sizes& strides) {
    data_ = data;
    dtype_ = dtype;
    device_ = device;
    dims_ = dims;
    sizes_ = sizes;
    strides_ = strides;
  }

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::float32;
  Device device_;
  int dims_ = 0;
  Sizes sizes_{};
  Sizes strides_{};
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

/// Owns contiguous memory from a stream's pool (see stream.h for its lifetime rule). Move only.
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised.
  Tensor(std::span<const std::int64_t> sizes, DType dtype, const Stream& stream);
  Tensor(std::initializer_list<std::int64_t> sizes, DType dtype, const Stream& stream)
      : Tensor(std::span(sizes.begin(), sizes.size()), dtype, stream) {}

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  operator ConstTensorView() const { return view_; }
  bool empty() const { return view_.data() == nullptr; }
  DType dtype() const { return view_.dtype(); }
  std::int64_t size(int dim) const { return view_.size(dim); }
  std::int64_t elements() const { return view_.elements(); }
  std::int64_t bytes() const { return view_.bytes(); }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  Buffer buffer_;
  TensorView view_;
};

/// dst <- src, element by element, casting between float dtypes (bfloat16 rounds to nearest even).
/// Sizes equal; any strides. Same device, or host to device and back with equal dtypes, both
/// contiguous, and host memory of Stream::allocate_host (others: ops/host_copy.h).
void copy(ConstTensorView src, TensorView dst, const Stream& stream);
/// dst += src, float32, equal sizes, any strides. How gradient accumulators sum.
void accumulate(ConstTensorView src, TensorView dst, const Stream& stream);
/// Every element <- value (rounded to the dtype).
void fill(TensorView dst, double value, const Stream& stream);

}  // namespace longhaul::runtime
