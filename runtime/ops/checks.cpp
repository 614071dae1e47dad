#include "runtime/ops/checks.h"

#include <algorithm>

namespace longhaul::runtime::ops::detail {

namespace {

[[noreturn]] void wrong_shape(const char* op, const char* what, ConstTensorView view,
                              std::initializer_list<std::int64_t> sizes, const char* how) {
  std::string expected, actual;
  for (const std::int64_t size : sizes) expected += concat(expected.empty() ? "" : ", ", size);
  for (const std::int64_t size : view.sizes()) actual += concat(actual.empty() ? "" : ", ", size);
  fail(ExitCode::internal, op, ": ", what, " is [", actual, "]",
       view.contiguous() ? "" : " and strided", "; expected ", how, "[", expected, "]");
}

}  // namespace

void require_shape(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<std::int64_t> sizes) {
  if (std::ranges::equal(view.sizes(), sizes) && view.contiguous()) return;
  wrong_shape(op, what, view, sizes, "contiguous ");
}

void require_heads(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<std::int64_t> sizes) {
  if (std::ranges::equal(view.sizes(), sizes) && view.dims() == 3 &&
      (view.size(2) <= 1 || view.stride(2) == 1))
    return;
  wrong_shape(op, what, view, sizes, "a contiguous last dim of ");
}

void require_like_heads(const char* op, ConstTensorView x, const char* what,
                        ConstTensorView other) {
  LONGHAUL_CHECK(x.dims() == 3, op, ": x has ", x.dims(), " dims; expected [n, H, D]");
  require_heads(op, "x", x, {x.size(0), x.size(1), x.size(2)});
  require_heads(op, what, other, {x.size(0), x.size(1), x.size(2)});
  require_dtype(op, what, other, {x.dtype()});
}

void require_alike(const char* op, std::initializer_list<NamedView> views) {
  const NamedView& first = *views.begin();
  for (const auto& [what, view] : views) {
    if (view.contiguous() && view.dtype() == first.view.dtype() &&
        view.elements() == first.view.elements())
      continue;
    fail(ExitCode::internal, op, ": ", what, " has ", view.elements(), " elements of ",
         name(view.dtype()), view.contiguous() ? "" : " and is strided", "; ", first.what, " has ",
         first.view.elements(), " of ", name(first.view.dtype()),
         "; all must be alike, contiguous");
  }
}

void require_dtype(const char* op, const char* what, ConstTensorView view,
                   std::initializer_list<DType> allowed) {
  if (std::ranges::find(allowed, view.dtype()) != allowed.end()) return;
  std::string expected;
  for (const DType dtype : allowed) expected += concat(expected.empty() ? "" : " or ", name(dtype));
  fail(ExitCode::internal, op, ": ", what, " holds ", name(view.dtype()), "; expected ", expected);
}

}  // namespace longhaul::runtime::ops::detail
