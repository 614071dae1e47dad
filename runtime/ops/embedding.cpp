#include "runtime/ops/embedding.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check_shapes(const char* op, const ConstTensorView& table, const ConstTensorView& tokens,
                  const ConstTensorView& rows) {
  LONGHAUL_CHECK(table.dims() == 2 && tokens.dims() == 1, op, ": the table has ", table.dims(),
                 " dims, tokens ", tokens.dims(), "; expected 2 and 1");
  detail::require_shape(op, "table", table, {table.size(0), table.size(1)});
  detail::require_shape(op, "tokens", tokens, {tokens.size(0)});
  detail::require_shape(op, "out or dout", rows, {tokens.size(0), table.size(1)});
}

}  // namespace

void embedding(ConstTensorView table, ConstTensorView tokens, TensorView out,
               const Stream& stream) {
  check_shapes("embedding", table, tokens, out);
  if (detail::on_cuda(stream)) return detail::cuda_embedding(table, tokens, out, stream);
  detail::count_bytes(stream, {out, out});
  detail::cpu_embedding(table, tokens, out, stream);
}

void embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                        const Stream& stream) {
  check_shapes("embedding_backward", dtable, tokens, dout);
  if (detail::on_cuda(stream)) return detail::cuda_embedding_backward(dout, tokens, dtable, stream);
  detail::count_bytes(stream, {dout, dout, dout});
  detail::cpu_embedding_backward(dout, tokens, dtable, stream);
}

}  // namespace longhaul::runtime::ops
