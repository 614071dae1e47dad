#include "tests/support/attention_case.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "attention/block_impl.h"
#include "tests/support/held_tensor.h"

namespace longhaul::test {

using attention::Mode;
using attention::Slice;
using runtime::BFloat16;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

void AttentionCase::fill(std::uint32_t seed, float magnitude) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-magnitude, magnitude);
  const auto make = [&](std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& x : values)
      x = bf16 ? static_cast<float>(BFloat16(uniform(random))) : uniform(random);
    return values;
  };
  scoring.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  q = make(q_rows * heads * dim);
  k = make(k_rows * kv_heads * dim);
  v = make(k_rows * kv_heads * value_dim);
  dout = make(q_rows * heads * value_dim);
}

bool AttentionCase::on_tiles() const {
  return attention::detail::amx_computes({.activation = bf16 ? DType::bfloat16 : DType::float32},
                                         scoring);
}

bool AttentionResult::operator==(const AttentionResult& other) const {
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  };
  return same(out, other.out) && same(lse, other.lse) && same(lse_low, other.lse_low) &&
         same(dq, other.dq) && same(dk, other.dk) && same(dv, other.dv) &&
         same(dsinks, other.dsinks);
}

void AttentionResult::set_lse(const std::vector<float>& parts) {
  lse.clear();
  lse_low.clear();
  for (std::size_t i = 0; i < parts.size(); ++i) (i % 2 == 0 ? lse : lse_low).push_back(parts[i]);
}

std::vector<float> AttentionResult::lse_parts() const {
  std::vector<float> parts;
  for (std::size_t i = 0; i < lse.size(); ++i) parts.insert(parts.end(), {lse[i], lse_low[i]});
  return parts;
}

std::vector<BlockCall> block_calls(const AttentionCase& c, std::vector<std::int64_t> key_cuts) {
  key_cuts.push_back(c.k_rows);
  std::vector<BlockCall> calls;
  std::int64_t begin = 0;
  for (const std::int64_t end : key_cuts) {
    const Mode q_mode = calls.empty() ? Mode::write : Mode::add;
    const auto add = [&](BlockCall call, const std::vector<Slice>& bands) {
      for (const Slice& band : bands) {
        Slice cut = attention::tightened(attention::intersect(band, {0, c.q_rows, begin, end}));
        if (cut.q_begin == cut.q_end) continue;
        cut.k_begin -= begin;
        cut.k_end -= begin;
        if (cut.lo > -attention::kUnbounded / 2) cut.lo -= begin;
        if (cut.hi < attention::kUnbounded / 2) cut.hi -= begin;
        call.bands.push_back(cut);
      }
      calls.push_back(std::move(call));
    };
    if (c.head_bands.empty()) {
      add({begin, end, 0, c.heads, 0, c.kv_heads, {}, q_mode, Mode::write}, c.bands);
    }
    for (std::int64_t head = 0; head < static_cast<std::int64_t>(c.head_bands.size()); ++head) {
      const std::int64_t group = c.heads / c.kv_heads, kv_head = head / group;
      add({begin,
           end,
           head,
           head + 1,
           kv_head,
           kv_head + 1,
           {},
           q_mode,
           head % group == 0 ? Mode::write : Mode::add},
          c.head_bands[static_cast<std::size_t>(head)]);
    }
    begin = end;
  }
  return calls;
}

TensorView heads_of(const BlockCall& call, const TensorView& view) {
  return view.data() == nullptr ? view : view.slice(1, call.head_begin, call.head_end);
}
TensorView keys_of(const BlockCall& call, const TensorView& view) {
  return view.slice(0, call.key_begin, call.key_end).slice(1, call.kv_head_begin, call.kv_head_end);
}

