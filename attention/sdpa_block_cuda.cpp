// A block call as calls of cuDNN's: each computes some rows in bfloat16 into scratch memory, and a
// kernel takes them from there into the float32 views.

#include "attention/sdpa_block_impl.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "attention/sdpa.h"
#include "attention/sdpa_glue_impl.h"
#include "attention/sdpa_plan.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

constexpr std::int64_t kBFloat16Bytes = 2;

/// What the device reads of a plan.
class Table {
 public:
  template <class T>
  std::int64_t add(const std::vector<T>& values) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16, size = values.size() * sizeof(T);
    bytes_.resize(at + size);
    if (size > 0) std::memcpy(bytes_.data() + at, values.data(), size);
    return static_cast<std::int64_t>(at);
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Rows of a view that calls have touched so far.
class Touched {
 public:
  /// Adds [begin, end) to `to`, cut into what is new and what is not.
  void claim(std::int64_t begin, std::int64_t end, std::vector<RowRange>& to) {
    while (begin < end) {
      auto next = ends_.upper_bound(begin);  // the first range that ends behind
      if (next != ends_.end() && next->second <= begin) {
        const std::int64_t until = std::min(end, next->first);
        append(begin, until, Take::again, to);
        begin = until;
        continue;
      }
      const std::int64_t until = next == ends_.end() ? end : std::min(end, next->second);
      append(begin, until, Take::first, to);
      ends_[until] = begin;
      begin = until;
    }
  }
  /// Those of [0, rows) that no call has.
  std::vector<RowRange> rest(std::int64_t rows) const {
    std::vector<RowRange> ranges;
    std::int64_t at = 0;
    for (const auto& [end, begin] : ends_) {
      append(at, begin, Take::none, ranges);
      at = end;
    }
    append(at, rows, Take::none, ranges);
    return ranges;
  }

 private:
  /// `before` holds the end until finish() makes sums of it.
  static void append(std::int64_t begin, std::int64_t end, Take take, std::vector<RowRange>& to) {
    if (begin >= end) return;
    if (!to.empty() && to.back().before == begin && to.back().take == take) {
      to.back().before = static_cast<std::int32_t>(end);
    } else {
      to.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), take});
    }
  }
  std::map<std::int64_t, std::int64_t> ends_;  // begin by end
};

/// Ranges in the table.
struct TableRanges {
  std::int64_t at = 0;
  std::int32_t count = 0, rows = 0;
};
TableRanges add_ranges(std::vector<RowRange> ranges, Table& table) {
  TableRanges added{0, static_cast<std::int32_t>(ranges.size()), 0};
  for (RowRange& range : ranges) {
    const std::int32_t size = range.before - range.begin;
    range.before = added.rows;
    added.rows += size;
  }
  added.at = table.add(ranges);
  return added;
}

/// Where a ragged call's entries are, in the table.
struct TableEntries {
  std::int64_t q_lengths = 0, k_lengths = 0;
  std::int64_t q = 0, k = 0, v = 0, dout = 0, out = 0, lse = 0, dq = 0, dk = 0, dv = 0;
};

struct PlannedCall {
  SdpaForm form;
  std::shared_ptr<const Sdpa> graph;
  std::int64_t q_begin = 0, k_begin = 0;  ///< dense: of the first entry
  TableEntries entries = {};              ///< ragged
  TableRanges q_ranges = {}, k_ranges = {};
};

/// Byte offsets in scratch memory.
struct Scratch {
  std::int64_t out = 0, lse = 0, dq = 0, dk = 0, dv = 0, workspace = 0, bytes = 0;
  std::int64_t q = 0, dout = 0, k = 0, v = 0;  ///< copies whose rows lie together

  std::int64_t take(std::int64_t size) {
    const std::int64_t at = bytes;
    bytes = (at + size + 255) / 256 * 256;
    return at;
  }
};

