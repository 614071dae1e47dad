// Types of rotary embedding against stored numbers of transformers' formulae; what a scaling may
// not say.
#include "models/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/support/expect_error.h"

namespace longhaul::models {
namespace {

struct Stored {
  RopeBase base;
  RopeScaling scaling;
  double attention_factor;
  std::vector<std::pair<std::size_t, double>> frequencies;
};
const Stored kStored[] = {
#include "tests/models/rope_cases.inc"
};

TEST(Rope, FrequenciesAndFactorsAreTransformers) {
  std::size_t number = 0;
  for (const Stored& stored : kStored) {
    SCOPED_TRACE(testing::Message() << "case " << number++ << ", " << *stored.scaling.rope_type);
    ASSERT_TRUE(problems_of(stored.base, stored.scaling).empty())
        << problems_of(stored.base, stored.scaling)[0].key;
    const Rope rope = make_rope(stored.base, stored.scaling);
    EXPECT_EQ(rope.dims, stored.base.dims);
    ASSERT_EQ(std::ssize(rope.frequencies), stored.base.dims / 2);
    EXPECT_NEAR(rope.attention_factor, stored.attention_factor, 1e-12 * stored.attention_factor);
    for (const auto& [pair, frequency] : stored.frequencies)
      EXPECT_NEAR(rope.frequencies[pair], frequency, 1e-7 * frequency) << pair;
  }
  EXPECT_EQ(number, 38u);
}

TEST(Rope, OlderNameAndAbsentTypeMeanTheNewestAndThePlainOne) {
  const RopeBase base{4, 1e4, 64, 128};
  const RopeScaling longrope{.rope_type = "longrope",
                             .original_max_position_embeddings = 32,
                             .short_factor = {1, 2},
                             .long_factor = {3, 4}};
  RopeScaling su = longrope;
  su.rope_type = "su";
  EXPECT_EQ(make_rope(base, su), make_rope(base, longrope));
  EXPECT_EQ(make_rope(base), make_rope(base, {.rope_type = "default"}));
  EXPECT_EQ(make_rope({0, 1e4}).frequencies.size(), 0u);
}

/// Its problems, "factor, rope_theta?": ? where something is missing.
std::string problems(const RopeBase& base, const RopeScaling& scaling) {
  std::string text;
  for (const RopeProblem& problem : problems_of(base, scaling)) {
    text += (text.empty() ? "" : ", ") + problem.key + problem.base + (problem.missing ? "?" : "");
    EXPECT_EQ(problem.missing, problem.expected.empty());
  }
  return text;
}

TEST(Rope, TypesNeedTheirKeysAndHaveNoUseForOthers) {
  const RopeBase base{8, 1e4, 2048}, nothing{8, 1e4};
  EXPECT_EQ(problems(base, {.rope_type = "ntk"}), "rope_type");
  EXPECT_EQ(problems(base, {.factor = 2}), "factor");
  EXPECT_EQ(problems(base, {.rope_type = "default", .factor = 2}), "factor");
  EXPECT_EQ(problems(base, {.rope_type = "linear"}), "factor?");
  EXPECT_EQ(problems(base, {.rope_type = "linear", .factor = 2, .beta_fast = 3}), "beta_fast");
  EXPECT_EQ(
      problems(base, {.rope_type = "dynamic", .factor = 2, .original_max_position_embeddings = 64}),
      "original_max_position_embeddings");
  EXPECT_EQ(problems(nothing, {.rope_type = "dynamic", .factor = 2}), "max_position_embeddings?");
  EXPECT_EQ(problems(nothing, {.rope_type = "llama3"}),
            "factor?, low_freq_factor?, high_freq_factor?, original_max_position_embeddings?");
  EXPECT_EQ(problems(base, {.rope_type = "yarn", .low_freq_factor = 1, .short_factor = {1}}),
            "factor?, low_freq_factor, short_factor, short_factor");
  EXPECT_EQ(problems(nothing, {.rope_type = "yarn", .factor = 2}),
            "original_max_position_embeddings?");
  EXPECT_EQ(problems(nothing, {.rope_type = "longrope", .original_max_position_embeddings = 64}),
            "short_factor?, long_factor?, max_position_embeddings?");
  EXPECT_EQ(problems(base, {.rope_type = "longrope", .truncate = true}),
            "truncate, short_factor?, long_factor?");
}

TEST(Rope, ValuesHaveTheirRanges) {
  const RopeBase base{8, 1e4, 2048};
  const RopeScaling yarn{.rope_type = "yarn", .factor = 2};
  const auto with = [](RopeScaling scaling, const std::function<void(RopeScaling&)>& spoil) {
    spoil(scaling);
    return scaling;
  };
  EXPECT_EQ(problems(base, yarn), "");
  EXPECT_EQ(problems(base, with(yarn, [](auto& s) { s.factor = 0.5; })), "factor");
  EXPECT_EQ(problems(base, with(yarn, [](auto& s) { s.factor = std::nan(""); })), "factor");
  EXPECT_EQ(problems(base, with(yarn, [](auto& s) { s.beta_fast = 1; })), "beta_fast");
  EXPECT_EQ(problems(base, with(yarn, [](auto& s) { s.beta_slow = 40; })), "beta_slow");
  EXPECT_EQ(problems(base, with(yarn, [](auto& s) { s.attention_factor = 0; })),
            "attention_factor");
  EXPECT_EQ(problems({8, 1, 2048}, yarn), "rope_theta");
  EXPECT_EQ(problems({2, 1e4, 2048}, {.rope_type = "dynamic", .factor = 2}), "rope_type");
  const RopeScaling llama3{
      .rope_type = "llama3", .factor = 8, .low_freq_factor = 4, .high_freq_factor = 4};
  EXPECT_EQ(problems(base, llama3), "high_freq_factor");
  const RopeScaling longrope{
      .rope_type = "longrope", .short_factor = {1, 1, 1, 1}, .long_factor = {1, 2, 3, 4}};
  EXPECT_EQ(problems(base, longrope), "");
  EXPECT_EQ(problems(base, with(longrope, [](auto& s) { s.long_factor.pop_back(); })),
            "long_factor");
  EXPECT_EQ(problems(base, with(longrope, [](auto& s) { s.short_factor[2] = 0; })), "short_factor");
  EXPECT_EQ(problems({8, 1e4, 1}, longrope), "original_max_position_embeddings");
}

TEST(Rope, OneThatFollowsTheLengthNeedsIt) {
  test::expect_error(runtime::ExitCode::internal, "without the length of sequences", [] {
    make_rope({8, 1e4, 64}, {.rope_type = "dynamic", .factor = 2});
  });
  test::expect_error(runtime::ExitCode::internal, "the first of factor", [] {
    make_rope({8, 1e4, 64}, {.rope_type = "linear"});
  });
}

}  // namespace
}  // namespace longhaul::models
