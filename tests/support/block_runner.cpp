#include "tests/support/block_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "tests/support/random_masks.h"

namespace longhaul::test {
namespace {

using attention::kUnbounded;
using attention::Mode;
using attention::Slice;
using runtime::BFloat16;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

constexpr double kSeconds = 600;

/// A device tensor [rows, heads, dim], plain or, strided, as [heads, rows, dim + 3]; all NaN at
/// first.
class OnDevice {
 public:
  OnDevice(std::int64_t rows, std::int64_t heads, std::int64_t dim, DType dtype, bool strided,
           const Stream& stream)
      : memory_({rows * heads * (dim + 3)}, dtype, stream) {
    const std::int64_t row = strided ? dim + 3 : heads * dim,
                       head = strided ? rows * (dim + 3) : dim;
    view_.assign(memory_.view().data(), dtype, stream.device(), 3, {rows, heads, dim},
                 {row, head, 1});
    fill(memory_, std::numeric_limits<double>::quiet_NaN(), stream);
  }
  const TensorView& view() const { return view_; }
  TensorView flat() const {
    TensorView flat;
    flat.assign(view_.data(), view_.dtype(), view_.device(), 2, {view_.size(0), view_.size(1)},
                {view_.stride(0), view_.stride(1)});
    return flat;
  }
  void set(const std::vector<float>& values, const Stream& stream) {
    const Tensor wide(view_.sizes(), DType::float32, stream);
    runtime::copy(ConstTensorView(reinterpret_cast<const std::byte*>(values.data()), DType::float32,
                                  {}, view_.sizes()),
                  wide, stream);
    runtime::copy(wide, view_, stream);  // exact: the values are rounded already
  }
  std::vector<float> get(const Stream& stream) const {
    std::vector<float> values(static_cast<std::size_t>(view_.elements()));
    const Tensor plain(view_.sizes(), DType::float32, stream);
    runtime::copy(view_, plain, stream);
    runtime::copy(
        plain,
        TensorView(reinterpret_cast<std::byte*>(values.data()), DType::float32, {}, view_.sizes()),
        stream);
    stream.synchronize(runtime::deadline_in(kSeconds));
    return values;
  }

 private:
  Tensor memory_;
  TensorView view_;
};

struct Part {
  std::int64_t begin, end;
  std::vector<Slice> bands;
};

std::vector<Part> parts_of(const AttentionCase& c, std::vector<std::int64_t> ends) {
  ends.push_back(c.k_rows);
  std::vector<Part> parts;
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    Part part{begin, end, {}};
    for (const Slice& band : c.bands) {
      Slice cut = attention::tightened(attention::intersect(band, {0, c.q_rows, begin, end}));
      if (cut.q_begin == cut.q_end) continue;
      cut.k_begin -= begin;
      cut.k_end -= begin;
      if (cut.lo > -kUnbounded / 2) cut.lo -= begin;
      if (cut.hi < kUnbounded / 2) cut.hi -= begin;
      part.bands.push_back(cut);
    }
    parts.push_back(part);
    begin = end;
  }
  return parts;
}

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t dim, std::int64_t value_dim,
                   std::vector<Slice> bands, bool bf16 = false) {
  AttentionCase c{q_rows, k_rows, heads, kv_heads, dim, value_dim, std::move(bands)};
  c.bf16 = bf16;
  c.fill(7);
  return c;
}

std::vector<Slice> causal(std::int64_t q_rows, std::int64_t k_rows, std::int64_t offset = 0) {
  return {{0, q_rows, 0, k_rows, -kUnbounded, offset}};
}

}  // namespace

AttentionResult run_block(const BlockDevice& device, const AttentionCase& c,
                          const BlockOptions& options) {
  const Stream& stream = device.stream;
  const DType dtype = c.bf16 ? DType::bfloat16 : DType::float32;
  const auto held = [&](std::int64_t rows, std::int64_t heads, std::int64_t dim, DType type) {
    return OnDevice(rows, heads, dim, type, options.strided, stream);
  };
  OnDevice q = held(c.q_rows, c.heads, c.dim, dtype), k = held(c.k_rows, c.kv_heads, c.dim, dtype);
  OnDevice v = held(c.k_rows, c.kv_heads, c.value_dim, dtype),
           dout = held(c.q_rows, c.heads, c.value_dim, dtype);
  q.set(c.q, stream);
  k.set(c.k, stream);
  v.set(c.v, stream);
  dout.set(c.dout, stream);
  const OnDevice out = held(c.q_rows, c.heads, c.value_dim, DType::float32),
                 lse = held(c.q_rows, c.heads, 1, DType::float32);
  const OnDevice part_out = held(c.q_rows, c.heads, c.value_dim, DType::float32);
  const OnDevice part_lse = held(c.q_rows, c.heads, 1, DType::float32),
                 delta = held(c.q_rows, c.heads, 1, DType::float32);
  const OnDevice dq = held(c.q_rows, c.heads, c.dim, DType::float32);
  const OnDevice dk = held(c.k_rows, c.kv_heads, c.dim, DType::float32),
                 dv = held(c.k_rows, c.kv_heads, c.value_dim, DType::float32);
  const std::vector<Part> parts = parts_of(c, options.key_cuts);
  const auto keys = [](const OnDevice& tensor, const Part& part) {
    return tensor.view().slice(0, part.begin, part.end);
  };
  Mode mode = Mode::write;
  for (const Part& part : parts) {
    const bool apart = options.merged && mode == Mode::add;
    device.forward(q.view(), keys(k, part), keys(v, part), part.bands, c.scale,
                   (apart ? part_out : out).view(), (apart ? part_lse : lse).flat(),
                   apart ? Mode::write : mode, stream);
    if (apart) device.merge(part_out.view(), part_lse.flat(), out.view(), lse.flat(), stream);
    mode = Mode::add;
  }
  device.delta(out.view(), dout.view(), delta.flat(), stream);
  mode = Mode::write;
  for (const Part& part : parts) {
    device.backward({q.view(), keys(k, part), keys(v, part), dout.view(), lse.flat(), delta.flat()},
                    part.bands, c.scale, dq.view(), mode, keys(dk, part), keys(dv, part),
                    Mode::write, stream);
    mode = Mode::add;
  }
  return {out.get(stream), lse.get(stream), dq.get(stream), dk.get(stream), dv.get(stream)};
}