class SdpaBlockPlan final : public BlockPlan {
 public:
  SdpaBlockPlan(Pass pass, const KernelChoice& choice, const BlockShape& shape,
                const Scoring& scoring, const BlockPlace& place)
      : BlockPlan(pass, shape, scoring, place) {
    Touched q_touched, k_touched;
    std::int64_t lse_floats = 0, workspace_bytes = 0;
    for (const SdpaCall& call : choice.calls) {
      PlannedCall& planned = calls_.emplace_back();
      planned.form = form_of(call, pass, shape, scoring.scale, place.deterministic);
      if (!place.sizes_only) planned.graph = sdpa(planned.form, place.device);
      planned.q_begin = call.pieces.front().q_begin;
      planned.k_begin = call.pieces.front().k_begin;
      std::vector<RowRange> q_ranges, k_ranges;
      for (const Piece& piece : call.pieces) {
        q_touched.claim(piece.q_begin, piece.q_end, q_ranges);
        if (pass == Pass::backward) k_touched.claim(piece.k_begin, piece.k_end, k_ranges);
      }
      planned.q_ranges = add_ranges(std::move(q_ranges), table_);
      planned.k_ranges = add_ranges(std::move(k_ranges), table_);
      if (call.ragged) planned.entries = entries_of(call, planned.form);
      any_ragged_ |= call.ragged;
      workspace_bytes =
          std::max(workspace_bytes, planned.graph ? planned.graph->workspace_bytes()
                                                  : expected_workspace_bytes(planned.form));
      if (!call.ragged) {
        const auto entries = static_cast<std::int64_t>(call.pieces.size());
        lse_floats = std::max(lse_floats, entries * planned.form.q_rows * shape.heads);
      }
    }
    untouched_q_ = add_ranges(q_touched.rest(shape.q_rows), table_);
    if (pass == Pass::backward) untouched_k_ = add_ranges(k_touched.rest(shape.k_rows), table_);
    lay_out(lse_floats, workspace_bytes);
  }

  std::int64_t scratch_bytes() const override { return scratch_.bytes; }
  std::span<const std::byte> table() const override { return table_.bytes(); }

 protected:
  void run_forward(const BlockForwardTensors& t, const BlockMemory& memory,
                   const Stream& stream) const override {
    const Bound q(t.q, shape().heads_of_q_rows(), stream),
        k(t.k, shape().heads_of_kv_rows(), stream), v(t.v, shape().heads_of_kv_rows(), stream);
    for (const PlannedCall& call : calls_) {
      SdpaOperands o = operands(call, q, k, v, memory);
      // A dense call's results lie at the start of scratch memory, aligned.
      o.out = memory.scratch + scratch_.out;
      o.lse = reinterpret_cast<float*>(memory.scratch + scratch_.lse);
      call.graph->run(o, stream);
      take_partial(o.out, o.lse, call.form.ragged ? 0 : call.q_begin, ranges(call.q_ranges, memory),
                   t.mode, t.out, t.lse, stream);
    }
    if (t.mode == Mode::write) {
      take_partial(nullptr, nullptr, 0, ranges(untouched_q_, memory), t.mode, t.out, t.lse, stream);
    }
  }

  void run_backward(const BlockBackwardTensors& t, const BlockMemory& memory,
                    const Stream& stream) const override {
    const BlockShape& s = shape();
    const BlockBackwardInputs& in = t.inputs;
    const Bound q(in.q, shape().heads_of_q_rows(), stream),
        k(in.k, shape().heads_of_kv_rows(), stream), v(in.v, shape().heads_of_kv_rows(), stream),
        dout(in.dout, shape().heads_of_q_rows(), stream);
    std::byte* out = memory.scratch + scratch_.out;
    auto* ragged_lse = reinterpret_cast<float*>(memory.scratch + scratch_.lse);
    float* dense_lse = ragged_lse + (any_ragged_ ? aligned_floats(s.q_rows * s.heads) : 0);
    stand_in_for_out(dout.view(), in.delta, out, stream);
    if (any_ragged_) copy_lse(in.lse, {1, s.q_rows, 0, 0, true}, ragged_lse, stream);
    const Packed packed = any_ragged_ ? packed_of(q, k, v, dout, memory, stream) : Packed();
    for (const PlannedCall& call : calls_) {
      SdpaOperands o = operands(call, q, k, v, memory);
      const std::int64_t q_begin = call.form.ragged ? 0 : call.q_begin,
                         k_begin = call.form.ragged ? 0 : call.k_begin;
      o.dout = dout.row(q_begin);
      if (call.form.ragged) o.q = packed.q, o.k = packed.k, o.v = packed.v, o.dout = packed.dout;
      o.out = out + q_begin * s.heads * s.value_dim * kBFloat16Bytes;
      o.lse = ragged_lse;
      if (!call.form.ragged) {
        o.lse = dense_lse;
        const SdpaForm& f = call.form;
        copy_lse(in.lse, {f.batch, f.q_rows, f.q_step, q_begin, false}, dense_lse, stream);
      }
      std::byte *dq = memory.scratch + scratch_.dq, *dk = memory.scratch + scratch_.dk,
                *dv = memory.scratch + scratch_.dv;
      o.dq = dq + q_begin * s.heads * s.dim * kBFloat16Bytes;
      o.dk = dk + k_begin * s.kv_heads * s.dim * kBFloat16Bytes;
      o.dv = dv + k_begin * s.kv_heads * s.value_dim * kBFloat16Bytes;
      call.graph->run(o, stream);
      take_gradient(dq, ranges(call.q_ranges, memory), t.dq_mode, t.dq, stream);
      take_gradient(dk, ranges(call.k_ranges, memory), t.dkv_mode, t.dk, stream);
      take_gradient(dv, ranges(call.k_ranges, memory), t.dkv_mode, t.dv, stream);
    }
    if (t.dq_mode == Mode::write)
      take_gradient(nullptr, ranges(untouched_q_, memory), t.dq_mode, t.dq, stream);
    if (t.dkv_mode == Mode::write) {
      take_gradient(nullptr, ranges(untouched_k_, memory), t.dkv_mode, t.dk, stream);
      take_gradient(nullptr, ranges(untouched_k_, memory), t.dkv_mode, t.dv, stream);
    }
  }

