// Sums, norms and values that do not depend on who updates what.
#include "parallel/parameter_exchange.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <set>
#include <thread>

#include "runtime/comm/loopback.h"
#include "runtime/error.h"
#include "runtime/reserve.h"
#include "tests/support/gpu.h"
#include "tests/support/host_tensors.h"

namespace longhaul::parallel {
namespace {

using runtime::Communicator;
using runtime::DType;
using runtime::Error;
using runtime::Stream;
using runtime::Tensor;

/// Nine chunks and a bit; the first and the last group begin no chunk but the table's first.
ParameterTable table() {
  ParameterTable table;
  const auto add = [&](int group, std::vector<std::int64_t> sizes) {
    table.add({"p" + std::to_string(table.parameters().size()),
               std::move(sizes),
               Initialisation::ones,
               0,
               false,
               -1,
               group,
               {}});
  };
  add(0, {31, 61});
  for (int group = 1; group < 4; ++group) {
    add(group, {127});
    add(group, {401, 127});
  }
  add(4, {61});
  return table;
}

std::vector<double> gradients_of(int rank, std::int64_t elements) {
  return test::random_values(elements, static_cast<unsigned>(rank) + 1);
}

/// Sums of all ranks' gradients, float by float in rank order.
std::vector<double> sums_of(int ranks, std::int64_t elements) {
  std::vector<double> sums(static_cast<std::size_t>(elements), 0);
  for (int rank = 0; rank < ranks; ++rank) {
    const std::vector<double> terms = gradients_of(rank, elements);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const auto term = static_cast<float>(terms[i]);
      sums[i] = rank == 0 ? term : static_cast<float>(sums[i]) + term;
    }
  }
  return sums;
}

class Exchange : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Exchange, ::testing::Values(1, 2, 3, 4, 5, 7, 16));

TEST_P(Exchange, SumsNormsAndValuesAreTheSameShardedOrNot) {
  const int ranks = GetParam();
  const ParameterTable parameters = table();
  const std::int64_t n = parameters.elements();
  const std::vector<double> expected = sums_of(ranks, n);
  double squares = 0;
  for (const double sum : expected) squares += sum * sum;
  std::mutex mutex;
  std::set<double> norms;
  std::vector<int> updates(static_cast<std::size_t>(n), 0);
  for (const bool sharded : {false, true}) {
    runtime::run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> world) {
      const int rank = world->rank();
      const Stream compute = Stream::cpu("compute", 2);
      ParameterExchange exchange(parameters, sharded, std::move(world), compute);
      const Tensor values({n}, DType::float32, compute);
      for (int step = 0; step < 2; ++step) {
        const Tensor gradients =
            test::make_tensor(gradients_of(rank, n), {n}, DType::float32, compute);
        for (int group = parameters.groups(); group-- > 0;)
          exchange.reduce(gradients, parameters.group_range(group));
        const Tensor norm = exchange.gradient_norm(gradients);
        // What is updated becomes the sum of its gradients; what is not is NaN until it is shared.
        fill(values, std::nan(""), compute);
        for (const ElementRange& range : exchange.updated()) {
          runtime::copy(gradients.view().slice(0, range.begin, range.end),
                        values.view().slice(0, range.begin, range.end), compute);
        }
        exchange.share(values);
        EXPECT_EQ(test::read(values, compute), expected);
        const std::lock_guard lock(mutex);
        norms.insert(test::read(norm, compute)[0]);
      }
      const std::lock_guard lock(mutex);
      for (const ElementRange& range : exchange.updated()) {
        for (std::int64_t i = range.begin; i < range.end; ++i)
          ++updates[static_cast<std::size_t>(i)];
      }
    });
  }
  ASSERT_EQ(norms.size(), 1u);  // the same bits everywhere
  EXPECT_NEAR(*norms.begin(), std::sqrt(squares), 1e-12 * std::sqrt(squares));
  // By every rank, and then once more by its owner.
  EXPECT_EQ(updates, std::vector<int>(static_cast<std::size_t>(n), ranks + 1));
}

TEST(Exchange, SendsWhatItSays) {
  const ParameterTable parameters = table();
  const std::int64_t n = parameters.elements();
  constexpr int kRanks = 5;
  for (const bool sharded : {false, true}) {
    std::atomic<std::int64_t> reduced = 0, shared = 0;
    runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<Communicator> world) {
      const Stream compute = Stream::cpu("compute");
      Communicator& comm = *world;
      ParameterExchange exchange(parameters, sharded, std::move(world), compute);
      const Tensor flat({n}, DType::float32, compute);
      fill(flat, 1, compute);
      exchange.reduce(flat, {0, n});
      reduced += comm.sent_bytes();
      comm.reset_sent_bytes();
      exchange.share(flat);
      shared += comm.sent_bytes();
      compute.synchronize(runtime::deadline_in(60));
    });
    EXPECT_EQ(reduced, 4 * n * (kRanks - 1) * (sharded ? 1 : 2));
    EXPECT_EQ(shared, sharded ? 4 * n * (kRanks - 1) : 0);
  }
}

