#pragma once
// A backward call on the CPU, over kernels of one kind of instructions. A work item is one
// key/value head and key block; it holds dK and dV and goes over the query heads and row blocks
// that see it. P comes from the global LSE. dQ of a row block is summed in the order of the key
// blocks: an item waits for its turn, which in the usual order of work has come already.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/block_plan.h"
#include "attention/put_rows_cpu.h"
#include "attention/scratch_cpu.h"
#include "attention/tiles.h"
#include "attention/turns_cpu.h"

namespace longhaul::attention {

/// Rows [begin, begin + count) of a head.
struct HeadBlock {
  std::int64_t head, begin, count;
};

/// Kernel, of a shape and a scoring, has
///   kQBlock, kKBlock: rows and keys of a tile;
///   dim(), value_dim(): from row to row of dQ and dK, and of dV, in the scratch;
///   ThreadScratch(scratch, kernel, tiles), with float* `dq`, `dk`, `dv` and a TileRows `tile`;
///   start(in, keys, thread scratch): packs those keys and values; dk, dv <- 0;
///   add(in, keys, rows, thread scratch): dq <- the share of the tile that the scratch describes,
///     dk, dv += theirs;
///   finish(keys, thread scratch): what all of dk and dv need last;
///   Registers: what a thread holds while it computes.
template <class Kernel>
class BackwardPlan final : public BlockPlan {
 public:
  BackwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
               const BlockPlace& place)
      : BlockPlan(Pass::backward, shape, scoring, place),
        kernel_(shape, scoring),
        tiles_(bands, shape.q_rows, shape.k_rows, Kernel::kQBlock, Kernel::kKBlock),
        thread_bytes_(carved_bytes([this](Scratch& s) { ThreadScratch(s, kernel_, tiles_); })) {}

  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  using BlockPlan::compute;
  void compute(const BlockBackwardTensors& t, std::byte* scratch) const override {
    Scratch carving(scratch);
    const Memory memory = carve(carving);
    if (t.dq_mode == Mode::write) clear_unseen_rows(t);
    Turns turns(memory.turns, row_blocks());
    // Items start in this order, so the earliest unfinished one never waits.
    std::atomic<std::int64_t> next{0};
    const std::int64_t items = shape().kv_heads * tiles_.k_blocks();
#pragma omp parallel num_threads(place().threads)
    {
      Scratch own(memory.threads + omp_get_thread_num() * thread_bytes_);
      ThreadScratch thread(own, kernel_, tiles_);
      [[maybe_unused]] const typename Kernel::Registers registers{};
      for (std::int64_t item = next++; item < items; item = next++)
        key_block(t, item / tiles_.k_blocks(), item % tiles_.k_blocks(), turns, thread);
    }
  }

 protected:
  void run_backward(const BlockBackwardTensors& tensors, const BlockMemory& memory,
                    const runtime::Stream& stream) const override {
    stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
      compute(tensors, scratch);
    });
  }

 private:
  using ThreadScratch = typename Kernel::ThreadScratch;

  struct Memory {
    Turns::Turn* turns;
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    return {scratch.array<Turns::Turn>(row_blocks()),
            scratch.array<std::byte>(place().threads * thread_bytes_)};
  }
  std::int64_t row_blocks() const { return shape().heads * tiles_.q_blocks(); }

  void clear_unseen_rows(const BlockBackwardTensors& t) const {
#pragma omp parallel for num_threads(place().threads)
    for (std::int64_t qb = 0; qb < tiles_.q_blocks(); ++qb) {
      if (tiles_.work(qb) == 0) clear_rows(t.dq, qb * Kernel::kQBlock, tiles_.q_count(qb));
    }
  }

  void key_block(const BlockBackwardTensors& t, std::int64_t kv_head, std::int64_t kb, Turns& turns,
                 ThreadScratch& s) const {
    const HeadBlock keys{kv_head, kb * Kernel::kKBlock, tiles_.k_count(kb)};
    if (tiles_.used(kb)) {
      kernel_.start(t.inputs, keys, s);
      add_rows(t, keys, kb, turns, s);
      kernel_.finish(keys, s);
    } else if (t.dkv_mode == Mode::write) {
      std::fill_n(s.dk, keys.count * kernel_.dim(), 0.0f);
      std::fill_n(s.dv, keys.count * kernel_.value_dim(), 0.0f);
    } else {
      return;
    }
    put_gradients(s.dk, kernel_.dim(), t.dk, kv_head, keys.begin, keys.count, t.dkv_mode);
    put_gradients(s.dv, kernel_.value_dim(), t.dv, kv_head, keys.begin, keys.count, t.dkv_mode);
  }

  void add_rows(const BlockBackwardTensors& t, const HeadBlock& keys, std::int64_t kb, Turns& turns,
                ThreadScratch& s) const {
    const std::int64_t group = shape().heads / shape().kv_heads;
    for (std::int64_t head = keys.head * group; head < (keys.head + 1) * group; ++head) {
      for (std::int64_t qb = 0; qb < tiles_.q_blocks(); ++qb) {
        if (tiles_.kind(qb, kb) == TileKind::empty) continue;
        const HeadBlock rows{head, qb * Kernel::kQBlock, tiles_.q_count(qb)};
        tiles_.describe(qb, kb, s.tile);
        kernel_.add(t.inputs, keys, rows, s);
        const std::int64_t turn = tiles_.tiles_before(qb, kb);
        turns.wait(head * tiles_.q_blocks() + qb, turn);
        put_gradients(s.dq, kernel_.dim(), t.dq, head, rows.begin, rows.count,
                      turn == 0 ? t.dq_mode : Mode::add);
        turns.pass(head * tiles_.q_blocks() + qb);
      }
    }
  }

  const Kernel kernel_;
  const TilePlan tiles_;
  const std::int64_t thread_bytes_;
};

}  // namespace longhaul::attention
