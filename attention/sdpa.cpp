#include "attention/sdpa.h"

#include <algorithm>
#include <bit>

#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

/// Up to a multiple of an eighth of itself, and of 128.
std::int64_t rounded_up(std::int64_t rows) {
  const auto floor = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(rows)));
  const std::int64_t step = std::max<std::int64_t>(128, floor / 8);
  return (rows + step - 1) / step * step;
}

}  // namespace

SdpaForm form_of(const SdpaCall& call, Pass pass, const BlockShape& shape, float scale,
                 bool deterministic) {
  SdpaForm f{pass, call.ragged, deterministic && pass == Pass::backward};
  f.heads = shape.heads;
  f.kv_heads = shape.kv_heads;
  f.dim = shape.dim;
  f.value_dim = shape.value_dim;
  f.q_row_heads = shape.heads_of_q_rows();
  f.kv_row_heads = shape.heads_of_kv_rows();
  f.mask = call.mask;
  f.scale = scale;
  const std::vector<Piece>& pieces = call.pieces;
  f.batch = static_cast<std::int64_t>(pieces.size());
  for (const Piece& piece : pieces) {
    f.q_rows = std::max(f.q_rows, piece.q_rows());
    f.k_rows = std::max(f.k_rows, piece.k_rows());
  }
  if (call.ragged) {
    f.batch = static_cast<std::int64_t>(std::bit_ceil(pieces.size()));
    f.q_rows = rounded_up(f.q_rows);
    f.k_rows = rounded_up(f.k_rows);
    if (pass == Pass::backward) {
      f.q_total = rounded_up(shape.q_rows);
      f.k_total = rounded_up(shape.k_rows);
    }
    return f;
  }
  f.q_step = f.batch > 1 ? pieces[1].q_begin - pieces[0].q_begin : f.q_rows;
  f.k_step = f.batch > 1 ? pieces[1].k_begin - pieces[0].k_begin : f.k_rows;
  return f;
}

std::string to_string(const SdpaForm& f) {
  const char* diagonal = f.mask.diagonal == Diagonal::none       ? "no diagonal"
                         : f.mask.diagonal == Diagonal::top_left ? "diagonal top left"
                                                                 : "diagonal bottom right";
  std::string text = runtime::concat(
      f.pass == Pass::forward ? "forward" : "backward", f.deterministic ? ", deterministic" : "",
      f.ragged ? ", ragged" : "", ", ", f.batch, " x ", f.q_rows, " queries x ", f.k_rows,
      " keys, ", f.heads, ":", f.kv_heads, " heads of ", f.dim, " and ", f.value_dim, ", ",
      diagonal, ", bounds ", f.mask.left, " and ", f.mask.right);
  if (f.q_total > 0) {
    text += runtime::concat(", ", f.q_total, " and ", f.k_total, " rows in all");
  } else if (f.batch > 1) {
    text += runtime::concat(", ", f.q_step, " and ", f.k_step, " rows apart");
  }
  return text + runtime::concat(", heads of a row ", f.q_row_heads, " and ", f.kv_row_heads,
                                ", scale ", f.scale);
}

std::int64_t expected_workspace_bytes(const SdpaForm& f) {
  if (f.pass == Pass::forward) return f.ragged ? 32768 : 256;
  // The sums of dq and rowsum(dout out) in float32; dk and dv of each query head of a group.
  const std::int64_t q_rows = f.ragged ? f.q_total : f.batch * f.q_rows,
                     k_rows = f.ragged ? f.k_total : f.batch * f.k_rows;
  std::int64_t bytes = 4 * f.heads * q_rows * (f.dim + 1);
  if (f.heads > f.kv_heads) bytes += 2 * f.heads * k_rows * (f.dim + f.value_dim);
  if (f.deterministic) bytes += 2 * f.batch * f.heads * f.q_rows * f.k_rows;
  return bytes + 65536;
}

}  // namespace longhaul::attention::detail
