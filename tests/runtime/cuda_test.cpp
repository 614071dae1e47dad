// Streams, events, memory, copies and host transports on a CUDA device; every test skips without
// one.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "runtime/comm/loopback.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/matmul.h"
#include "runtime/reserve.h"
#include "runtime/tensor.h"
#include "tests/support/gpu.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;

constexpr double kSeconds = 60;
constexpr Device kHost{};

Stream cuda_stream(const std::string& name) { return Stream::cuda(name, 0); }

/// Host values on the device, in the view's own order.
template <class T>
Tensor to_device(const std::vector<T>& values, const Stream& stream) {
  Tensor tensor({static_cast<std::int64_t>(values.size())}, DTypeOf<T>::value, stream);
  ops::upload(values, tensor, stream);
  return tensor;
}

template <class T>
std::vector<T> to_host(ConstTensorView view, const Stream& stream) {
  const Tensor flat(view.sizes(), view.dtype(), stream);
  runtime::copy(view, flat, stream);
  const auto values = ops::download<T>(flat, stream);
  stream.synchronize(deadline_in(kSeconds));
  return *values;
}

std::vector<float> numbers(std::int64_t count, float first = 0) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(Cuda, CountsDevicesWithoutThrowing) { EXPECT_GE(cuda_device_count(), 0); }

TEST(Cuda, StreamWithoutDeviceNamesTheReason) {
  try {
    Stream::cuda("compute", 1000);
    FAIL() << "device 1000 exists";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
  }
}

TEST(Cuda, CopiesThereAndBack) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("copy");
  for (const std::int64_t count : {0, 1, 7, 127, 100003}) {
    const std::vector<float> values = numbers(count);
    EXPECT_EQ(to_host<float>(to_device(values, stream), stream), values);
  }
}

TEST(Cuda, StridedAndCastingCopiesAreTheHosts) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("copy"), host = Stream::cpu("host");
  std::vector<float> values = numbers(3 * 5 * 7 * 11);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::ldexp(values[i] + 0.3f, static_cast<int>(i % 60) - 30);
  values[13] = std::numeric_limits<float>::quiet_NaN();
  values[14] = -std::numeric_limits<float>::infinity();
  values[15] = -0.0f;
  const Tensor device = to_device(values, stream);
  Tensor on_host({3 * 5 * 7 * 11}, DType::float32, host);
  host.synchronize(deadline_in(kSeconds));
  std::memcpy(on_host.view().data(), values.data(), values.size() * sizeof(float));
  const auto strided = [](const auto& tensor) {
    return tensor.view().reshape({3, 5, 7, 11}).slice(1, 1, 4).slice(3, 2, 9);
  };
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float64}) {
    const Tensor there({3, 3, 7, 7}, dtype, stream), here({3, 3, 7, 7}, dtype, host);
    runtime::copy(strided(device), there, stream);
    runtime::copy(strided(on_host), here, host);
    host.synchronize(deadline_in(kSeconds));
    const std::int64_t bytes = here.bytes();
    const auto as_bytes = [&](const Tensor& t) {
      return ConstTensorView(t.view().data(), DType::uint8, t.view().device(), {bytes});
    };
    const std::vector<std::uint8_t> actual = to_host<std::uint8_t>(as_bytes(there), stream);
    EXPECT_EQ(std::memcmp(actual.data(), here.view().data(), static_cast<std::size_t>(bytes)), 0)
        << name(dtype);
    // And back, into strides.
    const Tensor wide({3 * 5 * 7 * 11}, DType::float32, stream),
        wide_host({3 * 5 * 7 * 11}, DType::float32, host);
    fill(wide, -1, stream);
    fill(wide_host, -1, host);
    runtime::copy(there, strided(wide), stream);
    runtime::copy(here, strided(wide_host), host);
    host.synchronize(deadline_in(kSeconds));
    const std::vector<float> back = to_host<float>(wide, stream);
    EXPECT_EQ(std::memcmp(back.data(), wide_host.view().data(), back.size() * sizeof(float)), 0)
        << name(dtype);
  }
}

TEST(Cuda, FillsStridedViews) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("fill");
  const Tensor tensor({4, 6}, DType::bfloat16, stream);
  fill(tensor, 0, stream);
  fill(tensor.view().slice(1, 2, 5), 1.5, stream);
  const std::vector<BFloat16> values = to_host<BFloat16>(tensor, stream);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(static_cast<float>(values[i]), i % 6 >= 2 && i % 6 < 5 ? 1.5f : 0.0f) << i;
  }
}

