// Prepared calls: a layer's call does nothing that grows with the batch; what is prepared is
// shared, and what cannot run is refused while preparing.
#include "parallel/prepared.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <new>
#include <thread>

#include "parallel/attention.h"
#include "runtime/comm/loopback.h"
#include "runtime/error.h"
#include "tests/support/scheme_cases.h"

namespace {

// Every allocation of the program while counting is on.
std::atomic<bool> counting{false};
std::atomic<std::int64_t> allocations{0}, allocated_bytes{0}, largest{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) {
    const auto size = static_cast<std::int64_t>(bytes);
    ++allocations;
    allocated_bytes += size;
    for (std::int64_t seen = largest; seen < size && !largest.compare_exchange_weak(seen, size);) {
    }
  }
  const std::size_t most = bytes == 0 ? alignment : (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, most);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// Where g++ 12 inlines one of a pair and not the other, it takes them for strangers.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
// What std::stable_sort asks for.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return allocate(bytes, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t bytes, const std::nothrow_t& no_throw) noexcept {
  return operator new(bytes, no_throw);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

constexpr int kRanks = 4;
constexpr std::int64_t kTokens = 21'000;
constexpr Shapes kShapes{4, 2, 8, 8, DType::float32};

runtime::Deadline deadline() { return runtime::deadline_in(240); }

/// `count` documents over all tokens; `shift` moves their borders. Five in a row are an odd number
/// of tokens, so that over a striped layout every rank sees keys of every other.
Mask documents(std::int64_t count, std::int64_t shift) {
  constexpr std::int64_t kLonger[] = {-1, 0, 1, 0, 1};
  const std::int64_t length = kTokens / count;
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t i = shift; offsets.back() < kTokens; ++i)
    offsets.push_back(std::min(kTokens, offsets.back() + length + kLonger[i % 5]));
  return Mask::documents(offsets);
}

struct Use {
  std::int64_t allocations = 0, bytes = 0, largest = 0, from_system = 0;
  std::int64_t buffers = 0;  ///< of the compute stream, at most over the batches
};

/// What a layer's call, forward and backward on all ranks, takes once its batch has been called
/// before: the least of several batches whose documents differ.
Use steady_call(const std::string& scheme_name, std::int64_t document_count) {
  Use least;
  runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    const Stream compute = Stream::cpu("compute");
    const int rank = world->rank();
    Attention attention({scheme_name, DType::float32}, world->split(0, rank, "context"), compute);
    const std::int64_t rows = kTokens / kRanks;
    const auto tensor = [&](std::int64_t heads, std::int64_t dim) {
      Tensor made({rows, heads, dim}, DType::float32, compute);
      runtime::fill(made, 0.5, compute);
      return made;
    };
    const Tensor q = tensor(4, 8), k = tensor(2, 8), v = tensor(2, 8), dout = tensor(4, 8),
                 out = tensor(4, 8), dq = tensor(4, 8), dk = tensor(2, 8), dv = tensor(2, 8);
    const Tensor lse({rows, 4, 2}, DType::float32, compute),
        delta({rows, 4}, DType::float32, compute);
    runtime::fill(delta, 0, compute);
    const auto meet = [&] {
      world->barrier(compute);
      compute.synchronize(deadline());
    };
    const auto call = [&](const AttentionBatch& batch) {
      attention.forward(batch, q, k, v, {}, out, lse)->finish();
      attention.backward(batch, {q, k, v, dout, lse, delta}, {}, dq, dk, dv)->finish();
      compute.synchronize(deadline());
    };
    for (int number = 0; number < 4; ++number) {
      const auto batch = attention.batch(documents(document_count, number),
                                         Layout(LayoutKind::striped, kTokens, 1, kRanks));
      attention.prepare(*batch, scheme_name, kShapes, {});
      call(*batch);  // the batch's first layer
      meet();
      const std::int64_t system = runtime::system_allocations();
      if (rank == 0) allocations = allocated_bytes = largest = 0;
      if (rank == 0) counting = true;
      meet();
      const std::int64_t buffers = compute.memory().buffers;
      call(*batch);
      const std::int64_t taken = compute.memory().buffers - buffers;
      meet();
      if (rank == 0) counting = false;
      const Use use{allocations, allocated_bytes, largest, runtime::system_allocations() - system};
      meet();  // the others go on only now
      if (rank != 0) continue;
      least.from_system += use.from_system;
      least.buffers = std::max(least.buffers, taken);
      if (number == 0 || use.allocations < least.allocations) least.allocations = use.allocations;
      if (number == 0 || use.bytes < least.bytes) least.bytes = use.bytes;
      if (number == 0 || use.largest < least.largest) least.largest = use.largest;
    }
  });
  return least;
}

