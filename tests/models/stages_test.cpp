#include "models/stages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "models/family.h"
#include "models/weights.h"
#include "runtime/error.h"
#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

Stages part(std::string& log, char name) {
  log += name;
  co_await in_flight;
  log += name;
}

Stages whole(std::string& log, char first, char second) {
  log += '(';
  for (const char name : {first, second}) {
    Stages inner = part(log, name);
    while (inner.advance()) co_await in_flight;
  }
  log += ')';
}

TEST(Stages, RunInTurnsThroughTheirParts) {
  std::string log;
  Stages one = whole(log, 'a', 'b'), two = whole(log, 'x', 'y');
  EXPECT_EQ(log, "") << "nothing runs before the first advance";
  EXPECT_TRUE(one.advance());
  EXPECT_TRUE(two.advance());
  EXPECT_EQ(log, "(a(x");
  EXPECT_TRUE(one.advance());
  EXPECT_TRUE(two.advance());
  EXPECT_EQ(log, "(a(xabxy");
  EXPECT_FALSE(one.advance());
  EXPECT_FALSE(two.advance());
  EXPECT_EQ(log, "(a(xabxyb)y)");
  EXPECT_FALSE(one.advance()) << "the last stage stays the last";
  EXPECT_EQ(log, "(a(xabxyb)y)");
}

TEST(Stages, AnErrorReachesWhoeverAdvances) {
  const auto alive = std::make_shared<int>(1);
  const auto failing = [](std::shared_ptr<int> kept) -> Stages {
    co_await in_flight;
    if (*kept == 1) throw std::runtime_error("stage two");
  };
  {
    const auto outer = [&](std::shared_ptr<int> kept) -> Stages {
      Stages inner = failing(std::move(kept));
      while (inner.advance()) co_await in_flight;
    };
    Stages stages = outer(alive);
    EXPECT_TRUE(stages.advance());
    EXPECT_EQ(alive.use_count(), 2);
    EXPECT_THROW(stages.advance(), std::runtime_error);
  }
  EXPECT_EQ(alive.use_count(), 1) << "what the stages held is released";
}

TEST(Stages, UnfinishedOnesReleaseWhatTheyHold) {
  const auto alive = std::make_shared<int>(1);
  const auto holding = [](std::shared_ptr<int>) -> Stages { co_await in_flight; };
  {
    Stages never = holding(alive), begun = holding(alive);
    EXPECT_TRUE(begun.advance());
    EXPECT_EQ(alive.use_count(), 3);
  }
  EXPECT_EQ(alive.use_count(), 1);
}

TEST(Weights, AreThoseOfTheFetchedGroup) {
  test::with_rigs(1, test::small_config(), {}, [](test::Rig& rig) {
    const Weights weights(rig.store, 1);
    const std::string norm = "model.layers.0.input_layernorm.weight";
    EXPECT_EQ(weights.value(norm).value.data(), rig.store.value(norm).data());
    EXPECT_EQ(weights.value(norm).gradient(rig.stream).data(), rig.store.gradient(norm).data());
    EXPECT_THROW(weights.working("model.layers.1.mlp.up_proj.weight"), runtime::Error);
    EXPECT_THROW(weights.value("model.norm.weight"), runtime::Error);
  });
}

TEST(Weights, GradientsAreOverwrittenOnceThenAddedTo) {
  using runtime::DType;
  const runtime::Stream stream = runtime::Stream::cpu("one");
  ParameterStore store(model_of(test::small_config(), {}).table(), DType::float32, stream);
  const Weights weights(store, 1);
  const Weight up = weights.value("model.layers.0.mlp.up_proj.weight"),  // [13,10]
      norm = weights.value("model.layers.0.input_layernorm.weight");
  for (int step = 0; step < 2; ++step) {
    store.drop_gradients();
    fill(store.gradients(), std::nan(""), stream);
    for (int product = 0; product < 3; ++product) {  // of 0, 1 and 2 rows of ones
      const runtime::Tensor a({13, product}, DType::float32, stream),
          b({product, 10}, DType::float32, stream);
      fill(a, 1, stream);
      fill(b, 1, stream);
      up.add_product(a, b, stream);
    }
    for (const double value :
         test::read(store.gradient("model.layers.0.mlp.up_proj.weight"), stream))
      ASSERT_EQ(value, 3);
    for (const double value : test::read(norm.gradient(stream), stream)) ASSERT_EQ(value, 0);
    fill(norm.gradient(stream), 5, stream);
    for (const double value : test::read(norm.gradient(stream), stream)) ASSERT_EQ(value, 5);
  }
}

}  // namespace
}  // namespace longhaul::models
