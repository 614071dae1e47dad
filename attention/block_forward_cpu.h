#pragma once
// A forward call on the CPU, over kernels of one kind of instructions. K and V are packed once a
// key/value head and shared by all its query heads and rows; then every (query head, block of rows)
// is one work item that streams over the key blocks, or several where there are few, whose results
// are merged in order.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/block_plan.h"
#include "attention/row_parts.h"
#include "attention/scratch_cpu.h"
#include "attention/tiles.h"

namespace longhaul::attention {

/// An item's tiles, all of one block of rows of a query head.
template <class Packed>
struct ForwardItem {
  const BlockForwardTensors& t;
  const TilePlan& tiles;
  const RowPart& part;
  std::int64_t head, kv_head;  // of the views
  const Packed* packed;        // of the key/value head, one key block behind the other
  const std::uint8_t* finite;  // of those, whether the values all are

  /// Calls visit(key block), rising, when `tile` describes what its keys are to the rows.
  template <class Visit>
  void each_tile(TileRows& tile, const Visit& visit) const {
    for (std::int64_t kb = 0, count = 0; count < part.last; ++kb) {
      if (tiles.kind(part.qb, kb) == TileKind::empty || count++ < part.first) continue;
      tiles.describe(part.qb, kb, tile);
      visit(kb);
    }
  }
};

/// Kernel, of a shape and a scoring, has
///   kQBlock, kKBlock: rows and keys of a tile;
///   Packed, block_elements(): what packed keys and values of kKBlock keys are and how many of it;
///   pack(t, key/value head, first key, keys, to): packs those; returns whether the values are
///   finite; Partial(scratch, kernel): what an item has made of its keys, for kQBlock rows;
///   clear(partial, rows): that of no key; merge(added, into, rows); write(partial, t, first row,
///     rows, head);
///   ThreadScratch(scratch, kernel, tiles), with a Partial `partial` and a TileRows `tile`;
///   attend(item, thread scratch): adds the item's keys to the scratch's partial;
///   Registers: what a thread holds while it computes.
template <class Kernel>
class ForwardPlan final : public BlockPlan {
 public:
  ForwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
              const BlockPlace& place)
      : BlockPlan(Pass::forward, shape, scoring, place),
        kernel_(shape, scoring),
        tiles_(bands, shape.q_rows, shape.k_rows, Kernel::kQBlock, Kernel::kKBlock),
        rows_(tiles_, shape.heads),
        thread_bytes_(carved_bytes([this](Scratch& s) { ThreadScratch(s, kernel_, tiles_); })),
        partial_bytes_(carved_bytes([this](Scratch& s) { Partial(s, kernel_); })) {}

  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  using BlockPlan::compute;
  void compute(const BlockForwardTensors& t, std::byte* scratch) const override {
    Scratch carving(scratch);
    const Memory memory = carve(carving);
    const std::int64_t kv_heads = shape().kv_heads, at_once = heads_at_once(),
                       k_blocks = tiles_.k_blocks();
    for (std::int64_t first = 0; first < kv_heads; first += at_once) {
      const std::int64_t count = std::min(at_once, kv_heads - first), heads = count * group(),
                         items = std::ssize(rows_.parts()) * heads,
                         merges = std::ssize(rows_.cut_rows()) * heads;
#pragma omp parallel num_threads(place().threads)
      {
#pragma omp for schedule(dynamic)
        for (std::int64_t block = 0; block < count * k_blocks; ++block) {
          if (tiles_.used(block % k_blocks)) pack(t, first, block, memory);
        }
        Scratch own(memory.threads + omp_get_thread_num() * thread_bytes_);
        const ThreadScratch thread(own, kernel_, tiles_);
        [[maybe_unused]] const typename Kernel::Registers registers{};
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < items; ++item)
          attend(t, at(rows_.parts(), item / heads), first, item % heads, memory, thread);
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < merges; ++item)
          finish(t, at(rows_.cut_rows(), item / heads), first, item % heads, memory);
      }
    }
  }

 protected:
  void run_forward(const BlockForwardTensors& tensors, const BlockMemory& memory,
                   const runtime::Stream& stream) const override {
    stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
      compute(tensors, scratch);
    });
  }

 private:
  using Packed = typename Kernel::Packed;
  using Partial = typename Kernel::Partial;
  using ThreadScratch = typename Kernel::ThreadScratch;

  /// Packed keys and values held at once, if more than one head.
  static constexpr std::int64_t kPackBytes = 64 << 20;

  struct Memory {
    Packed* packed;        // keys and values, [heads at once][key blocks]
    std::uint8_t* finite;  // whether a block's values all are
    std::byte* partials;   // of the parts of rows, [heads at once x group][slots]
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    const std::int64_t blocks = heads_at_once() * tiles_.k_blocks(),
                       parts = heads_at_once() * group() * rows_.slots();
    return {scratch.array<Packed>(blocks * kernel_.block_elements()),
            scratch.array<std::uint8_t>(blocks), scratch.array<std::byte>(parts * partial_bytes_),
            scratch.array<std::byte>(place().threads * thread_bytes_)};
  }

  /// Query heads that share a key/value head.
  std::int64_t group() const {
    return shape().kv_heads == 0 ? 0 : shape().heads / shape().kv_heads;
  }
  /// Key/value heads whose packed keys and values are held at once.
  std::int64_t heads_at_once() const {
    const std::int64_t head_bytes =
        tiles_.k_blocks() * kernel_.block_elements() * static_cast<std::int64_t>(sizeof(Packed));
    return std::clamp<std::int64_t>(kPackBytes / std::max<std::int64_t>(1, head_bytes), 1,
                                    std::max<std::int64_t>(1, shape().kv_heads));
  }

  template <class T>
  static const T& at(const std::vector<T>& all, std::int64_t i) {
    return all[static_cast<std::size_t>(i)];
  }

  // `first` is the first of the key/value heads at once, and `head` a query head of theirs, from 0.

  void pack(const BlockForwardTensors& t, std::int64_t first, std::int64_t block,
            const Memory& memory) const {
    const std::int64_t kb = block % tiles_.k_blocks();
    memory.finite[block] =
        kernel_.pack(t, first + block / tiles_.k_blocks(), kb * Kernel::kKBlock, tiles_.k_count(kb),
                     memory.packed + block * kernel_.block_elements());
  }

  Partial partial(std::int64_t head, std::int64_t slot, const Memory& memory) const {
    Scratch carving(memory.partials + (head * rows_.slots() + slot) * partial_bytes_);
    return {carving, kernel_};
  }

  void attend(const BlockForwardTensors& t, const RowPart& part, std::int64_t first,
              std::int64_t head, const Memory& memory, const ThreadScratch& thread) const {
    if (part.first == part.last && t.mode == Mode::add) return;
    ThreadScratch own = thread;
    if (part.slot >= 0) own.partial = partial(head, part.slot, memory);
    kernel_.clear(own.partial, tiles_.q_count(part.qb));
    const std::int64_t kv_head = head / group(), blocks = kv_head * tiles_.k_blocks();
    if (part.first < part.last)
      kernel_.attend({t, tiles_, part, first * group() + head, first + kv_head,
                      memory.packed + blocks * kernel_.block_elements(), memory.finite + blocks},
                     own);
    if (part.slot < 0) write(t, part.qb, first * group() + head, own.partial);
  }

  /// The parts of a row become one, in order: the first of them.
  void finish(const BlockForwardTensors& t, const CutRow& cut, std::int64_t first,
              std::int64_t head, const Memory& memory) const {
    const Partial into = partial(head, cut.slot, memory);
    for (std::int64_t part = 1; part < cut.parts; ++part)
      kernel_.merge(partial(head, cut.slot + part, memory), into, tiles_.q_count(cut.qb));
    write(t, cut.qb, first * group() + head, into);
  }

  void write(const BlockForwardTensors& t, std::int64_t qb, std::int64_t head,
             const Partial& partial) const {
    kernel_.write(partial, t, qb * Kernel::kQBlock, tiles_.q_count(qb), head);
  }

  const Kernel kernel_;
  const TilePlan tiles_;
  const RowParts rows_;
  const std::int64_t thread_bytes_, partial_bytes_;
};

}  // namespace longhaul::attention
