// Block calls that only take time: pretence.h.

#include <algorithm>
#include <cstring>

#include "attention/block_impl.h"
#include "attention/tiles.h"
#include "runtime/occupy.h"

namespace longhaul::attention::detail {
namespace {

using runtime::Stream;
using runtime::TensorView;

constexpr std::int64_t kTile = 128;

struct Interval {
  std::int64_t begin, end;
};

/// Numbers that are in an interval at least.
std::int64_t covered(std::vector<Interval> intervals) {
  std::ranges::sort(intervals, {}, &Interval::begin);
  std::int64_t count = 0, end = 0;
  for (const Interval& of : intervals) {
    count += std::max(of.end, end) - std::max(of.begin, end);
    end = std::max(of.end, end);
  }
  return count;
}

/// Every row of a tightened band sees a key, every key is seen.
std::int64_t rows_of_work(Pass pass, const std::vector<Slice>& bands) {
  std::vector<Interval> queries, keys;
  for (const Slice& band : bands) {
    queries.push_back({band.q_begin, band.q_end});
    keys.push_back({band.k_begin, band.k_end});
  }
  const std::int64_t rows = covered(std::move(queries));
  return pass == Pass::forward ? rows : rows + covered(std::move(keys));
}

double seconds_of(Pass pass, const std::vector<Slice>& bands, const BlockShape& s,
                  const Pretence& pretence) {
  const TilePlan tiles(bands, s.q_rows, s.k_rows, kTile, kTile);
  std::int64_t full = 0, partial = 0;
  for (std::int64_t qb = 0; qb < tiles.q_blocks(); ++qb) {
    for (std::int64_t kb = 0; kb < tiles.k_blocks(); ++kb) {
      const std::int64_t pairs = tiles.q_count(qb) * tiles.k_count(kb);
      if (tiles.kind(qb, kb) == TileKind::full) full += pairs;
      if (tiles.kind(qb, kb) == TileKind::partial) partial += pairs;
    }
  }
  const std::int64_t of_pair =
      pass == Pass::forward ? 2 * (s.dim + s.value_dim) : 6 * s.dim + 4 * s.value_dim;
  const double pairs = static_cast<double>(full) + pretence.partial * static_cast<double>(partial) +
                       pretence.rows * static_cast<double>(rows_of_work(pass, bands));
  const double flops = static_cast<double>(of_pair * s.heads) * pairs;
  return pretence.slowdown * (pretence.seconds + flops / pretence.flops_per_second);
}

/// Zeros in every element: rows and heads may be strided.
void clear(const TensorView& view) {
  if (view.data() == nullptr || view.elements() == 0) return;
  const auto bytes = static_cast<std::size_t>(view.size(2)) * sizeof(float);
  for (std::int64_t row = 0; row < view.size(0); ++row) {
    for (std::int64_t head = 0; head < view.size(1); ++head)
      std::memset(view.as<float>() + row * view.stride(0) + head * view.stride(1), 0, bytes);
  }
}

class PretendedPlan final : public BlockPlan {
 public:
  PretendedPlan(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
                const Scoring& scoring, const BlockPlace& place)
      : BlockPlan(pass, shape, scoring, place),
        seconds_(seconds_of(pass, bands, shape, *place.pretence)) {}
  std::int64_t scratch_bytes() const override { return 0; }
  double pretended_seconds() const override { return seconds_; }

 protected:
  void run_forward(const BlockForwardTensors& t, const BlockMemory&,
                   const Stream& stream) const override {
    runtime::occupy(stream, seconds_, [t] {
      if (t.mode == Mode::add) return;
      clear(t.out);
      clear(t.lse);
    });
  }
  void run_backward(const BlockBackwardTensors& t, const BlockMemory&,
                    const Stream& stream) const override {
    runtime::occupy(stream, seconds_, [t] {
      if (t.dq_mode == Mode::write) clear(t.dq);
      if (t.dkv_mode == Mode::add) return;
      clear(t.dk);
      clear(t.dv);
    });
  }

 private:
  const double seconds_;
};

}  // namespace

std::shared_ptr<const BlockPlan> pretended_plan(Pass pass, const std::vector<Slice>& bands,
                                                const BlockShape& shape, const Scoring& scoring,
                                                const BlockPlace& place) {
  return std::make_shared<const PretendedPlan>(pass, bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail
