#include "models/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::Stream;
using runtime::Tensor;
using test::make_tensor;
using test::random_values;
using test::read;
using test::relative_error;
using test::small_config;

/// The norm of the store's gradients, float64[1].
Tensor norm_of_gradients(const ParameterStore& store, const Stream& stream) {
  double square = 0;
  for (const double g : read(store.gradients(), stream)) square += g * g;
  return make_tensor({std::sqrt(square)}, {1}, DType::float64, stream);
}

std::vector<parallel::ElementRange> all_of(const ParameterStore& store) {
  return {{0, store.table().elements()}};
}

TEST(Optimizer, ClipsDecaysAndUpdatesAsDefined) {
  for (const double max_norm : {0.0, 0.5, 1e6}) {
    const Stream stream = Stream::cpu("one", 2);
    ParameterStore store(model_of(small_config(), {}).table(), DType::float32, stream);
    store.initialise(1, stream);
    const auto elements = store.table().elements();
    const auto start = read(store.values(), stream);
    AdamW optimizer({0.9, 0.99, 1e-8, 0.1, max_norm}, store, all_of(store), stream);
    std::vector<double> expected = start, first(start.size()), second(start.size());
    for (const int step : {1, 2}) {
      const auto gradient = random_values(elements, static_cast<unsigned>(step));
      copy(make_tensor(gradient, {elements}, DType::float32, stream), store.gradients(), stream);
      optimizer.step(1e-2, step, norm_of_gradients(store, stream), stream);
      double square = 0;
      for (const double g : gradient) square += g * g;
      const double factor = max_norm > 0 ? std::min(1.0, max_norm / std::sqrt(square)) : 1;
      for (const parallel::Parameter& parameter : store.table().parameters()) {
        const bool decays =
            parameter.sizes.size() == 2 && parameter.name.find("embed") == std::string::npos;
        for (auto i = static_cast<std::size_t>(parameter.range.begin);
             i < static_cast<std::size_t>(parameter.range.end); ++i) {
          const double g = gradient[i] * factor;
          first[i] = 0.9 * first[i] + 0.1 * g;
          second[i] = 0.99 * second[i] + 0.01 * g * g;
          const double update = first[i] / (1 - std::pow(0.9, step)) /
                                (std::sqrt(second[i] / (1 - std::pow(0.99, step))) + 1e-8);
          expected[i] -= 1e-2 * (update + (decays ? 0.1 * expected[i] : 0));
        }
      }
    }
    EXPECT_LE(relative_error(read(store.values(), stream), expected), 3e-6)
        << "max_norm " << max_norm;
  }
}

TEST(Optimizer, RefusesANormThatIsNotFinite) {
  const Stream stream = Stream::cpu("one");
  ParameterStore store(model_of(small_config(), {}).table(), DType::float32, stream);
  store.initialise(1, stream);
  const auto before = read(store.values(), stream);
  fill(store.gradient("model.norm.weight"), std::nan(""), stream);
  AdamW optimizer({}, store, all_of(store), stream);
  optimizer.step(1e-2, 3, norm_of_gradients(store, stream), stream);
  try {
    stream.synchronize(runtime::deadline_in(10));
    FAIL() << "NaN gradients were applied";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("step 3"), std::string::npos) << error.what();
  }
  const float* values = store.values().as<float>();
  for (std::size_t i = 0; i < before.size(); ++i)
    ASSERT_EQ(static_cast<double>(values[i]), before[i]);
}

/// The store's working copy is its values, rounded to 8 significant bits, ties to even.
void expect_rounded_copy(const ParameterStore& store, const Stream& stream, const char* when) {
  const auto copy = read(store.working_copy(), stream), values = read(store.values(), stream);
  ASSERT_EQ(copy.size(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    int exponent = 0;
    const double fraction = std::frexp(values[i], &exponent);
    ASSERT_EQ(copy[i], std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8))
        << when << ", element " << i;
  }
}

TEST(Optimizer, TheWorkingCopyFollowsTheUpdate) {
  const Stream stream = Stream::cpu("one", 2);
  const auto random = [&](std::int64_t elements, unsigned seed) {
    return make_tensor(random_values(elements, seed), {elements}, DType::float32, stream);
  };
  for (const bool all : {true, false}) {
    ParameterStore store(model_of(small_config(), {}).table(), DType::bfloat16, stream);
    const auto elements = store.table().elements(), cut = all ? elements : elements / 3;
    AdamW optimizer({}, store, {{0, cut}}, stream);
    const auto step = [&](unsigned number) {
      copy(random(elements, number), store.gradients(), stream);
      optimizer.step(0.1, number, norm_of_gradients(store, stream), stream);
    };
    store.initialise(1, stream);
    step(1);  // before the copy has ever been made
    store.refresh_working_copy(stream);
    expect_rounded_copy(store, stream, "where the copy was never made");
    step(2);
    if (all) {
      expect_rounded_copy(store, stream, "by the update alone");
    } else {  // as another rank's values arrive
      copy(random(elements - cut, 7), store.values().slice(0, cut, elements), stream);
    }
    store.refresh_working_copy(stream);
    expect_rounded_copy(store, stream, "after an update");
    copy(random(elements, 8), store.values(), stream);  // as a checkpoint's
    store.values_changed();
    step(3);
    store.refresh_working_copy(stream);
    expect_rounded_copy(store, stream, "after values and an update");
  }
}

TEST(Schedule, WarmsUpThenFollowsACosine) {
  const LearningRateSchedule schedule{1e-3, 10, 110, 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1), 1e-4);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 10), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 60), 0.5 * (1e-3 + 1e-4));
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 110), 1e-4);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 5000), 1e-4);
  for (std::int64_t step = 11; step < 110; ++step) {
    EXPECT_LT(learning_rate(schedule, step + 1), learning_rate(schedule, step));
  }
  EXPECT_DOUBLE_EQ(learning_rate({1e-3, 0, 1, 0.0}, 1), 0.0);
  EXPECT_THROW(learning_rate(schedule, 0), Error);
}

TEST(Optimizer, AModelLearnsARepeatedSequence) {
  const ModelConfig config = small_config(true);
  const auto batch = test::document_batch(config, {30}, 3);
  test::with_rigs(1, config, {.recompute = Recompute::full}, [&](test::Rig& rig) {
    rig.store.initialise(1, rig.stream);
    AdamW optimizer({}, rig.store, all_of(rig.store), rig.stream);
    const Batch mine = rig.use(batch);
    double first = 0, last = 0;
    for (int step = 1; step <= 150; ++step) {
      rig.store.drop_gradients();
      const Tensor loss = rig.forward_backward(mine, {1.0 / 29, {}});
      optimizer.step(1e-2, step, norm_of_gradients(rig.store, rig.stream), rig.stream);
      last = read(loss, rig.stream)[0] / 29;
      if (step == 1) first = last;
    }
    EXPECT_NEAR(first, std::log(17), 0.2);  // an untrained model knows nothing
    EXPECT_LT(last, 0.5 * first);
  });
}

}  // namespace
}  // namespace longhaul::models
