#pragma once
// Private to operations, here and in attention/: the checks that they make before they enqueue, and
// what their CPU files share.

#include <initializer_list>
#include <span>
#include <string>

#include "runtime/tensor.h"

namespace longhaul::runtime::ops::detail {

/// Whether an operation on this stream is a CUDA kernel's.
bool on_cuda(const Stream& stream);

/// Throws unless the view has these sizes and is contiguous.
void require_shape(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<std::int64_t> sizes);

/// The same of [rows, heads, dim], of which only the last dim need be contiguous.
void require_heads(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<std::int64_t> sizes);

/// Throws unless x is [n, H, D] and the other of its sizes and dtype, both as require_heads() has
/// it.
void require_like_heads(const char* op, ConstTensorView x, const char* what, ConstTensorView other);

/// Throws unless all are contiguous, of one dtype and as many elements.
struct NamedView {
  const char* what;
  ConstTensorView view;
};
void require_alike(const char* op, std::initializer_list<NamedView> views);

/// Throws unless the view's dtype is one of `allowed`.
void require_dtype(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<DType> allowed);

/// Calls body.template operator()<T>() with the type of a float32 or bfloat16 dtype.
template <class Body>
void with_activation(const char* op, DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32:
      return body.template operator()<float>();
    case DType::bfloat16:
      return body.template operator()<BFloat16>();
    default:
      fail(ExitCode::internal, op, " takes float32 or bfloat16, not ", name(dtype));
  }
}

/// Counts the bytes of what an operation reads and writes, each view as often as it is listed, as
/// work of the operation whose file says so.
inline void count_bytes(const Stream& stream, std::initializer_list<ConstTensorView> views,
                        const char* source = __builtin_FILE()) {
  Work work;
  for (const ConstTensorView& view : views) work.bytes += static_cast<double>(view.bytes());
  stream.count_work(work, source);
}

/// Work below this many elements stays on the stream's thread: waking a team would cost more. The
/// bits are the same either way.
constexpr std::int64_t kParallelElements = 32768;

/// [rows, heads, dim], strided in rows and heads.
template <class T>
struct Heads {
  T* data;
  std::int64_t row_stride, head_stride;
  T* of(std::int64_t row, std::int64_t head) const {
    return data + row * row_stride + head * head_stride;
  }
};
template <class T>
Heads<const T> heads_of(const ConstTensorView& view) {
  return {view.as<T>(), view.stride(0), view.stride(1)};
}
template <class T>
Heads<T> heads_of(const TensorView& view) {
  return {view.as<T>(), view.stride(0), view.stride(1)};
}

inline float to_float(const float& value) { return value; }
inline float to_float(const BFloat16& value) { return static_cast<float>(value); }
/// to = T(value). Loops of it are vectorised; assignments of whole BFloat16s are not in an omp
/// simd.
inline void put(float& to, float value) { to = value; }
inline void put(BFloat16& to, float value) { to.bits = BFloat16(value).bits; }

}  // namespace longhaul::runtime::ops::detail