AttentionResult run_kernel(const AttentionCase& c, const KernelOptions& options) {
  const Stream stream = Stream::cpu("kernel", options.threads);
  const DType dtype = c.bf16 ? DType::bfloat16 : DType::float32;
  const auto held = [&](std::int64_t rows, std::int64_t heads, std::int64_t dim, DType type) {
    return Held(rows, heads, dim, type, options.strided, stream);
  };
  Held q = held(c.q_rows, c.heads, c.dim, dtype), k = held(c.k_rows, c.kv_heads, c.dim, dtype);
  Held v = held(c.k_rows, c.kv_heads, c.value_dim, dtype),
       dout = held(c.q_rows, c.heads, c.value_dim, dtype);
  q.set(c.q);
  k.set(c.k);
  v.set(c.v);
  dout.set(c.dout);
  const auto inputs = [&] { return std::vector{q.bytes(), k.bytes(), v.bytes(), dout.bytes()}; };
  const auto before = inputs();
  const Held out = held(c.q_rows, c.heads, c.value_dim, DType::float32),
             lse = held(c.q_rows, c.heads, 2, DType::float32);
  const Held delta = held(c.q_rows, c.heads, 1, DType::float32),
             dq = held(c.q_rows, c.heads, c.dim, DType::float32);
  const Held dk = held(c.k_rows, c.kv_heads, c.dim, DType::float32);
  const Held dv = held(c.k_rows, c.kv_heads, c.value_dim, DType::float32);

  const auto n_sinks = static_cast<std::int64_t>(c.sinks.size());
  const Tensor sinks({n_sinks}, DType::float32, stream), dsinks({n_sinks}, DType::float32, stream);
  std::copy(c.sinks.begin(), c.sinks.end(), sinks.as<float>());
  std::fill_n(dsinks.as<float>(), n_sinks, std::numeric_limits<float>::quiet_NaN());
  const TensorView row_lse = c.sigmoid() ? TensorView{} : lse.view(),
                   row_delta = c.sigmoid() ? TensorView{} : delta.flat();

  const std::vector<BlockCall> calls = block_calls(c, options.key_cuts);
  for (const BlockCall& call : calls) {
    attention::block_forward(
        heads_of(call, q.view()), keys_of(call, k.view()), keys_of(call, v.view()), call.bands,
        c.scoring, heads_of(call, out.view()), heads_of(call, row_lse), call.q_mode, stream);
  }
  if (n_sinks > 0) attention::apply_sinks(out.view(), row_lse, sinks, stream);
  if (!c.sigmoid()) attention::block_delta(out.view(), dout.view(), row_delta, stream);
  for (const BlockCall& call : calls) {
    attention::block_backward(
        {heads_of(call, q.view()), keys_of(call, k.view()), keys_of(call, v.view()),
         heads_of(call, dout.view()), heads_of(call, row_lse), heads_of(call, row_delta)},
        call.bands, c.scoring, heads_of(call, dq.view()), call.q_mode, keys_of(call, dk.view()),
        keys_of(call, dv.view()), call.kv_mode, stream);
  }
  if (n_sinks > 0) attention::sinks_backward(row_lse, row_delta, sinks, dsinks, stream);
  stream.synchronize(runtime::deadline_in(options.seconds));
  EXPECT_TRUE(inputs() == before) << "a kernel wrote into its inputs";
  AttentionResult result{.out = out.get(),
                         .dq = dq.get(),
                         .dk = dk.get(),
                         .dv = dv.get(),
                         .dsinks = {dsinks.as<float>(), dsinks.as<float>() + n_sinks}};
  if (!c.sigmoid()) result.set_lse(lse.get());
  return result;
}

template <class T>
attention::ReferenceResult<T> run_reference(const AttentionCase& c, bool magnitudes) {
  const auto as = [&](const std::vector<float>& x) { return std::vector<T>(x.begin(), x.end()); };
  const auto rounded = [&](const std::vector<float>& x) {
    std::vector<T> values = as(x);
    for (T& value : values) {
      if (c.bf16) value = static_cast<T>(static_cast<float>(BFloat16(static_cast<float>(value))));
    }
    return values;
  };
  const std::vector<T> q = rounded(c.q), k = rounded(c.k), v = rounded(c.v), dout = rounded(c.dout);
  attention::ReferenceInputs<T> inputs{c.q_rows, c.k_rows, c.heads, c.kv_heads, c.dim, c.value_dim};
  inputs.q = q;
  inputs.k = k;
  inputs.v = v;
  inputs.dout = dout;
  inputs.scale = c.scoring.scale;
  inputs.softcap = c.scoring.softcap;
  inputs.weighting = c.scoring.weighting;
  inputs.bias = c.scoring.bias;
  inputs.magnitudes = magnitudes;
  const std::vector<T> sinks = as(c.sinks);
  inputs.sinks = sinks;
  if (c.head_bands.empty()) return attention::reference_attention<T>(inputs, c.bands);
  return attention::reference_attention<T>(inputs, c.head_bands);
}
template attention::ReferenceResult<double> run_reference(const AttentionCase&, bool);
template attention::ReferenceResult<float> run_reference(const AttentionCase&, bool);

