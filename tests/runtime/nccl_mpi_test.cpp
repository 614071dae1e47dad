// The NCCL communicator between the processes of an MPI job that share device 0, or have one each.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "runtime/comm/nccl.h"
#include "runtime/ops/host_copy.h"
#include "tests/support/gpu.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;

// Sockets and time slices: each operation may take tens of milliseconds.
constexpr double kSeconds = 120;

std::vector<float> read(const Tensor& tensor, const Stream& stream) {
  const auto values = ops::download<float>(tensor, stream);
  stream.synchronize(deadline_in(kSeconds));
  return *values;
}

/// element i = rank * 1000 + i, exact in float32 and under sums
Tensor ramp(std::int64_t elements, int rank, const Stream& stream) {
  std::vector<float> values(static_cast<std::size_t>(elements));
  std::iota(values.begin(), values.end(), static_cast<float>(1000 * rank));
  Tensor tensor({elements}, DType::float32, stream);
  ops::upload(std::move(values), tensor, stream);
  return tensor;
}

NcclOptions options() {
  NcclOptions options;
  const int devices = cuda_device_count();
  const bool one_each = mpi_session().local_size() <= devices;
  options.device = one_each ? mpi_session().local_rank() : 0;
  options.share_device = !one_each;
  options.timeout_seconds = 60;
  return options;
}

/// One communicator for all tests: a set-up takes seconds.
struct Fixture {
  std::unique_ptr<Communicator> world = make_nccl_communicator(mpi_world(), options());
  Stream stream = Stream::cuda("nccl", options().device);
};
Fixture& fixture() {
  static Fixture* const fixture = new Fixture;  // lives until the process ends: MPI is gone by then
  return *fixture;
}

TEST(Nccl, RefusedWithoutCuda) {
  if (no_gpu_reason().empty()) GTEST_SKIP() << "this machine has a CUDA device";
  try {
    make_nccl_communicator(mpi_world(), {});
    FAIL() << "NCCL without a device";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
  }
}

TEST(Nccl, SharedDeviceMustBeAllowed) {
  LONGHAUL_NEEDS_GPU();
  if (!options().share_device) GTEST_SKIP() << "each rank has a device of its own";
  NcclOptions strict = options();
  strict.share_device = false;
  try {
    make_nccl_communicator(mpi_world(), strict);
    FAIL() << "two ranks share a device";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
    EXPECT_NE(std::string(error.what()).find("share one GPU"), std::string::npos);
  }
}

TEST(Nccl, ExchangesViewsInOrder) {
  LONGHAUL_NEEDS_GPU();
  auto& [world, stream] = fixture();
  const int rank = world->rank(), size = world->size();
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  world->reset_sent_bytes();
  const Tensor sent = ramp(21, rank, stream), got = ramp(21, rank, stream);
  const TensorView from = sent.view().reshape({3, 7}).slice(1, 1, 6),
                   to = got.view().reshape({3, 7}).slice(1, 1, 6);
  const TensorView tail = sent.view().slice(0, 0, 1), tail_to = got.view().slice(0, 0, 1);
  world->exchange({{next, {from}}, {next, {tail}, DType::bfloat16}},
                  {{previous, {to}}, {previous, {tail_to}, DType::bfloat16}}, "shift", stream);
  const std::vector<float> values = read(got, stream);
  for (int i = 1; i < 21; ++i) {
    const int owner = i % 7 >= 1 && i % 7 < 6 ? previous : rank;
    EXPECT_EQ(values[static_cast<std::size_t>(i)], static_cast<float>(1000 * owner + i)) << i;
  }
  EXPECT_EQ(values[0], static_cast<float>(BFloat16(static_cast<float>(1000 * previous))));
  EXPECT_EQ(world->sent_bytes(), size == 1 ? 0 : 15 * 4 + 2);
}