std::vector<NamedCase> block_cases(bool quick) {
  std::vector<NamedCase> cases;
  const std::vector<std::int64_t> lengths =
      quick ? std::vector<std::int64_t>{0, 1, 67} : std::vector<std::int64_t>{0, 1, 7, 127, 1000};
  for (const std::int64_t q : lengths) {
    for (const std::int64_t k : lengths) {
      cases.push_back(
          {runtime::concat("full ", q, " x ", k), make(q, k, 2, 1, 16, 16, {{0, q, 0, k}})});
      cases.push_back(
          {runtime::concat("causal ", q, " x ", k), make(q, k, 2, 1, 16, 16, causal(q, k))});
    }
  }
  for (const std::int64_t dim : {1, 20, 64, 80, 128, 256}) {
    if (quick && (dim == 1 || dim == 80)) continue;
    for (const bool bf16 : {false, true}) {
      cases.push_back({runtime::concat("dim ", dim, bf16 ? " bf16" : ""),
                       make(41, 75, 4, 2, dim, dim == 64 ? 24 : dim, causal(41, 75, 30), bf16)});
    }
  }
  cases.push_back({"values wider than keys", make(33, 70, 2, 2, 40, 100, causal(33, 70, 11))});
  for (const std::int64_t group : {1, 4, 8}) {
    cases.push_back(
        {runtime::concat("group ", group), make(35, 66, 2 * group, 2, 8, 8, causal(35, 66, 20))});
  }
  std::vector<Slice> single, documents;
  for (std::int64_t i = 0; i < 130; ++i) single.push_back({i, i + 1, i, i + 1});
  for (std::int64_t at = 0, length = 1; at < 130; at += length, length = length % 13 + 1) {
    const std::int64_t end = std::min<std::int64_t>(at + length, 130);
    documents.push_back({at, end, at, end, -kUnbounded, 0});
  }
  const std::pair<const char*, std::vector<Slice>> kinds[] = {
      {"nothing", {}},
      {"causal ahead", causal(130, 150, 57)},
      {"causal behind, first rows empty", causal(130, 150, -61)},
      {"window", {{0, 130, 0, 150, -30, 0}}},
      {"both sides", {{0, 130, 0, 150, -9, 14}}},
      {"inverse causal", {{0, 130, 0, 150, 3, kUnbounded}}},
      {"documents of one token", single},
      {"short documents", documents},
      {"prefix and window", {{0, 130, 0, 11}, {0, 130, 11, 150, -20, 0}}},
      {"rows in the middle empty", {{0, 50, 0, 70}, {80, 130, 70, 150}}},
      {"keys at both ends unseen", {{0, 130, 20, 130}}}};
  for (const auto& [name, bands] : kinds) {
    cases.push_back({name, make(130, 150, 2, 1, 20, 12, bands)});
    if (quick && bands.size() > 1) continue;
    cases.push_back({runtime::concat(name, ", in parts"),
                     make(130, 150, 2, 1, 20, 12, bands),
                     {.key_cuts = {50, 50, 149}}});
    cases.push_back({runtime::concat(name, ", merged"),
                     make(130, 150, 2, 1, 20, 12, bands),
                     {.key_cuts = {1, 64}, .merged = true}});
  }
  std::mt19937 random(5);
  for (int round = 0; round < (quick ? 6 : 100); ++round) {
    const std::int64_t q = 1 + static_cast<std::int64_t>(random() % 160),
                       k = 1 + static_cast<std::int64_t>(random() % 160);
    cases.push_back(
        {runtime::concat("random ", round),
         make(q, k, 2, 1, 8, 8,
              random_disjoint_slices(q, k, 1 + static_cast<int>(random() % 6), random))});
  }
  return cases;
}

void expect_block_contract(const BlockDevice& device, bool quick) {
  for (const auto& [name, which, options] : block_cases(quick)) {
    SCOPED_TRACE(name);
    const AttentionResult result = run_block(device, which, options);
    expect_matches_reference(which, result);
    if (quick) continue;
    EXPECT_EQ(run_block(device, which, options), result) << "a second run gives other bits";
    BlockOptions strided = options;
    strided.strided = true;
    EXPECT_EQ(run_block(device, which, strided), result) << "strided views give other bits";
  }
}

}  // namespace longhaul::test