double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(size > 0 ? difference / size : difference);
}

namespace {

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

/// Errors in norm, relative to what they are errors of.
struct Bounds {
  double out, dq, dk, dv, dsinks;
  double cancelling;  ///< of gradients, relative to their terms' magnitudes, where that is more
  double lse;         ///< times max(1, |lse|)
};

void expect_within(const Bounds& bounds, const AttentionCase& which, const AttentionResult& got,
                   const attention::ReferenceResult<double>& exact) {
  using Result = attention::ReferenceResult<double>;
  using Magnitude = std::vector<double> Result::*;
  std::optional<Result> magnitudes;  // only where a bound needs them
  const auto check = [&](const char* what, const std::vector<float>& a,
                         const std::vector<double>& b, double bound, Magnitude magnitude) {
    const double error = relative_error(a, b);
    if (error > bound && magnitude != nullptr) {
      if (!magnitudes) magnitudes = run_reference<double>(which, true);
      const double size = norm(b);
      bound = std::max(bound,
                       bounds.cancelling * norm((*magnitudes).*magnitude) / (size > 0 ? size : 1));
    }
    EXPECT_TRUE(error <= bound) << what << ": relative error " << error << ", bound " << bound;
  };
  check("out", got.out, exact.out, bounds.out, nullptr);
  if (!exact.dq.empty() || !exact.dk.empty()) {
    check("dq", got.dq, exact.dq, bounds.dq, &Result::dq_magnitude);
    check("dk", got.dk, exact.dk, bounds.dk, &Result::dk_magnitude);
    check("dv", got.dv, exact.dv, bounds.dv, &Result::dv_magnitude);
    check("dsinks", got.dsinks, exact.dsinks, bounds.dsinks, &Result::dsinks_magnitude);
  }
  ASSERT_EQ(got.lse.size(), exact.lse.size());
  ASSERT_EQ(got.lse_low.size(), exact.lse.size());
  for (std::size_t i = 0; i < got.lse.size(); ++i) {
    if (std::isinf(exact.lse[i])) {
      ASSERT_EQ(got.lse[i], -std::numeric_limits<float>::infinity()) << "lse " << i;
      ASSERT_EQ(got.lse_low[i], 0) << "lse " << i;
    } else {
      ASSERT_NEAR(got.lse[i], exact.lse[i], bounds.lse * std::max(1.0, std::abs(exact.lse[i])))
          << "lse " << i;
      ASSERT_EQ(got.lse[i] + got.lse_low[i], got.lse[i]) << "lse " << i << " and its low part";
    }
  }
}

}  // namespace

void expect_matches_in_bfloat16(const AttentionCase& which, const AttentionResult& got,
                                double lse_bound) {
  expect_within({4e-3, 6e-3, 6e-3, 6e-3, 6e-3, 0x1p-9, lse_bound}, which, got,
                run_reference<double>(which));
}

void expect_matches_reference(const AttentionCase& which, const AttentionResult& got) {
  if (which.on_tiles()) return expect_matches_in_bfloat16(which, got, 5e-4);
  const auto exact = run_reference<double>(which);
  const auto plain = run_reference<float>(which);
  const auto bound = [](const std::vector<float>& p, const std::vector<double>& b) {
    return std::max(3e-6, 2 * relative_error(p, b));
  };
  // Where a sum cancels, two float32 units in the last place of its terms' magnitudes.
  expect_within({bound(plain.out, exact.out), bound(plain.dq, exact.dq), bound(plain.dk, exact.dk),
                 bound(plain.dv, exact.dv), bound(plain.dsinks, exact.dsinks), 0x1p-22, 1e-5},
                which, got, exact);
}

}  // namespace longhaul::test