TEST(Nccl, CollectivesWithEvenAndUnevenCounts) {
  LONGHAUL_NEEDS_GPU();
  auto& [world, stream] = fixture();
  const int rank = world->rank(), size = world->size();
  for (const bool even : {true, false}) {
    std::vector<std::int64_t> counts;
    for (int r = 0; r < size; ++r) counts.push_back(even ? 7 : r == 1 ? 0 : 5 + r);
    const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    const Tensor part = ramp(counts[static_cast<std::size_t>(rank)], rank, stream);
    const Tensor all({total}, DType::float32, stream);
    world->all_gather(part, all, counts, stream);
    const std::vector<float> gathered = read(all, stream);
    std::size_t at = 0;
    for (int r = 0; r < size; ++r) {
      for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(r)]; ++i) {
        EXPECT_EQ(gathered[at++], static_cast<float>(1000 * r + i));
      }
    }
    world->reduce_scatter(all, part, counts, stream);
    const std::vector<float> summed = read(part, stream);
    for (std::size_t i = 0; i < summed.size(); ++i) {
      EXPECT_EQ(summed[i], static_cast<float>(size * (1000 * rank + static_cast<int>(i))));
    }
  }
  const Tensor values = ramp(127, rank, stream);
  world->all_reduce(values, stream);
  const std::vector<float> sum = read(values, stream);
  for (std::size_t i = 0; i < sum.size(); ++i) {
    EXPECT_EQ(sum[i],
              static_cast<float>(1000 * size * (size - 1) / 2 + size * static_cast<int>(i)));
  }
  // One element to each rank, one from each.
  const Tensor mine = ramp(size, rank, stream), theirs({size}, DType::float32, stream);
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  for (int r = 0; r < size; ++r) {
    sends.push_back({r, {mine.view().slice(0, r, r + 1)}});
    receives.push_back({r, {theirs.view().slice(0, r, r + 1)}});
  }
  world->exchange(std::move(sends), std::move(receives), "between all", stream);
  const std::vector<float> swapped = read(theirs, stream);
  for (int r = 0; r < size; ++r)
    EXPECT_EQ(swapped[static_cast<std::size_t>(r)], static_cast<float>(1000 * r + rank));
  world->barrier(stream);
  stream.synchronize(deadline_in(kSeconds));
}

