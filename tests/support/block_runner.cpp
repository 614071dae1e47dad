#include "tests/support/block_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/attention_kinds.h"
#include "tests/support/on_device.h"
#include "tests/support/random_masks.h"

namespace longhaul::test {
namespace {

using attention::kUnbounded;
using attention::Mode;
using attention::Slice;
using runtime::BFloat16;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

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

attention::BlockShape shape_shown(runtime::ConstTensorView q, runtime::ConstTensorView k,
                                  runtime::ConstTensorView v) {
  attention::BlockShape s{q.size(0), k.size(0), q.size(1), k.size(1),
                          q.size(2), v.size(2), q.dtype()};
  // Some heads of rows that hold more.
  const auto row_heads = [](const runtime::ConstTensorView& view) {
    const std::int64_t dim = view.size(2);
    return view.stride(1) == dim && view.stride(0) % dim == 0 ? view.stride(0) / dim : 0;
  };
  s.q_row_heads = row_heads(q);
  s.kv_row_heads = row_heads(k);
  return s;
}

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
                 lse = held(c.q_rows, c.heads, 2, DType::float32);
  const OnDevice part_out = held(c.q_rows, c.heads, c.value_dim, DType::float32);
  const OnDevice part_lse = held(c.q_rows, c.heads, 2, DType::float32),
                 delta = held(c.q_rows, c.heads, 1, DType::float32);
  const OnDevice dq = held(c.q_rows, c.heads, c.dim, DType::float32);
  const OnDevice dk = held(c.k_rows, c.kv_heads, c.dim, DType::float32),
                 dv = held(c.k_rows, c.kv_heads, c.value_dim, DType::float32);
  const auto n_sinks = static_cast<std::int64_t>(c.sinks.size());
  const OnDevice sinks = held(n_sinks, 1, 1, DType::float32),
                 dsinks = held(n_sinks, 1, 1, DType::float32);
  sinks.set(c.sinks, stream);
  const TensorView none, row_lse = c.sigmoid() ? none : lse.view(),
                         row_delta = c.sigmoid() ? none : delta.flat();
  const std::vector<BlockCall> calls = block_calls(c, options.key_cuts);
  for (const BlockCall& call : calls) {
    const auto own = [&](const TensorView& view) { return heads_of(call, view); };
    const bool apart = options.merged && call.q_mode == Mode::add;
    const TensorView part_row_lse = c.sigmoid() ? none : part_lse.view();
    device.forward(own(q.view()), keys_of(call, k.view()), keys_of(call, v.view()), call.bands,
                   c.scoring, own((apart ? part_out : out).view()),
                   own(apart ? part_row_lse : row_lse), apart ? Mode::write : call.q_mode, stream);
    if (!apart) continue;
    if (c.sigmoid()) {
      runtime::accumulate(own(part_out.view()), own(out.view()), stream);
    } else {
      device.merge(own(part_out.view()), own(part_row_lse), own(out.view()), own(row_lse), stream);
    }
  }
  const auto each_head = [](const OnDevice& tensor) {
    TensorView view;
    view.assign(tensor.view().data(), DType::float32, tensor.view().device(), 1,
                {tensor.view().size(0)}, {tensor.view().stride(0)});
    return view;
  };
  if (n_sinks > 0) device.apply_sinks(out.view(), row_lse, each_head(sinks), stream);
  if (!c.sigmoid()) device.delta(out.view(), dout.view(), row_delta, stream);
  for (const BlockCall& call : calls) {
    const auto own = [&](const TensorView& view) { return heads_of(call, view); };
    device.backward({own(q.view()), keys_of(call, k.view()), keys_of(call, v.view()),
                     own(dout.view()), own(row_lse), own(row_delta)},
                    call.bands, c.scoring, own(dq.view()), call.q_mode, keys_of(call, dk.view()),
                    keys_of(call, dv.view()), call.kv_mode, stream);
  }
  if (n_sinks > 0)
    device.sinks_backward(row_lse, row_delta, each_head(sinks), each_head(dsinks), stream);
  AttentionResult result{.out = out.get(stream),
                         .dq = dq.get(stream),
                         .dk = dk.get(stream),
                         .dv = dv.get(stream),
                         .dsinks = dsinks.get(stream)};
  if (!c.sigmoid()) result.set_lse(lse.get(stream));
  return result;
}

namespace {

/// Softcap, sigmoid, sinks, masks of each head; also with inputs that break careless kernels.
void add_scoring_cases(bool quick, std::vector<NamedCase>& cases) {
  for (const NamedScoring& scoring : scoring_kinds()) {
    const auto add = [&](const std::string& what, AttentionCase c, BlockOptions options = {}) {
      scoring.apply(c);
      cases.push_back({scoring.name + ", " + what, std::move(c), std::move(options)});
    };
    add("in parts", make(67, 70, 2, 1, 24, 40, causal(67, 70, 11)), {.key_cuts = {20, 21}});
    add("merged", make(67, 70, 2, 1, 24, 40, causal(67, 70, -9)),
        {.key_cuts = {33}, .merged = true});
    for (const bool bf16 : {false, true}) {
      if (quick && !bf16) continue;
      add("MQA", make(33, 40, 4, 1, 100, 70, {{0, 33, 0, 40, -5, 9}}, bf16));
      add("MHA", make(33, 40, 2, 2, 192, 128, causal(33, 40, 7), bf16));
    }
    AttentionCase apart = make(40, 45, 4, 2, 8, 8, {});
    apart.head_bands = {causal(40, 45), {}, {{0, 40, 0, 45}}, {{0, 40, 3, 45, -2, 6}}};
    add("a mask a head", apart, {.key_cuts = {19}});
    AttentionCase steep = make(30, 40, 2, 1, 24, 24, causal(30, 40, 10));
    for (float& x : steep.q) x *= 90;
    add("steep", steep, {.key_cuts = {17}});
    if (scoring.scoring.softcap > 0) {
      // Scores of +-infinity, of one sign a key.
      AttentionCase endless = make(30, 40, 2, 1, 24, 24, causal(30, 40, 10));
      for (float& x : endless.q) x = (1 + std::abs(x)) * 1e25f;
      for (std::size_t i = 0; i < endless.k.size(); ++i)
        endless.k[i] = (1 + std::abs(endless.k[i])) * (i / 24 % 3 == 0 ? -1e25f : 1e25f);
      add("endless scores", endless, {.key_cuts = {17}});
    }
    if (quick) continue;
    for (const auto& [name, bands] : band_kinds(130, 150)) {
      add(name, make(130, 150, 2, 1, 20, 12, bands));
      add(name + ", in parts", make(130, 150, 2, 1, 20, 12, bands), {.key_cuts = {50, 50, 149}});
    }
  }
}

/// What one document holds, NaN included, changes no bit of the other's results.
void expect_documents_apart(const BlockDevice& device, std::int64_t tokens, std::int64_t split) {
  for (const NamedScoring& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    const TwoDocuments clean(tokens, split, scoring);
    TwoDocuments changed = clean;
    changed.replace_first([](float) { return std::numeric_limits<float>::quiet_NaN(); });
    EXPECT_EQ(changed.second(run_block(device, changed.which)),
              clean.second(run_block(device, clean.which)));
  }
}

/// delta against its definition, in both dtypes and in layouts that can be loaded by 16 bytes and
/// that cannot, which give the same bits.
void expect_deltas(const BlockDevice& device) {
  struct Sizes {
    std::int64_t rows, heads, dim;
  };
  for (const auto& [rows, heads, dim] :
       {Sizes{0, 2, 8}, Sizes{1, 1, 1}, Sizes{7, 3, 20}, Sizes{5, 5, 64}, Sizes{2, 37, 128},
        Sizes{3, 127, 8}, Sizes{3, 2, 264}, Sizes{2, 1, 1031}}) {
    const std::vector<double> a = random_values(rows * heads * dim, 1, true),
                              b = random_values(rows * heads * dim, 2, true);
    std::vector<double> expected, scale;
    for (std::size_t at = 0; at < a.size(); ++at) {
      if (at % static_cast<std::size_t>(dim) == 0) expected.push_back(0), scale.push_back(0);
      expected.back() += a[at] * b[at];
      scale.back() += std::abs(a[at] * b[at]);
    }
    for (const DType out_dtype : {DType::float32, DType::bfloat16}) {
      for (const DType dout_dtype : {DType::float32, DType::bfloat16}) {
        std::vector<std::vector<float>> results;
        for (const std::int64_t gap : {0, 8, 3}) {
          const bool strided = gap > 0;
          const OnDevice out(rows, heads, dim, out_dtype, strided, device.stream, gap),
              dout(rows, heads, dim, dout_dtype, strided, device.stream, gap),
              delta(rows, heads, 1, DType::float32, strided, device.stream, gap);
          out.set({a.begin(), a.end()}, device.stream);
          dout.set({b.begin(), b.end()}, device.stream);
          device.delta(out.view(), dout.view(), delta.flat(), device.stream);
          results.push_back(delta.get(device.stream));
          SCOPED_TRACE(runtime::concat(rows, " x ", heads, " x ", dim, " gap ", gap, " out ",
                                       name(out_dtype), " dout ", name(dout_dtype)));
          ASSERT_EQ(results.back().size(), expected.size());
          for (std::size_t i = 0; i < expected.size(); ++i)
            EXPECT_NEAR(results.back()[i], expected[i], 64 * 0x1p-24 * scale[i]) << i;
          EXPECT_EQ(results.back(), results[0]) << "other bits than where it is contiguous";
        }
      }
    }
  }
}

}  // namespace

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
  for (const float offset : {10048.f, -10048.f}) {
    for (const bool bf16 : {false, true}) {
      AttentionCase c = make(67, 90, 4, 2, 24, 16, causal(67, 90, 23), bf16);
      if (bf16) c.sinks = {0.5f, 3, -1, -std::numeric_limits<float>::infinity()};
      share_offset(c, offset);
      const std::string name = runtime::concat("scores near ", offset, bf16 ? " bf16, sinks" : "");
      cases.push_back({name, c});
      cases.push_back({name + ", in parts", c, {.key_cuts = {30, 61}}});
      cases.push_back({name + ", merged", c, {.key_cuts = {1, 50}, .merged = true}});
    }
  }
  add_scoring_cases(quick, cases);
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
  expect_deltas(device);
  expect_documents_apart(device, quick ? 50 : 300, quick ? 27 : 161);
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