 private:
  /// An operand whose rows lie as the graphs know them: the caller's, or a copy for this call.
  class Bound {
   public:
    Bound(ConstTensorView view, std::int64_t row_heads, const Stream& stream)
        : view_(view), row_bytes_(row_heads * view.size(2) * kBFloat16Bytes) {
      const std::int64_t rows = view.size(0), heads = view.size(1), dim = view.size(2);
      const bool fits = (view.stride(0) == row_heads * dim || rows <= 1) &&
                        (view.stride(1) == dim || heads == 1) &&
                        reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
      if (fits) return;
      copy_ = stream.allocate(rows * row_bytes_);
      TensorView packed;
      packed.assign(copy_.data(), view.dtype(), view.device(), 3, {rows, heads, dim},
                    {row_heads * dim, dim, 1});
      runtime::copy(view, packed, stream);
      view_ = packed;
    }
    const ConstTensorView& view() const { return view_; }
    const std::byte* row(std::int64_t number) const { return view_.data() + number * row_bytes_; }

   private:
    ConstTensorView view_;
    std::int64_t row_bytes_;
    runtime::Buffer copy_;
  };

  /// What ragged backward graphs read.
  struct Packed {
    const std::byte *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  };
  Packed packed_of(const Bound& q, const Bound& k, const Bound& v, const Bound& dout,
                   const BlockMemory& memory, const Stream& stream) const {
    const auto packed = [&](const Bound& operand, bool wide, std::int64_t at) {
      if (!wide) return operand.row(0);
      const ConstTensorView& view = operand.view();
      const TensorView copy(memory.scratch + at, view.dtype(), view.device(), view.sizes());
      runtime::copy(view, copy, stream);
      return static_cast<const std::byte*>(copy.data());
    };
    return {packed(q, wide_q(), scratch_.q), packed(k, wide_kv(), scratch_.k),
            packed(v, wide_kv(), scratch_.v), packed(dout, wide_q(), scratch_.dout)};
  }
  bool wide_q() const { return shape().heads_of_q_rows() != shape().heads; }
  bool wide_kv() const { return shape().heads_of_kv_rows() != shape().kv_heads; }

  static std::int64_t aligned_floats(std::int64_t count) { return (count + 63) / 64 * 64; }

  /// Entries beyond the pieces have no rows.
  TableEntries entries_of(const SdpaCall& call, const SdpaForm& form) {
    const BlockShape& s = shape();
    std::vector<std::int32_t> q_lengths, k_lengths;
    std::vector<std::int64_t> q_begins, k_begins;
    for (const Piece& piece : call.pieces) {
      q_lengths.push_back(static_cast<std::int32_t>(piece.q_rows()));
      k_lengths.push_back(static_cast<std::int32_t>(piece.k_rows()));
      q_begins.push_back(piece.q_begin);
      k_begins.push_back(piece.k_begin);
    }
    const auto entries = static_cast<std::size_t>(form.batch);
    q_lengths.resize(entries);
    k_lengths.resize(entries);
    q_begins.resize(entries + 1, call.pieces.back().q_end);
    k_begins.resize(entries + 1, call.pieces.back().k_end);
    const auto add = [&](std::vector<std::int64_t> begins, std::int64_t row) {
      for (std::int64_t& begin : begins) begin *= row;
      return table_.add(begins);
    };
    return {table_.add(q_lengths),
            table_.add(k_lengths),
            add(q_begins, form.q_row_heads * s.dim),
            add(k_begins, form.kv_row_heads * s.dim),
            add(k_begins, form.kv_row_heads * s.value_dim),
            add(q_begins, form.q_row_heads * s.value_dim),
            add(q_begins, s.heads * s.value_dim),
            add(q_begins, s.heads),
            add(q_begins, s.heads * s.dim),
            add(k_begins, s.kv_heads * s.dim),
            add(k_begins, s.kv_heads * s.value_dim)};
  }