TEST(Prepared, ALayersCallAllocatesAlikeForTenAndForFiveThousandDocuments) {
  for (const char* scheme : {"ring", "usp", "group_cast"}) {
    const Use few = steady_call(scheme, 10), many = steady_call(scheme, 5'000);
    std::printf("%-12s 10 documents: %ld allocations of %ld bytes; 5,000: %ld of %ld bytes\n",
                scheme, few.allocations, few.bytes, many.allocations, many.bytes);
    // How tasks meet decides over blocks of the streams' queues: a few more or fewer.
    EXPECT_NEAR(static_cast<double>(few.allocations), static_cast<double>(many.allocations),
                0.05 * static_cast<double>(few.allocations))
        << scheme;
    EXPECT_NEAR(static_cast<double>(few.bytes), static_cast<double>(many.bytes),
                0.05 * static_cast<double>(few.bytes))
        << scheme;
    EXPECT_LT(std::max(few.largest, many.largest), 16 << 10) << scheme;
    EXPECT_LT(many.allocations, 4'000) << scheme;  // 4 ranks, forward and backward
    // One arena for each direction, which the dense half uses between calls.
    EXPECT_EQ(few.buffers, 2) << scheme;
    EXPECT_EQ(many.buffers, 2) << scheme;
#ifndef __SANITIZE_ADDRESS__  // there every buffer is a segment of its own
    EXPECT_EQ(few.from_system + many.from_system, 0) << scheme;
#endif
  }
}

TEST(Prepared, GroupCastsStepsDoNotGrowWithIntervals) {
  const Layout layout(LayoutKind::striped, kTokens, 1, kRanks);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    std::map<std::int64_t, std::size_t> steps;
    for (const std::int64_t count : {10, 5'000}) {
      SchemeInputs inputs{documents(count, 0), layout, kShapes, direction};
      inputs.scheme = "group_cast";
      steps[count] = prepare(inputs)(1).steps.size();
    }
    EXPECT_EQ(steps[10], steps[5'000]) << name(direction);
  }
}

TEST(Prepared, OneIsSharedByCallsOnSeveralThreads) {
  // A rank alone: 3 threads, each with streams of its own, run one prepared program.
  const std::int64_t n = 127;
  const HeadMasks mask = Mask::causal(n);
  const Layout layout(LayoutKind::zigzag, n, 1, 1);
  const SchemeInputs inputs{mask, layout, kShapes};
  const auto prepared = std::make_shared<const Prepared>(
      prepare(inputs)(0), forward_signature(attention::Weighting::softmax), attention::Scoring{},
      attention::BlockPlace{});
  std::vector<std::vector<float>> outs(3);
  std::vector<std::thread> threads;
  for (std::vector<float>& result : outs) {
    threads.emplace_back([&] {
      const Stream compute = Stream::cpu("compute");
      std::vector<Channel> channels;
      channels.push_back({Stream::cpu("channel"), nullptr});
      Tensor q({n, 4, 8}, DType::float32, compute), k({n, 2, 8}, DType::float32, compute),
          out({n, 4, 8}, DType::float32, compute), lse({n, 4, 2}, DType::float32, compute);
      for (Tensor* tensor : {&q, &k}) {
        for (std::int64_t i = 0; i < tensor->elements(); ++i)
          tensor->as<float>()[i] = static_cast<float>(i % 13) / 7 - 1;
      }
      const auto loaded = std::make_shared<const Loaded>(prepared, compute);
      for (int repeat = 0; repeat < 5; ++repeat) {
        Execution(loaded, std::vector<runtime::ConstTensorView>{q, k, k},
                  std::vector<runtime::TensorView>{out, lse}, compute, channels)
            .finish();
      }
      compute.synchronize(deadline());
      result.assign(out.as<float>(), out.as<float>() + out.elements());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(outs[0], outs[1]);
  EXPECT_EQ(outs[0], outs[2]);
  EXPECT_NE(outs[0], std::vector<float>(outs[0].size(), 0));
}

TEST(Prepared, WhatCannotRunIsRefusedWhilePreparing) {
  const std::int64_t n = 12;
  const Layout layout(LayoutKind::contiguous, n, 1, 1);
  const SchemeInputs inputs{Mask::causal(n), layout, kShapes};
  const Program program = prepare(inputs)(0);
  const Signature signature = forward_signature(attention::Weighting::softmax);
  const auto make = [&](const Program& of, const Signature& names,
                        const attention::Scoring& scoring, const attention::BlockPlace& place) {
    return Prepared(of, names, scoring, place).arena_bytes();
  };
  EXPECT_GT(make(program, signature, {}, {}), 0);
  EXPECT_THROW(make(program, signature, {.softcap = -1}, {}), runtime::Error);
  EXPECT_THROW(make(program, signature, {.weighting = attention::Weighting::sigmoid}, {}),
               runtime::Error);
  EXPECT_THROW(make(program, backward_signature(attention::Weighting::softmax), {}, {}),
               runtime::Error);
  Program leaves = program;
  std::get<Attend>(leaves.steps[0].operation).bands[0].q_end += 1;
  EXPECT_THROW(make(leaves, signature, {}, {}), runtime::Error);
  Program saved = program;
  saved.slots.push_back({"kept", AttentionRecords(kShapes).q, 3, 4, Role::saved});
  // What is kept has memory of its own.
  const auto keeps = std::make_shared<const Prepared>(saved, signature, attention::Scoring{},
                                                      attention::BlockPlace{});
  EXPECT_EQ(keeps->saved_bytes(), slot_bytes(saved.slots.back()));
}

TEST(Prepared, ABatchIsPreparedWhileAnotherRuns) {
  // The one that is prepared ahead gives the bits of the one that is not.
  const std::int64_t n = 97;
  std::array<std::vector<float>, 2> results;
  for (const bool ahead : {false, true}) {
    runtime::run_loopback(2, {}, [&](std::unique_ptr<runtime::Communicator> world) {
      const Stream compute = Stream::cpu("compute");
      const int rank = world->rank();
      Attention attention({"ring", DType::float32}, world->split(0, rank, "context"), compute);
      const Layout layout(LayoutKind::zigzag, n, 1, 2);
      const std::array batches{attention.batch(Mask::causal(n), layout),
                               attention.batch(Mask::full(n), layout)};
      const std::int64_t rows = layout.rows(rank);
      Tensor q({rows, 4, 8}, DType::float32, compute), k({rows, 2, 8}, DType::float32, compute),
          out({rows, 4, 8}, DType::float32, compute), lse({rows, 4, 2}, DType::float32, compute);
      for (Tensor* tensor : {&q, &k}) {
        for (std::int64_t i = 0; i < tensor->elements(); ++i)
          tensor->as<float>()[i] = static_cast<float>((i + rank) % 13) / 7 - 1;
      }
      std::thread loader;
      for (int number = 0; number < 2; ++number) {
        if (ahead && number == 0)
          loader = std::thread([&] { attention.prepare(*batches[1], "ring", kShapes, {}); });
        attention.forward(*batches[static_cast<std::size_t>(number)], q, k, k, {}, out, lse)
            ->finish();
        if (loader.joinable()) loader.join();
      }
      compute.synchronize(deadline());
      if (rank == 0) results[ahead].assign(out.as<float>(), out.as<float>() + out.elements());
    });
  }
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace longhaul::parallel
