#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <memory>
#include <vector>

#include "runtime/error.h"

thread_local dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace longhaul::test {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSharedBytes = 227 * 1024;  // what a block of sm_90 can have
constexpr unsigned kWarp = 32, kMaxThreads = 256;

/// Threads that wait for each other. A barrier opens when all that have not ended have come.
struct Barrier {
  unsigned members = 0, arrived = 0;
  std::uint64_t generation = 0;
};

/// Entered once by swapcontext, which makes a system call; switched by jumps from then on.
struct Fiber {
  ucontext_t context{};
  jmp_buf place;
  bool started = false;
  bool ended = false;
};

/// The block that runs on this OS thread.
struct Block {
  ucontext_t scheduler{};
  jmp_buf scheduler_place;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<std::array<std::array<std::uint64_t, kWarp>, 2>>
      shuffled;  // of a warp; in turn, so that one barrier is enough
  const std::function<void()>* body = nullptr;
  unsigned current = 0;
  std::uint64_t progress = 0;  // barriers passed and threads ended, to find a deadlock

  void yield() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler_place, 1);
  }
  void resume(unsigned thread) {
    current = thread;
    Fiber& fiber = fibers[thread];
    if (_setjmp(scheduler_place) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    swapcontext(&scheduler, &fiber.context);
  }
  void wait(Barrier& barrier) {
    const std::uint64_t generation = barrier.generation;
    ++barrier.arrived;
    open_if_complete(barrier);
    while (barrier.generation == generation) yield();
  }
  void open_if_complete(Barrier& barrier) {
    if (barrier.members == 0 || barrier.arrived < barrier.members) return;
    barrier.arrived = 0;
    ++barrier.generation;
    ++progress;
  }
  Barrier& warp() { return warps[current / kWarp]; }
};
thread_local Block* block = nullptr;
alignas(16) thread_local std::byte shared_memory[kSharedBytes];

void run_fiber() {
  Block& self = *block;
  (*self.body)();
  self.fibers[self.current].ended = true;
  ++self.progress;
  for (Barrier* barrier : {&self.warp(), &self.all}) {
    --barrier->members;
    self.open_if_complete(*barrier);
  }
  self.yield();
}

void run_block(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  Block self;
  const unsigned threads = config.blockDim.x;
  self.fibers.resize(threads);
  self.warps.resize((threads + kWarp - 1) / kWarp);
  self.shuffled.resize(self.warps.size());
  self.all.members = threads;
  for (unsigned t = 0; t < threads; ++t) ++self.warps[t / kWarp].members;
  self.body = &body;
  block = &self;
  // Of all blocks in turn, and not initialised: clearing them would be most of the work.
  static thread_local const auto stacks =
      std::make_unique_for_overwrite<std::byte[]>(kMaxThreads * kStackBytes);
  std::size_t stack = 0;
  LONGHAUL_CHECK(threads <= kMaxThreads, "a block of ", threads, " threads; expected at most ",
                 kMaxThreads);
  for (Fiber& fiber : self.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {stacks.get() + stack * kStackBytes, 0, kStackBytes};
    ++stack;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (unsigned ended = 0; ended < threads;) {
    const std::uint64_t before = self.progress;
    ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      // In every other block from the last one: nothing may count on the order of threads either.
      const unsigned t = (blockIdx.x + blockIdx.y) % 2 == 0 ? i : threads - 1 - i;
      threadIdx = dim3(t, 0, 0);
      if (!self.fibers[t].ended) self.resume(t);
      ended += self.fibers[t].ended;
    }
    LONGHAUL_CHECK(ended == threads || self.progress != before, "threads of block ", blockIdx.x,
                   ", ", blockIdx.y, " wait at a barrier that the others never reach");
  }
  block = nullptr;
}

}  // namespace

float* emulated_shared_memory() { return reinterpret_cast<float*>(shared_memory); }

void emulate(const cudaLaunchConfig_t& config, const std::function<void()>& thread_body) {
  LONGHAUL_CHECK(config.dynamicSmemBytes <= kSharedBytes, "a block asks for ",
                 config.dynamicSmemBytes, " bytes of shared memory; sm_90 has ", kSharedBytes);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  for (unsigned y = 0; y < config.gridDim.y; ++y) {
    // From the last one: nothing may count on the order of blocks.
    for (unsigned x = config.gridDim.x; x-- > 0;) {
      blockIdx = dim3(x, y, 0);
      std::fill_n(reinterpret_cast<float*>(shared_memory), config.dynamicSmemBytes / sizeof(float),
                  NAN);
      run_block(config, thread_body);
    }
  }
}

}  // namespace longhaul::test

void __syncthreads() {
  using longhaul::test::block;
  block->wait(block->all);
}
void __syncwarp() {
  using longhaul::test::block;
  block->wait(block->warp());
}
std::uint64_t longhaul::test::shuffle(std::uint64_t bits, unsigned lane) {
  auto& values = block->shuffled[block->current / 32][block->warp().generation % 2];
  values[block->current % 32] = bits;
  block->wait(block->warp());
  return values[lane];
}