TEST(Exchange, ReducesWhatIsFinishedWhileComputeGoesOn) {
  const ParameterTable parameters = table();
  constexpr int kRanks = 3;
  for (const bool sharded : {false, true}) {
    std::atomic<int> overlapped = 0;
    runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<Communicator> world) {
      const int rank = world->rank();
      const Stream compute = Stream::cpu("compute");
      ParameterExchange exchange(parameters, sharded, std::move(world), compute);
      const Tensor flat({parameters.elements()}, DType::float32, compute);
      fill(flat, 1, compute);
      exchange.reduce(flat, parameters.group_range(4));
      exchange.reduce(flat, parameters.group_range(3));
      // Backward, which does not end before this rank's part of what is finished has been summed.
      const ElementRange own = exchange.sharding().buckets().back().owned(rank);
      compute.cpu_task([&, last = flat.as<float>() + own.end - 1] {
        const auto deadline = runtime::deadline_in(20);
        const std::atomic_ref<float> sum(*last);
        while (sum != kRanks && runtime::Clock::now() < deadline)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        overlapped += sum == kRanks ? 1 : 0;
      });
      exchange.reduce(flat, {0, parameters.group_range(3).begin});
      EXPECT_GT(own.elements(), 0);
      EXPECT_GT(test::read(exchange.gradient_norm(flat), compute)[0], 0);
    });
    EXPECT_EQ(overlapped, kRanks);
  }
}

/// A step of exchanges whose memory was taken when they were made.
void expect_nothing_taken(const Stream& compute, bool sharded, std::unique_ptr<Communicator> world,
                          const ParameterTable& parameters) {
  const auto deadline = [] { return runtime::deadline_in(60); };
  const std::unique_ptr<Communicator> meeting = world->split(0, world->rank(), "meeting");
  const Stream host = Stream::cpu("meeting");
  const auto meet = [&] {
    meeting->barrier(host);
    host.synchronize(deadline());
  };
  ParameterExchange exchange(parameters, sharded, std::move(world), compute);
  const Tensor flat({parameters.elements()}, DType::float32, compute);
  fill(flat, 1, compute);
  runtime::reserve_memory(compute, 1 << 20);  // of the norm
  compute.synchronize(deadline());
  meet();
  const std::int64_t before = runtime::system_allocations();
  meet();
  exchange.reduce(flat, {0, parameters.elements()});
  const Tensor norm = exchange.gradient_norm(flat);
  exchange.share(flat);
  compute.synchronize(deadline());
  meet();
  EXPECT_EQ(runtime::system_allocations(), before) << (sharded ? "sharded" : "not sharded");
  meet();
}

TEST(Exchange, TakesItsMemoryWhenItIsMade) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  for (const bool sharded : {false, true}) {
    runtime::run_loopback(3, {}, [&](std::unique_ptr<Communicator> world) {
      expect_nothing_taken(Stream::cpu("compute"), sharded, std::move(world), table());
    });
  }
}

TEST(ExchangeCuda, TakesItsMemoryWhenItIsMade) {
  LONGHAUL_NEEDS_GPU();
  for (const bool sharded : {false, true}) {
    runtime::run_loopback(3, {}, [&](std::unique_ptr<Communicator> world) {
      expect_nothing_taken(Stream::cuda("compute", 0), sharded, std::move(world), table());
    });
  }
}

TEST(Exchange, RefusesGradientsOutOfOrder) {
  const ParameterTable parameters = table();
  const std::int64_t n = parameters.elements();
  runtime::run_loopback(1, {}, [&](std::unique_ptr<Communicator> world) {
    const Stream compute = Stream::cpu("compute");
    ParameterExchange exchange(parameters, true, std::move(world), compute);
    const Tensor flat({n}, DType::float32, compute);
    fill(flat, 1, compute);
    EXPECT_THROW(exchange.reduce(flat, parameters.group_range(0)), Error);
    exchange.reduce(flat, parameters.group_range(4));
    EXPECT_THROW(exchange.reduce(flat, parameters.group_range(2)), Error);
    EXPECT_THROW((void)exchange.gradient_norm(flat), Error);
    exchange.reduce(flat, {0, parameters.group_range(4).begin});
    EXPECT_EQ(test::read(exchange.gradient_norm(flat), compute)[0],
              std::sqrt(static_cast<double>(n)));
  });
}

}  // namespace
}  // namespace longhaul::parallel
