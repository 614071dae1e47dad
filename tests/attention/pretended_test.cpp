// Block calls that only take time.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "attention/block_plan.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

BlockPlace place(const Pretence& pretence) {
  BlockPlace made;
  made.pretence = pretence;
  return made;
}

struct Bands {
  const char* name;
  std::int64_t q_rows, k_rows;
  std::vector<Slice> bands;
};

const std::vector<Bands> kCases{
    {"nothing", 300, 200, {}},
    {"no rows", 0, 0, {}},
    {"one pair", 1, 1, {{0, 1, 0, 1}}},
    {"full", 256, 384, {{0, 256, 0, 384}}},
    {"full, cut tiles", 131, 257, {{0, 131, 0, 257}}},
    {"causal", 389, 389, {{0, 389, 0, 389, -kUnbounded, 0}}},
    {"window", 300, 300, {{0, 300, 0, 300, -6, 0}}},
    {"documents of 1, 127, 129, 0 and 43",
     300,
     300,
     {{0, 1, 0, 1, -kUnbounded, 0},
      {1, 128, 1, 128, -kUnbounded, 0},
      {128, 257, 128, 257, -kUnbounded, 0},
      {257, 300, 257, 300, -kUnbounded, 0}}},
    {"rows that see two bands, and none", 200, 500, {{10, 90, 0, 128}, {40, 130, 300, 411}}},
    {"a tile made full by two bands", 128, 128, {{0, 128, 0, 60}, {0, 128, 60, 128}}},
};

/// The model of pretence.h over every pair.
double seconds_of(Pass pass, const Bands& of, const BlockShape& s, const Pretence& p) {
  std::set<std::int64_t> queries, keys;
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> visible;
  for (const Slice& band : of.bands) {
    for (std::int64_t q = band.q_begin; q < band.q_end; ++q) {
      for (std::int64_t k = band.k_begin; k < band.k_end; ++k) {
        if (k - q < band.lo || k - q > band.hi) continue;
        queries.insert(q);
        keys.insert(k);
        ++visible[{q / 128, k / 128}];
      }
    }
  }
  double pairs = 0;
  for (const auto& [tile, seen] : visible) {
    const std::int64_t rows = std::min<std::int64_t>(128, s.q_rows - 128 * tile.first),
                       columns = std::min<std::int64_t>(128, s.k_rows - 128 * tile.second);
    pairs += static_cast<double>(rows * columns) * (seen == rows * columns ? 1 : p.partial);
  }
  pairs += p.rows * static_cast<double>(queries.size());
  if (pass == Pass::backward) pairs += p.rows * static_cast<double>(keys.size());
  const auto d = static_cast<double>(s.dim), dv = static_cast<double>(s.value_dim);
  // Forward: scores, outputs. Backward: scores again, dP, dV, dQ and dK.
  const double macs = pass == Pass::forward ? d + dv : d + dv + dv + d + d;
  const double flops = 2 * macs * static_cast<double>(s.heads) * pairs;
  return p.slowdown * (p.seconds + flops / p.flops_per_second);
}

TEST(Pretended, SecondsAreTheModels) {
  for (const Bands& of : kCases) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      for (const Pretence& pretence :
           {Pretence{}, Pretence{3e10, 0, 1, 0, 1}, Pretence{1e9, 17, 2.5, 0.25, 3}}) {
        const BlockShape shape{of.q_rows, of.k_rows, 6, 2, 24, 40};
        const auto plan = plan_block(pass, of.bands, shape, {}, place(pretence));
        const double expected = seconds_of(pass, of, shape, pretence);
        EXPECT_NEAR(plan->pretended_seconds(), expected, 1e-12 + 1e-12 * expected) << of.name;
        EXPECT_EQ(plan->scratch_bytes(), 0);
      }
    }
  }
  const BlockShape shape{128, 128, 1, 1, 10, 10};
  const auto plan = plan_block(Pass::backward, {{0, 128, 0, 128}}, shape, {}, place({100, 0, 1}));
  EXPECT_DOUBLE_EQ(plan->pretended_seconds(), 10 * 10 * 128 * 128 / 100.0) << "10 D H a pair";
  EXPECT_EQ(plan_block(Pass::forward, {}, shape, {}, {})->pretended_seconds(), 0)
      << "a plan that computes";
}

