// What a rank computes itself: all of its program's pairs, nothing that is sent, and in its order.
#include "parallel/local_work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "parallel/prepared.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

constexpr int kRanks = 4, kHeads = 8, kKvHeads = 4;
constexpr std::int64_t kTokens = 61;

/// Every scheme over zigzag, and every rank of it.
template <class Check>
void for_every_program(const Check& check) {
  const attention::HeadMasks mask = attention::Mask::causal(kTokens);
  for (const Expression& scheme : test::all_schemes(kRanks, kHeads, kKvHeads)) {
    const Layout layout(LayoutKind::zigzag, kTokens, 1, kRanks);
    if (refuse({scheme, kRanks, kHeads, kKvHeads, layout.kind(), true})) continue;
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      const SchemeInputs inputs{
          mask, layout, {kHeads, kKvHeads, 8, 8, runtime::DType::float32}, direction, {}, scheme};
      const auto generate = prepare(inputs);
      for (int rank = 0; rank < kRanks; ++rank) {
        SCOPED_TRACE(test::show(scheme) + " " + name(direction) + " " + std::to_string(rank));
        check(generate(rank), direction);
      }
    }
  }
}

std::vector<std::string> names(const Program& program, const std::vector<std::string>& without) {
  std::vector<std::string> all;
  for (const Step& step : program.steps) {
    const std::string name = parallel::name(step.operation);
    if (std::ranges::count(without, name) == 0) all.push_back(name);
  }
  return all;
}

TEST(LocalWork, IsTheProgramWithoutItsTransfers) {
  for_every_program([](const Program& program, Direction) {
    const Program local = local_work(program);
    EXPECT_EQ(names(local, {}), names(program, {"Transfer"}));
    EXPECT_EQ(count(local).pairs, count(program).pairs);
    EXPECT_EQ(count(local).sent_bytes, 0);
    for (const Step& step : local.steps) EXPECT_TRUE(step.waits.empty() && step.stream == kCompute);
  });
}

TEST(LocalWork, WithoutMergingNothingIsReadThatIsWritten) {
  for_every_program([](const Program& program, Direction) {
    const Program local = local_work_without_merging(program);
    EXPECT_EQ(names(local, {}), names(program, {"Transfer", "Accumulate"}));
    EXPECT_EQ(count(local).pairs, count(program).pairs);
    for (const Step& step : local.steps) {
      // An `add` reads what it writes; the verifier knows it by the mode, tests by its spelling.
      std::visit(
          [](const auto& operation) {
            if constexpr (requires { operation.mode; }) {
              EXPECT_EQ(operation.mode, Mode::write);
            }
            if constexpr (requires { operation.dq_mode; }) {
              EXPECT_EQ(operation.dq_mode, Mode::write);
              EXPECT_EQ(operation.dkv_mode, Mode::write);
            }
          },
          step.operation);
    }
  });
}

TEST(LocalWork, IsPreparedWithoutChannels) {
  for_every_program([](const Program& program, Direction direction) {
    const auto weighting = attention::Weighting::softmax;
    const Signature signature = direction == Direction::forward ? forward_signature(weighting)
                                                                : backward_signature(weighting);
    EXPECT_EQ(Prepared(local_work(program), signature, {}, {}).channels(), 0);
    EXPECT_EQ(Prepared(local_work_without_merging(program), signature, {}, {}).channels(), 0);
  });
}

}  // namespace
}  // namespace longhaul::parallel
