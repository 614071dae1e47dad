// How the states of runs fold, on the CPU: out[row] <- T in[row] + addend[row], each row on its
// own.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_fold_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <omp.h>

#include "attention/linear_impl.h"
#include "attention/linear_keys_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

constexpr std::int64_t kRows = 48;  // of an item

class Folding {
 public:
  Folding(const StateMap& fold, ConstTensorView from, ConstTensorView plus, TensorView to)
      : how(fold), in(from), addend(plus), out(to) {}
  std::int64_t dim() const { return out.size(2); }
  std::int64_t blocks() const { return (out.size(0) + kRows - 1) / kRows; }
  std::int64_t heads() const { return out.size(1); }
  bool delta() const { return how.recurrence.rule == StateRule::delta; }

  struct Memory {
    Matrix map;   // B of the product: T^T, or T where transposed
    Matrix rows;  // of T while it is transposed, then of the state
    Matrix sums;
    float *high, *low;  // [D] a diagonal T
    Memory(Scratch& s, const Folding& folding)
        : map(matrix(s, folding.delta() ? folding.dim() : 0, folding.dim())),
          rows(matrix(s, std::max(folding.delta() ? folding.dim() : 0, kRows), folding.dim())),
          sums(matrix(s, kRows, folding.dim())),
          high(s.floats(padded_to_vectors(folding.dim()))),
          low(s.floats(padded_to_vectors(folding.dim()))) {}
  };

  void run(std::int64_t item, const Memory& m) const {
    const std::int64_t head = item / blocks(), first = item % blocks() * kRows,
                       count = std::min(kRows, out.size(0) - first);
    if (delta()) {
      load_map(head, m);
    } else {
      load_diagonal(head, m);
    }
    load_rows(rows_of(in, head, first, count), 1, m.rows);
    if (delta()) product<Operand::rows, Into::store>(count, dim(), dim(), m.rows, m.map, m.sums);
    for (std::int64_t row = 0; row < count; ++row) {
      float* sums = m.sums.row(row);
      if (!delta()) decay_row(m.rows.row(row), m, sums);
      if (addend.data() != nullptr) add_row(head, first + row, sums);
    }
    store_rows(m.sums, out, head, first, count);
  }

 private:
  void load_map(std::int64_t head, const Memory& m) const {
    const HeadRows map = rows_of(how.transition, head, 0, dim());
    if (how.transposed) return load_rows(map, 1, m.map);
    load_rows(map, 1, m.rows);
    transpose(dim(), dim(), m.rows, m.map);
  }
  void load_diagonal(std::int64_t head, const Memory& m) const {
    const ConstTensorView& logs = how.transition;
    const Decay decay = how.recurrence.decay;
    TwoFloats by{1, 0};
    if (decay == Decay::head) {
      const float slope = how.slopes.as<float>()[head * how.slopes.stride(1)];
      by = exp_of(static_cast<double>(slope) * static_cast<double>(how.tokens));
    }
    for (std::int64_t d = 0; d < dim(); ++d) {
      if (decay == Decay::vector || (decay == Decay::scalar && d == 0))
        by = exp_of(static_cast<double>(logs.as<float>()[head * logs.stride(1) + d]));
      m.high[d] = by.high;
      m.low[d] = by.low;
    }
  }
  void decay_row(const float* row, const Memory& m, float* to) const {
    for (std::int64_t d = 0; d < dim(); d += kLanes) {
      hn::Store(decayed(hn::Load(kFloats, row + d), hn::Load(kFloats, m.high + d),
                        hn::Load(kFloats, m.low + d)),
                kFloats, to + d);
    }
  }
  void add_row(std::int64_t head, std::int64_t row, float* to) const {
    const float* from = addend.as<float>() + row * addend.stride(0) + head * addend.stride(1);
    for (std::int64_t d = 0; d < dim(); ++d) to[d] += from[d];
  }

  const StateMap how;
  const ConstTensorView in, addend;
  const TensorView out;
};

}  // namespace

void fold_states(const StateMap& how, const ConstTensorView& in, const ConstTensorView& addend,
                 const TensorView& out, const Stream& stream) {
  const Folding folding(how, in, addend, out);
  const std::int64_t bytes = carved_bytes([&](Scratch& s) { Folding::Memory(s, folding); });
  const int threads = stream.threads();
  const runtime::Buffer scratch = stream.allocate(bytes * threads);
  stream.cpu_task([folding, bytes, threads, memory = scratch.data()] {
    const std::int64_t items = folding.heads() * folding.blocks();
#pragma omp parallel num_threads(threads)
    {
      Scratch carving(memory + omp_get_thread_num() * bytes);
      const Folding::Memory own(carving, folding);
#pragma omp for schedule(dynamic)
      for (std::int64_t item = 0; item < items; ++item) folding.run(item, own);
    }
  });
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention {

HWY_EXPORT(fold_states);

void detail::cpu_fold(const StateMap& how, runtime::ConstTensorView in,
                      runtime::ConstTensorView addend, runtime::TensorView out,
                      const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(fold_states)(how, in, addend, out, stream);
}

}  // namespace longhaul::attention
#endif  // HWY_ONCE
