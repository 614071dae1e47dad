#include "runtime/comm/grid.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "runtime/comm/loopback.h"

namespace longhaul::runtime {
namespace {

TEST(ProcessGrid, CoordinatesAreABijectionWithContextInnermost) {
  const ProcessGrid grid({.data = 3, .context = 5});
  EXPECT_EQ(grid.size(), 15);
  std::set<std::pair<int, int>> seen;
  for (int rank = 0; rank < 15; ++rank) {
    const int data = grid.coordinate(rank, Axis::data),
              context = grid.coordinate(rank, Axis::context);
    seen.insert({data, context});
    EXPECT_EQ(rank, data * 5 + context);
    EXPECT_EQ(grid.coordinate(rank, Axis::tensor), 0);
    EXPECT_EQ(grid.coordinate(rank, Axis::pipeline), 0);
  }
  EXPECT_EQ(seen.size(), 15u);
  EXPECT_THROW(grid.coordinate(15, Axis::data), Error);
}

TEST(ProcessGrid, RefusesWhatDoesNotExistYet) {
  for (const GridShape& shape : {GridShape{.tensor = 2}, GridShape{.pipeline = 2},
                                 GridShape{.data = 0}, GridShape{.context = -1}}) {
    try {
      const ProcessGrid grid(shape);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config) << error.what();
    }
  }
}

TEST(ProcessGrid, CommunicatorsAlongAxes) {
  const ProcessGrid grid({.data = 2, .context = 3});
  run_loopback(6, {}, [&](std::unique_ptr<Communicator> world) {
    const int data = grid.coordinate(world->rank(), Axis::data);
    const int context = grid.coordinate(world->rank(), Axis::context);
    const auto along_context = grid.split(*world, {Axis::context}, "context");
    const auto along_data = grid.split(*world, {Axis::data}, "data");
    const auto both = grid.split(*world, {Axis::data, Axis::context}, "data+context");
    const auto second = grid.split(*world, {Axis::context}, "context 2");
    const auto none = grid.split(*world, {Axis::tensor}, "tensor");
    EXPECT_EQ(along_context->size(), 3);
    EXPECT_EQ(along_context->rank(), context);
    EXPECT_EQ(along_data->size(), 2);
    EXPECT_EQ(along_data->rank(), data);
    EXPECT_EQ(both->size(), 6);
    EXPECT_EQ(both->rank(), world->rank());
    EXPECT_EQ(none->size(), 1);
    // Members are the right ones, and a communicator's twin is separate traffic on another stream.
    const Stream one = Stream::cpu("one"), two = Stream::cpu("two");
    const Tensor sum({1}, DType::float32, one), twin({1}, DType::float32, two);
    fill(sum, 1 << world->rank(), one);
    fill(twin, 100, two);
    along_context->all_reduce(sum, one);
    second->all_reduce(twin, two);
    along_data->all_reduce(sum, one);
    one.synchronize(deadline_in(10));
    two.synchronize(deadline_in(10));
    EXPECT_EQ(*sum.as<float>(), 63.0f);
    EXPECT_EQ(*twin.as<float>(), 300.0f);
  });
  run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    EXPECT_THROW(grid.split(*world, {Axis::context}, "context"), Error);
  });
}

TEST(Agreement, AllAgree) {
  for (const int ranks : {1, 5}) {
    run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> world) {
      const Stream stream = Stream::cpu("check");
      check_agreement(*world, {{"config", "aa"}, {"build", ""}}, stream);
      check_agreement(*world, {}, stream);
    });
  }
}

TEST(Agreement, TheTableNamesWhoHoldsWhat) {
  std::atomic<int> refused{0};
  run_loopback(7, {}, [&](std::unique_ptr<Communicator> world) {
    const Stream stream = Stream::cpu("check");
    std::vector<NamedDigest> digests{{"build", "v1"}, {"config", "9f8e"}, {"corpus", "1234"}};
    if (world->rank() == 3) digests[1].digest = "dead";
    if (world->rank() == 5) digests.pop_back();
    try {
      check_agreement(*world, digests, stream);
    } catch (const Error& error) {
      ++refused;
      EXPECT_EQ(error.code(), ExitCode::disagree);
      const std::string text = error.what();
      for (const char* part :
           {"config:", "9f8e  ranks 0-2, 4-6", "dead  rank 3", "corpus:", "(none)  rank 5"}) {
        EXPECT_NE(text.find(part), std::string::npos) << text;
      }
      EXPECT_EQ(text.find("build"), std::string::npos) << text;
    }
  });
  EXPECT_EQ(refused, 7);
}

TEST(Agreement, NamesAndDigestsAreNotRunTogether) {
  EXPECT_THROW(run_loopback(2, {},
                            [&](std::unique_ptr<Communicator> world) {
                              const Stream stream = Stream::cpu("check");
                              check_agreement(*world,
                                              {world->rank() == 0 ? NamedDigest{"a", "bc"}
                                                                  : NamedDigest{"ab", "c"}},
                                              stream);
                            }),
               Error);
}

TEST(Agreement, OrderDoesNotMatter) {
  run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    const Stream stream = Stream::cpu("check");
    std::vector<NamedDigest> digests{{"a", "1"}, {"b", "2"}};
    if (world->rank() == 1) std::swap(digests[0], digests[1]);
    check_agreement(*world, digests, stream);
  });
}

}  // namespace
}  // namespace longhaul::runtime
