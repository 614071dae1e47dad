// Ranks that hold no row and never will, such as dedicated attention servers: recurrences and
// convolutions neither send them anything nor wait for them, and do what they do without them.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "parallel/halo.h"
#include "parallel/schemes/scheme.h"
#include "tests/support/linear_cases.h"

namespace longhaul::parallel {
namespace {

constexpr int kEmpty = 2;

/// By rank and peer: bytes of messages.
std::vector<std::map<int, std::int64_t>> sent(const Schedule& schedule) {
  std::vector<std::map<int, std::int64_t>> sent;
  for (const Program& program : schedule.programs) {
    auto& own = sent.emplace_back();
    for (const Step& step : program.steps) {
      const auto* transfer = std::get_if<Transfer>(&step.operation);
      if (transfer == nullptr) continue;
      for (const Message& message : transfer->sends)
        own[message.peer] += message_bytes(message, program);
      for (const Message& message : transfer->receives) own[message.peer] += 0;
    }
  }
  return sent;
}

void expect_without(const Schedule& all, const Schedule& homes) {
  const auto ranks = homes.programs.size();
  ASSERT_EQ(all.programs.size(), ranks + kEmpty);
  const auto with = sent(all), without = sent(homes);
  for (std::size_t rank = 0; rank < ranks; ++rank) EXPECT_EQ(with[rank], without[rank]) << rank;
  for (std::size_t rank = ranks; rank < all.programs.size(); ++rank) {
    EXPECT_TRUE(with[rank].empty()) << "rank " << rank << " exchanges";
  }
}

TEST(EmptyRanks, TakeNoPartInRecurrences) {
  int schedules = 0;
  for (const char* kind : {"linear", "gated_delta"}) {
    const Shapes shapes = test::linear_shapes(kind);
    for (const auto& mask : test::document_masks(61, 2)) {
      for (const Layout& layout : test::run_layouts(mask.mask, 2, 3)) {
        const Layout longer = layout.with_empty_ranks(kEmpty);
        for (const Expression& scheme : test::linear_schemes(shapes.kv_heads)) {
          for (const Direction direction : {Direction::forward, Direction::backward}) {
            SCOPED_TRACE(runtime::concat(kind, ", ", mask.name, ", ", name(layout.kind()), ", ",
                                         scheme.text(), ", ", name(direction)));
            expect_without(build_schedule({mask.mask, longer, shapes, direction, {}, scheme}),
                           build_schedule({mask.mask, layout, shapes, direction, {}, scheme}));
            ++schedules;
          }
        }
      }
    }
  }
  EXPECT_GT(schedules, 100);
}

TEST(EmptyRanks, TakeNoPartInHalos) {
  for (const auto& mask : test::document_masks(61, 2)) {
    const std::vector<std::int64_t> documents = attention::independent_parts(mask.mask);
    for (const Layout& layout : test::run_layouts(mask.mask, 2, 3)) {
      const Layout longer = layout.with_empty_ranks(kEmpty);
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        SCOPED_TRACE(runtime::concat(mask.name, ", ", name(layout.kind()), ", ", name(direction)));
        const auto of = [&](const Layout& ranks) {
          return build_halo_schedule({ranks, documents, 4, 6, runtime::DType::float32, direction});
        };
        expect_without(of(longer), of(layout));
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