  void lay_out(std::int64_t dense_lse_floats, std::int64_t workspace_bytes) {
    const BlockShape& s = shape();
    const bool backward = pass() == Pass::backward;
    scratch_.out = scratch_.take(s.q_rows * s.heads * s.value_dim * kBFloat16Bytes);
    const std::int64_t all = aligned_floats(s.q_rows * s.heads);
    // Forward lays any LSE out by rows of the view; backward's dense calls have one of their own.
    scratch_.lse = scratch_.take(
        4 * (backward ? (any_ragged_ ? all : 0) + aligned_floats(dense_lse_floats) : all));
    if (backward) {
      scratch_.dq = scratch_.take(s.q_rows * s.heads * s.dim * kBFloat16Bytes);
      scratch_.dk = scratch_.take(s.k_rows * s.kv_heads * s.dim * kBFloat16Bytes);
      scratch_.dv = scratch_.take(s.k_rows * s.kv_heads * s.value_dim * kBFloat16Bytes);
    }
    const auto copy = [&](std::int64_t& at, std::int64_t rows, std::int64_t heads,
                          std::int64_t dim) {
      at = scratch_.take(rows * heads * dim * kBFloat16Bytes);
    };
    if (backward && any_ragged_ && wide_q()) {
      copy(scratch_.q, s.q_rows, s.heads, s.dim);
      copy(scratch_.dout, s.q_rows, s.heads, s.value_dim);
    }
    if (backward && any_ragged_ && wide_kv()) {
      copy(scratch_.k, s.k_rows, s.kv_heads, s.dim);
      copy(scratch_.v, s.k_rows, s.kv_heads, s.value_dim);
    }
    scratch_.workspace = scratch_.take(workspace_bytes);
  }

  static RowRanges ranges(const TableRanges& of, const BlockMemory& memory) {
    return {reinterpret_cast<const RowRange*>(memory.table + of.at), of.count, of.rows};
  }

  SdpaOperands operands(const PlannedCall& call, const Bound& q, const Bound& k, const Bound& v,
                        const BlockMemory& memory) const {
    const bool ragged = call.form.ragged;
    SdpaOperands o;
    o.q = q.row(ragged ? 0 : call.q_begin);
    o.k = k.row(ragged ? 0 : call.k_begin);
    o.v = v.row(ragged ? 0 : call.k_begin);
    o.workspace = memory.scratch + scratch_.workspace;
    if (!ragged) return o;
    const auto lengths = [&](std::int64_t at) {
      return reinterpret_cast<const std::int32_t*>(memory.table + at);
    };
    const auto offsets = [&](std::int64_t at) {
      return reinterpret_cast<const std::int64_t*>(memory.table + at);
    };
    const TableEntries& e = call.entries;
    o.q_lengths = lengths(e.q_lengths);
    o.k_lengths = lengths(e.k_lengths);
    o.q_offsets = offsets(e.q);
    o.k_offsets = offsets(e.k);
    o.v_offsets = offsets(e.v);
    o.dout_offsets = offsets(e.dout);
    o.out_offsets = offsets(e.out);
    o.lse_offsets = offsets(e.lse);
    o.dq_offsets = offsets(e.dq);
    o.dk_offsets = offsets(e.dk);
    o.dv_offsets = offsets(e.dv);
    return o;
  }

  std::vector<PlannedCall> calls_;
  Table table_;
  TableRanges untouched_q_, untouched_k_;
  Scratch scratch_;
  bool any_ragged_ = false;
};

}  // namespace

std::shared_ptr<const BlockPlan> sdpa_plan(Pass pass, const std::vector<Slice>& bands,
                                           const BlockShape& shape, const Scoring& scoring,
                                           const BlockPlace& place) {
  const KernelChoice choice = choose_kernels(pass, bands, shape, scoring, place);
  if (choice.exact()) return nullptr;
  if (const std::string none = no_sdpa_reason(); !none.empty() && !place.sizes_only) {
    if (place.kernels == Kernels::automatic) return nullptr;
    runtime::fail(runtime::ExitCode::launch, "attention by cuDNN is demanded, but ", none);
  }
  return std::make_shared<const SdpaBlockPlan>(pass, choice, shape, scoring, place);
}

}  // namespace longhaul::attention::detail
