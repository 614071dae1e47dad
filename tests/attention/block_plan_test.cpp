// Block plans: one plan serves many calls; what could be refused is refused when it is made.
#include "attention/block_plan.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

Tensor ramp(std::int64_t rows, std::int64_t heads, std::int64_t dim, const Stream& stream) {
  Tensor made({rows, heads, dim}, DType::float32, stream);
  for (std::int64_t i = 0; i < made.elements(); ++i)
    made.as<float>()[i] = static_cast<float>(i * 7 % 23) / 11 - 1;
  return made;
}
std::vector<float> values(const Tensor& tensor) {
  return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

TEST(BlockPlan, ServesManyCallsWithTheBitsOfPlanningEachTime) {
  // Memory is dirty between calls, as in a program whose steps share it.
  const std::int64_t n = 127, keys = 401;
  const std::vector<Slice> bands{{0, 60, 0, 200, -kUnbounded, 30}, {60, n, 150, keys, -70, 260}};
  for (const int threads : {1, 3}) {
    const Stream stream = Stream::cpu("plan", threads);
    const Tensor q = ramp(n, 4, 9, stream), k = ramp(keys, 2, 9, stream),
                 v = ramp(keys, 2, 5, stream), dout = ramp(n, 4, 5, stream);
    const auto outputs = [&] {
      struct {
        Tensor out, lse, delta, dq, dk, dv;
      } made{Tensor({n, 4, 5}, DType::float32, stream),
             Tensor({n, 4, 2}, DType::float32, stream),
             Tensor({n, 4}, DType::float32, stream),
             Tensor({n, 4, 9}, DType::float32, stream),
             Tensor({keys, 2, 9}, DType::float32, stream),
             Tensor({keys, 2, 5}, DType::float32, stream)};
      return made;
    };
    const auto once = outputs(), planned = outputs();
    block_forward(q, k, v, bands, {}, once.out, once.lse, Mode::write, stream);
    block_delta(once.out, dout, once.delta, stream);
    block_backward({q, k, v, dout, once.lse, once.delta}, bands, {}, once.dq, Mode::write, once.dk,
                   once.dv, Mode::write, stream);
    const BlockShape shape{n, keys, 4, 2, 9, 5};
    const auto forward = plan_block(Pass::forward, bands, shape, {}, place_of(stream)),
               backward = plan_block(Pass::backward, bands, shape, {}, place_of(stream));
    const Tensor scratch({std::max(forward->scratch_bytes(), backward->scratch_bytes())},
                         DType::uint8, stream);
    const BlockMemory memory{scratch.view().data()};
    for (int call = 0; call < 3; ++call) {
      runtime::fill(scratch, 255 - call, stream);
      forward->forward({q, k, v, planned.out, planned.lse, Mode::write}, memory, stream);
      block_delta(planned.out, dout, planned.delta, stream);
      backward->backward({{q, k, v, dout, planned.lse, planned.delta},
                          planned.dq,
                          Mode::write,
                          planned.dk,
                          planned.dv,
                          Mode::write},
                         memory, stream);
    }
    stream.synchronize(runtime::deadline_in(60));
    EXPECT_EQ(values(once.out), values(planned.out));
    EXPECT_EQ(values(once.lse), values(planned.lse));
    EXPECT_EQ(values(once.dq), values(planned.dq));
    EXPECT_EQ(values(once.dk), values(planned.dk));
    EXPECT_EQ(values(once.dv), values(planned.dv));
  }
}

TEST(BlockPlan, RefusesWhenMade) {
  const BlockShape shape{8, 8, 4, 2, 16, 16};
  const std::vector<Slice> full{{0, 8, 0, 8}};
  const auto plan = [&](const std::vector<Slice>& bands, const BlockShape& of,
                        const Scoring& scoring, const BlockPlace& place) {
    return plan_block(Pass::forward, bands, of, scoring, place);
  };
  EXPECT_NE(plan(full, shape, {}, {}), nullptr);
  EXPECT_THROW(plan({{0, 9, 0, 8}}, shape, {}, {}), runtime::Error);
  EXPECT_THROW(plan(full, {8, 8, 3, 2, 16, 16}, {}, {}), runtime::Error);
  EXPECT_THROW(plan(full, {8, 8, 4, 2, 16, 16, DType::float64}, {}, {}), runtime::Error);
  EXPECT_THROW(plan(full, shape, {.softcap = -2}, {}), runtime::Error);
  EXPECT_THROW(plan(full, shape, {.bias = 1}, {}), runtime::Error);
}

TEST(BlockPlan, RefusesTensorsOfAnotherShape) {
  const Stream stream = Stream::cpu("plan"), wide = Stream::cpu("wide", 2);
  const Tensor q = ramp(8, 4, 16, stream), k = ramp(8, 2, 16, stream), out = ramp(8, 4, 16, stream),
               shorter = ramp(7, 4, 16, stream), lse({8, 4, 2}, DType::float32, stream),
               delta({8, 4}, DType::float32, stream);
  const std::vector<Slice> full{{0, 8, 0, 8}};
  const BlockShape shape{8, 8, 4, 2, 16, 16};
  const auto forward = plan_block(Pass::forward, full, shape, {}, place_of(stream)),
             backward = plan_block(Pass::backward, full, shape, {}, place_of(stream));
  const Tensor scratch({forward->scratch_bytes() + backward->scratch_bytes()}, DType::uint8,
                       stream);
  const BlockMemory memory{scratch.view().data()};
  const BlockForwardTensors good{q, k, k, out, lse, Mode::write};
  forward->forward(good, memory, stream);
  EXPECT_THROW(forward->forward({shorter, k, k, out, lse, Mode::write}, memory, stream),
               runtime::Error);
  EXPECT_THROW(forward->forward({q, k, k, out, TensorView(), Mode::write}, memory, stream),
               runtime::Error);
  EXPECT_THROW(forward->forward(good, memory, wide), runtime::Error);
  EXPECT_THROW(backward->forward(good, memory, stream), runtime::Error);
  const BlockBackwardTensors with_short_dout{
      {q, k, k, shorter, lse, delta}, out, Mode::write, k, k, Mode::write};
  EXPECT_THROW(backward->backward(with_short_dout, memory, stream), runtime::Error);
  EXPECT_THROW(forward->backward(with_short_dout, memory, stream), runtime::Error);
  stream.synchronize(runtime::deadline_in(60));
}

}  // namespace
}  // namespace longhaul::attention
