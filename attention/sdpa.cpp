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
      // It lays its float32 sums out by the operands' offsets, so wider rows would leave its
      // memory.
      f.q_row_heads = f.heads;
      f.kv_row_heads = f.kv_heads;
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
  const std::int64_t entries = 512 * f.batch + 4096;
  if (f.pass == Pass::forward) {
    // One query is attended to by several blocks, whose partials are merged.
    const std::int64_t parts = f.q_rows == 1 ? 128 * f.batch * f.heads * (f.value_dim + 2) : 0;
    return parts + (f.ragged ? entries + 16384 : 256);
  }
  const std::int64_t q_rows = f.ragged ? f.q_total : f.batch * f.q_rows,
                     k_rows = f.ragged ? f.k_total : f.batch * f.k_rows;
  // rowsum(dout out), and sums of dq in float32.
  std::int64_t bytes = 4 * f.heads * q_rows * (f.deterministic ? 1 : f.dim + 1);
  // dk and dv of each query head of a group, ragged in float32.
  if (f.heads > f.kv_heads) bytes += (f.ragged ? 4 : 2) * f.heads * k_rows * (f.dim + f.value_dim);
  const auto whole = [](std::int64_t rows, std::int64_t tile) {
    return (rows + tile - 1) / tile * tile;
  };
  if (f.deterministic) bytes += 2 * f.batch * f.heads * whole(f.q_rows, 64) * whole(f.k_rows, 128);
  return bytes + entries;
}

}  // namespace longhaul::attention::detail