/// Marked all_gather: equal parts go by NCCL's own, others as messages; what arrives is the same.
TEST(Nccl, GathersWhatIsMarkedSo) {
  LONGHAUL_NEEDS_GPU();
  auto& [world, stream] = fixture();
  const int rank = world->rank(), size = world->size();
  struct Case {
    bool even, to_self, narrow;
  };
  for (const auto& [even, to_self, narrow] :
       {Case{true, false, false}, Case{true, true, false}, Case{true, false, true},
        Case{false, false, false}, Case{false, true, true}}) {
    SCOPED_TRACE(concat("even ", even, " to self ", to_self, " narrow ", narrow));
    // Of a rank: a block of columns, which does not lie together, and a stretch that does.
    const auto columns = [&](int of) { return even ? 5 : 3 + of; };
    const auto stretch = [&](int of) { return even || of == 0 ? 11 : 0; };
    const Tensor own = ramp(7 * 9 + 11, rank, stream);
    const TensorView matrix = own.view().slice(0, 0, 63).reshape({7, 9});
    const auto wire = narrow ? std::optional(DType::bfloat16) : std::nullopt;
    std::vector<Tensor> tables, stretches;
    std::vector<SendMessage> sends;
    std::vector<ReceiveMessage> receives;
    for (int peer = 0; peer < size; ++peer) {
      tables.emplace_back(std::initializer_list<std::int64_t>{7, 12}, DType::float32, stream);
      stretches.emplace_back(std::initializer_list<std::int64_t>{11}, DType::float32, stream);
      fill(tables.back(), -1, stream);
      fill(stretches.back(), -1, stream);
      if (peer == rank && !to_self) continue;
      sends.push_back(
          {peer,
           {matrix.slice(1, 1, 1 + columns(rank)), own.view().slice(0, 63, 63 + stretch(rank))},
           wire});
      receives.push_back({peer,
                          {tables.back().view().slice(1, 2, 2 + columns(peer)),
                           stretches.back().view().slice(0, 0, stretch(peer))},
                          wire});
    }
    world->reset_sent_bytes();
    world->exchange_as(ExchangeKind::all_gather, std::move(sends), std::move(receives), "gather",
                       stream);
    const auto travelled = [&](int value) {
      return narrow ? static_cast<float>(BFloat16(static_cast<float>(value)))
                    : static_cast<float>(value);
    };
    for (int peer = 0; peer < size; ++peer) {
      const bool came = peer != rank || to_self;
      const auto p = static_cast<std::size_t>(peer);
      const std::vector<float> table = read(tables[p], stream), line = read(stretches[p], stream);
      for (int i = 0; i < 84; ++i) {
        const int row = i / 12, column = i % 12 - 2;
        const bool inside = came && column >= 0 && column < columns(peer);
        EXPECT_EQ(table[static_cast<std::size_t>(i)],
                  inside ? travelled(1000 * peer + row * 9 + 1 + column) : -1.0f)
            << "from " << peer << ", element " << i;
      }
      for (int i = 0; i < 11; ++i) {
        EXPECT_EQ(line[static_cast<std::size_t>(i)],
                  came && i < stretch(peer) ? travelled(1000 * peer + 63 + i) : -1.0f);
      }
    }
    const std::int64_t width = narrow ? 2 : 4;
    EXPECT_EQ(world->sent_bytes(), (size - 1) * (7 * columns(rank) + stretch(rank)) * width);
    EXPECT_EQ(world->exchanged_bytes()[static_cast<std::size_t>(rank)], 0);
  }
}

TEST(Nccl, SplitsByColourAndKey) {
  LONGHAUL_NEEDS_GPU();
  auto& [world, stream] = fixture();
  const auto reversed = world->split(0, -world->rank(), "reversed");
  EXPECT_EQ(reversed->rank(), world->size() - 1 - world->rank());
  EXPECT_EQ(reversed->name(), "reversed");
  const Tensor values = ramp(3, world->rank(), stream);
  const Tensor all({3 * world->size()}, DType::float32, stream);
  reversed->all_gather(
      values, all, std::vector<std::int64_t>(static_cast<std::size_t>(world->size()), 3), stream);
  EXPECT_EQ(read(all, stream)[0], static_cast<float>(1000 * (world->size() - 1)));
  const auto alone = world->split(world->rank(), 0, "alone");
  EXPECT_EQ(alone->size(), 1);
}

/// Last: afterwards the communicator of the ranks that waited is gone.
TEST(NcclLast, AMissingPeerIsAHang) {
  LONGHAUL_NEEDS_GPU();
  auto& [world, stream] = fixture();
  if (world->size() == 1) GTEST_SKIP() << "needs two ranks";
  NcclOptions hasty = options();
  hasty.timeout_seconds = 15;
  const auto pair = make_nccl_communicator(mpi_world(), hasty);
  const Tensor values = ramp(3, world->rank(), stream);
  pair->all_reduce(values, stream);  // connections are up
  stream.synchronize(deadline_in(kSeconds));
  if (world->rank() == 0) {
    try {
      pair->all_reduce(values, stream);
      stream.synchronize(deadline_in(kSeconds));
      ADD_FAILURE() << "the other ranks did not take part";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::hang);
      EXPECT_NE(std::string(error.what()).find("all_reduce"), std::string::npos) << error.what();
    }
  }
  const Stream host = Stream::cpu("host");
  mpi_world().barrier(host);  // the others keep their side until rank 0 has seen the hang
  host.synchronize(deadline_in(kSeconds));
}

}  // namespace
}  // namespace longhaul::test