TEST(Cuda, HostTasksRunInTheStreamsOrder) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("tasks");
  const Buffer staging = stream.allocate_host(4);
  const TensorView host(staging.data(), DType::float32, kHost, {1});
  const Tensor device({1}, DType::float32, stream);
  fill(device, 0, stream);
  // Device -> host task -> device, each needs the one before.
  for (int round = 1; round <= 20; ++round) {
    runtime::copy(device, host, stream);
    stream.host_task([host, round] {
      if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      *host.as<float>() += 1;
    });
    runtime::copy(host, device, stream);
  }
  EXPECT_EQ(to_host<float>(device, stream), std::vector<float>{20});
}

// Who loads a kernel keeps the driver until all streams are idle, one that waits for a task too.
TEST(Cuda, HostTasksGoOnWhileKernelsAreLoaded) {
  LONGHAUL_NEEDS_GPU();
  const Stream waiting = cuda_stream("waiting"), loading = cuda_stream("loading");
  std::atomic<int> run = 0;
  for (int task = 0; task < 40; ++task) {
    waiting.host_task([&run] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ++run;
    });
  }
  // cuBLASLt loads what a product needs at its first use: shapes and dtypes that no test has.
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const std::int64_t size : {std::int64_t{72}, std::int64_t{568}, std::int64_t{2056}}) {
      const Tensor a({size, size}, dtype, loading), b({size, size}, dtype, loading),
          c({size, size}, dtype, loading);
      fill(a, 1, loading);
      fill(b, 1, loading);
      ops::matmul(a, ops::transposed(b), c, ops::Write::overwrite, loading);
    }
  }
  loading.synchronize(deadline_in(kSeconds));
  waiting.synchronize(deadline_in(kSeconds));
  EXPECT_EQ(run, 40);
}

TEST(Cuda, WorkOfTheCpuIsRefused) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("compute");
  EXPECT_THROW(stream.cpu_task([] {}), Error);
  EXPECT_NO_THROW(stream.synchronize(deadline_in(kSeconds)));
}

TEST(Cuda, MemoryOfAnotherStreamIsGivenBackBeforeAnyIsRefused) {
  LONGHAUL_NEEDS_GPU();
  const Stream first = cuda_stream("first"), second = cuda_stream("second");
  constexpr std::int64_t kGiB = std::int64_t{1} << 30;
  std::vector<Buffer> all;
  try {
    for (int i = 0; i < 1000; ++i) all.push_back(first.allocate(kGiB));
    FAIL() << "1000 GiB on a device";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::memory) << error.what();
  }
  const auto half = static_cast<std::int64_t>(all.size()) / 2 * kGiB;
  all.clear();
  EXPECT_GT(first.memory().held_bytes, half);
  const Buffer large = second.allocate(std::max(half, kGiB));
  EXPECT_EQ(first.memory().held_bytes, 0);
}

TEST(Cuda, UploadsAndDownloadsKeepTheStreamsOrder) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("copies");
  const Tensor tensor({1009}, DType::float64, stream);
  std::vector<std::shared_ptr<const std::vector<double>>> seen;
  for (int round = 0; round < 20; ++round) {
    ops::upload(std::vector<double>(1009, round), tensor, stream);
    seen.push_back(ops::download<double>(tensor, stream));
  }
  stream.synchronize(deadline_in(kSeconds));
  for (int round = 0; round < 20; ++round)
    EXPECT_EQ(*seen[static_cast<std::size_t>(round)], std::vector<double>(1009, round));
}

TEST(Cuda, CopiesOfPageableMemoryAreRefused) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("copy");
  const Tensor device({7}, DType::float32, stream);
  std::vector<float> pageable(7, 0.0f);
  const TensorView host(reinterpret_cast<std::byte*>(pageable.data()), DType::float32, kHost, {7});
  EXPECT_THROW(runtime::copy(host, device, stream), Error);
  EXPECT_THROW(runtime::copy(device, host, stream), Error);
}

TEST(Cuda, StreamsBeyondTheHardwareQueuesAreRefused) {
  LONGHAUL_NEEDS_GPU();
  std::vector<Stream> streams;
  try {
    for (int i = 0; i < 33; ++i) streams.push_back(cuda_stream("many"));
    FAIL() << "33 streams";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
    EXPECT_EQ(streams.size(), 32u);
  }
  streams.pop_back();
  cuda_stream("fits");
}

TEST(Cuda, BlockingTasksOfTwoStreamsDoNotHoldEachOtherUp) {
  LONGHAUL_NEEDS_GPU();
  const Stream a = cuda_stream("a"), b = cuda_stream("b");
  std::atomic<bool> released{false};
  a.host_task([&] {
    while (!released) std::this_thread::yield();
  });
  b.host_task([&] { released = true; });
  a.synchronize(deadline_in(kSeconds));
  b.synchronize(deadline_in(kSeconds));
}