/// Outputs of 3 query and 1 key/value heads; strided, as heads of wider tensors.
struct Outputs {
  explicit Outputs(const Stream& stream)
      : q({5, 4, 8}, DType::float32, stream),
        k({7, 2, 8}, DType::float32, stream),
        lse({5, 4, 2}, DType::float32, stream) {
    for (const Tensor* tensor : {&q, &k, &lse}) runtime::fill(*tensor, NAN, stream);
  }
  Tensor q, k, lse;
};
/// How many elements are 0, and how many still NaN.
std::pair<int, int> zeros_and_nans(const Tensor& tensor) {
  int zeros = 0, nans = 0;
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    const float value = tensor.as<float>()[i];
    zeros += value == 0;
    nans += std::isnan(value);
  }
  return {zeros, nans};
}

TEST(Pretended, WritesZerosAndLeavesWhatItWouldAddTo) {
  using Counts = std::pair<int, int>;
  const Stream stream = Stream::cpu("s");
  const BlockShape shape{5, 7, 3, 1, 8, 8};
  const std::vector<Slice> bands{{0, 3, 0, 7}};
  const auto forward = plan_block(Pass::forward, bands, shape, {}, place({})),
             backward = plan_block(Pass::backward, bands, shape, {}, place({}));
  const Tensor q({5, 3, 8}, DType::float32, stream), kv({7, 1, 8}, DType::float32, stream),
      lse({5, 3, 2}, DType::float32, stream), delta({5, 3}, DType::float32, stream);
  for (const Mode mode : {Mode::write, Mode::add}) {
    const Outputs o(stream), dv(stream);
    const auto heads = [](const Tensor& of, std::int64_t count) {
      return of.view().slice(1, 1, 1 + count);
    };
    forward->forward({q, kv, kv, heads(o.q, 3), heads(o.lse, 3), mode}, {}, stream);
    stream.synchronize(runtime::deadline_in(60));
    const bool write = mode == Mode::write;
    EXPECT_EQ(zeros_and_nans(o.q), write ? Counts(120, 40) : Counts(0, 160));
    EXPECT_EQ(zeros_and_nans(o.lse), write ? Counts(30, 10) : Counts(0, 40));

    const Outputs d(stream);
    backward->backward({{q, kv, kv, q, lse, delta},
                        heads(d.q, 3),
                        mode,
                        heads(d.k, 1),
                        heads(dv.k, 1),
                        write ? Mode::add : Mode::write},
                       {}, stream);
    stream.synchronize(runtime::deadline_in(60));
    EXPECT_EQ(zeros_and_nans(d.q), write ? Counts(120, 40) : Counts(0, 160));
    for (const Tensor* of : {&d.k, &dv.k})
      EXPECT_EQ(zeros_and_nans(*of), write ? Counts(0, 112) : Counts(56, 56));
  }
}

TEST(Pretended, CallsTakeTheirSeconds) {
  const Stream stream = Stream::cpu("s");
  const BlockShape shape{5, 7, 3, 1, 8, 8};
  const auto plan = plan_block(Pass::forward, {}, shape, {}, place({.seconds = 0.012}));
  const Tensor q({5, 3, 8}, DType::float32, stream), kv({7, 1, 8}, DType::float32, stream),
      lse({5, 3, 2}, DType::float32, stream);
  const runtime::Event begin = stream.record_timed();
  for (int i = 0; i < 3; ++i) plan->forward({q, kv, kv, q, lse, Mode::write}, {}, stream);
  const runtime::Event end = stream.record_timed();
  stream.synchronize(runtime::deadline_in(60));
  EXPECT_GE(runtime::seconds_between(begin, end), 0.036);
}

TEST(Pretended, IsForTheCpu) {
  BlockPlace cuda = place({});
  cuda.device = {runtime::DeviceKind::cuda, 0};
  try {
    plan_block(Pass::forward, {}, {8, 8, 1, 1, 8, 8}, {}, cuda);
    FAIL() << "planned";
  } catch (const runtime::Error& error) {
    EXPECT_EQ(error.code(), runtime::ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("pretended on cuda:0"), std::string::npos);
  }
}

}  // namespace
}  // namespace longhaul::attention
