#pragma once
// Views of heads within rows.

#include "runtime/tensor.h"

namespace longhaul::models {

/// Of rows [n,m]: [n,heads,dim], the heads `step` columns apart from column `begin` on.
template <class Byte>
runtime::BasicTensorView<Byte> heads_of(const runtime::BasicTensorView<Byte>& rows,
                                        std::int64_t begin, std::int64_t heads, std::int64_t dim,
                                        std::int64_t step) {
  LONGHAUL_CHECK(rows.dims() == 2 && begin + dim <= step && heads * step <= rows.size(1), heads,
                 " heads of ", dim, ", ", step, " apart from column ", begin, " on, in rows of ",
                 rows.dims() == 2 ? rows.size(1) : 0);
  runtime::BasicTensorView<Byte> view;
  view.assign(rows.data() + begin * runtime::size_bytes(rows.dtype()), rows.dtype(), rows.device(),
              3, {rows.size(0), heads, dim}, {rows.stride(0), step, 1});
  return view;
}
/// Heads one behind the other.
template <class Byte>
runtime::BasicTensorView<Byte> heads_of(const runtime::BasicTensorView<Byte>& rows,
                                        std::int64_t begin, std::int64_t heads, std::int64_t dim) {
  return heads_of(rows.slice(1, begin, begin + heads * dim), 0, heads, dim, dim);
}

/// [n,H,D] -> [n,H*D].
inline runtime::TensorView as_rows(const runtime::TensorView& heads) {
  return heads.reshape({heads.size(0), heads.size(1) * heads.size(2)});
}

}  // namespace longhaul::models