TEST(Cuda, EventsOrderStreamsAndCarryFailures) {
  LONGHAUL_NEEDS_GPU();
  const Stream a = cuda_stream("a"), b = cuda_stream("b");
  const Event before = a.record();
  bool ran = false;
  a.host_task([] { fail(ExitCode::data, "the task failed"); });
  a.host_task([&] { ran = true; });
  const Event after = a.record();
  b.wait(after);
  EXPECT_NO_THROW(before.synchronize(deadline_in(kSeconds)));
  EXPECT_THROW(after.synchronize(deadline_in(kSeconds)), Error);
  EXPECT_THROW(b.synchronize(deadline_in(kSeconds)), Error);
  EXPECT_FALSE(ran);
}

TEST(Cuda, TimedEventsTellWhenTheStreamReachedThem) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("timed");
  const Event begin = stream.record_timed();
  stream.host_task([] { std::this_thread::sleep_for(std::chrono::milliseconds(30)); });
  const Event end = stream.record_timed();
  end.synchronize(deadline_in(kSeconds));
  EXPECT_GE(seconds_between(begin, end), 0.03);
  EXPECT_LT(seconds_between(begin, end), 5);
  EXPECT_THROW(seconds_between(begin, stream.record()), Error);
}

TEST(Cuda, NamesTheDeviceAndItsMemory) {
  LONGHAUL_NEEDS_GPU();
  EXPECT_FALSE(cuda_device_name(0).empty());
  const DeviceMemory memory = cuda_device_memory(0);
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_GE(memory.total_bytes, memory.free_bytes);
}

TEST(Cuda, WaitsHaveDeadlines) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("slow");
  std::atomic<bool> released{false};
  stream.host_task([&] {
    while (!released) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  const Event event = stream.record();
  EXPECT_FALSE(event.complete());
  try {
    event.synchronize(deadline_in(0.05));
    ADD_FAILURE() << "the wait did not end";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::hang);
    EXPECT_NE(std::string(error.what()).find("slow"), std::string::npos);
  }
  released = true;
  EXPECT_NO_THROW(event.synchronize(deadline_in(kSeconds)));
}

TEST(Cuda, MemoryIsCountedReusedAndRefused) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("memory");
  const std::byte* first = nullptr;
  {
    const Buffer buffer = stream.allocate(1 << 20);
    first = buffer.data();
    EXPECT_EQ(stream.memory().current_bytes, 1 << 20);
  }
  EXPECT_EQ(stream.allocate(1 << 20).data(), first);
  EXPECT_EQ(stream.memory().current_bytes, 0);
  try {
    stream.allocate(std::int64_t{1} << 50);
    FAIL() << "a petabyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::memory);
  }
}

TEST(Cuda, WhatAStreamLeavesServesLaterOnes) {
  LONGHAUL_NEEDS_GPU();
  constexpr std::int64_t kBytes = 48 << 20;
  const auto use = [](const std::string& name) {
    const Stream stream = cuda_stream(name);
    const Buffer device = stream.allocate(kBytes), pinned = stream.allocate_host(kBytes);
    fill({device.data(), DType::float32, stream.device(), {kBytes / 4}}, 1, stream);
    stream.synchronize(deadline_in(kSeconds));
  };
  use("first");
  const std::int64_t before = system_allocations();
  for (int i = 0; i < 5; ++i) use("later");
  EXPECT_EQ(system_allocations(), before);
}

TEST(Cuda, TheEndOfAStreamWaitsForNoOther) {
  LONGHAUL_NEEDS_GPU();
  const Stream waiting = cuda_stream("waiting");
  std::atomic<bool> released{false}, late{false};
  waiting.host_task([&] {
    const Deadline deadline = deadline_in(20);
    while (!released && Clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    late = !released;
  });
  {
    const Stream ending = cuda_stream("ending");
    const Tensor device({1 << 20}, DType::float32, ending);
    const Buffer pinned = ending.allocate_host(1 << 20);
    fill(device, 1, ending);
    ending.host_task([data = pinned.data()] { *data = std::byte{1}; });
    ending.synchronize(deadline_in(10));
  }
  released = true;
  waiting.synchronize(deadline_in(kSeconds));
  EXPECT_FALSE(late);
}

TEST(Cuda, ReservedMemoryIsWhatIsHandedOut) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("reserved");
  reserve_memory(stream, 40 << 20);
  EXPECT_EQ(stream.memory().peak_bytes, 0);
  const std::int64_t before = system_allocations();
  const Buffer first = stream.allocate(30 << 20), second = stream.allocate(10 << 20);
  EXPECT_EQ(system_allocations(), before);
}

/// A host task costs the device little beside what it does: what a hop through the host pays.
TEST(Cuda, HostTasksStartSoon) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("tasks");
  const Tensor values({1 << 20}, DType::float32, stream);
  const auto run = [&](int tasks) {
    const auto begin = Clock::now();
    for (int i = 0; i < tasks; ++i) {
      fill(values, i, stream);
      stream.host_task([] {});
    }
    stream.synchronize(deadline_in(kSeconds));
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / tasks;
  };
  run(10);
  const double each_us = run(200);
  std::cout << "[          ] " << each_us << " us a kernel and a host task\n";
  EXPECT_LT(each_us, 500);
}

/// More than 2^31 elements that no pack takes: kernels walk over them in parts.
TEST(Cuda, CopiesBeyondTwoBillionElements) {
  LONGHAUL_NEEDS_GPU();
  const Stream stream = cuda_stream("large");
  constexpr std::int64_t kRows = 65543, kWidth = 32771;
  static_assert(kRows * kWidth > std::int64_t{1} << 31);
  const Tensor from({kRows, kWidth + 2}, DType::uint8, stream),
      to({kRows, kWidth + 1}, DType::uint8, stream);
  for (std::int64_t begin = 0, part = 0; begin < kRows; begin += 10007, ++part) {
    fill(from.view().slice(0, begin, std::min(kRows, begin + 10007)), static_cast<double>(part + 1),
         stream);
  }
  fill(to, 200, stream);
  runtime::copy(from.view().slice(1, 2, kWidth + 2), to.view().slice(1, 0, kWidth), stream);
  for (const std::int64_t row : {std::int64_t{0}, std::int64_t{10006}, std::int64_t{10007},
                                 std::int64_t{50000}, kRows - 1}) {
    const auto values =
        to_host<std::uint8_t>(to.view().slice(0, row, row + 1).reshape({kWidth + 1}), stream);
    std::vector<std::uint8_t> expected(kWidth + 1, static_cast<std::uint8_t>(row / 10007 + 1));
    expected.back() = 200;
    EXPECT_EQ(values, expected) << "row " << row;
  }
}

/// Loopback ranks on one device. Integer values, so that sums are exact.
class CudaLoopback : public testing::TestWithParam<int> {};

TEST_P(CudaLoopback, ExchangesAndCollectives) {
  LONGHAUL_NEEDS_GPU();
  run_loopback(GetParam(), {}, [](std::unique_ptr<Communicator> world) {
    const Stream stream = cuda_stream("comm");
    const int rank = world->rank(), size = world->size();
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    // A ring shift of a strided view and a view after it that starts off its alignment, cast on the
    // wire.
    const Tensor sent = to_device(numbers(21, static_cast<float>(100 * rank)), stream);
    const Tensor got({21}, DType::float32, stream), small({3}, DType::bfloat16, stream),
        small_got({3}, DType::bfloat16, stream);
    fill(small, rank, stream);
    fill(got, -1, stream);
    const TensorView from = sent.view().reshape({3, 7}).slice(1, 1, 6),
                     to = got.view().reshape({3, 7}).slice(1, 1, 6);
    world->exchange({{next, {small.view(), from}}}, {{previous, {small_got.view(), to}}}, "shift",
                    stream);
    const std::vector<float> values = to_host<float>(got, stream);
    for (int i = 0; i < 21; ++i) {
      EXPECT_EQ(values[static_cast<std::size_t>(i)],
                i % 7 >= 1 && i % 7 < 6 ? static_cast<float>(100 * previous + i) : -1.0f);
    }
    EXPECT_EQ(static_cast<float>(to_host<BFloat16>(small_got, stream)[0]),
              static_cast<float>(previous));
    world->exchange({{next, {from}, DType::bfloat16}}, {{previous, {to}, DType::bfloat16}},
                    "narrow shift", stream);
    EXPECT_EQ(to_host<float>(got, stream)[1],
              static_cast<float>(BFloat16(static_cast<float>(100 * previous + 1))));

    std::vector<std::int64_t> counts;
    for (int r = 0; r < size; ++r) counts.push_back(r == 1 ? 0 : 3 + r);
    const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    const std::int64_t own = counts[static_cast<std::size_t>(rank)];
    const Tensor part = to_device(
        std::vector<float>(static_cast<std::size_t>(own), static_cast<float>(rank)), stream);
    const Tensor all({total}, DType::float32, stream);
    world->all_gather(part, all, counts, stream);
    const std::vector<float> gathered = to_host<float>(all, stream);
    std::size_t at = 0;
    for (int r = 0; r < size; ++r) {
      for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(r)]; ++i)
        EXPECT_EQ(gathered[at++], static_cast<float>(r));
    }
    world->reduce_scatter(all, part, counts, stream);
    for (const float value : to_host<float>(part, stream))
      EXPECT_EQ(value, static_cast<float>(rank * size));
    world->all_reduce(all, stream);
    EXPECT_EQ(to_host<float>(all, stream)[0], 0.0f);
    world->barrier(stream);
    stream.synchronize(deadline_in(kSeconds));
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, CudaLoopback, testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace longhaul::test
