// What the CPU's plans of linear attention share: workers that take (segment, head) items.
// Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_LINEAR_PLAN_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_PLAN_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_PLAN_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_PLAN_CPU_H
#endif

#include <omp.h>

#include <atomic>
#include <vector>

#include "attention/linear_impl.h"
#include "attention/linear_segments_impl.h"
#include "attention/linear_values_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

class CpuLinearPlan : public LinearPlan {
 public:
  std::int64_t scratch_bytes() const override {
    return worker_bytes_ * place().threads + shared_bytes_;
  }

 protected:
  CpuLinearPlan(LinearPass pass, const LinearShape& shape, const Recurrence& recurrence,
                std::vector<std::int64_t> starts, const BlockPlace& place)
      : LinearPlan(pass, shape, recurrence, std::move(starts), place),
        sizes{shape, recurrence},
        segments(detail::segments_of(shape.rows, this->starts())) {}

  /// Memory for Worker(Scratch&, plan, ...) a thread, and shared by all.
  void hold(std::int64_t worker_bytes, std::int64_t shared_bytes) {
    worker_bytes_ = worker_bytes;
    shared_bytes_ = shared_bytes;
  }
  std::byte* shared(std::byte* scratch) const { return scratch + worker_bytes_ * place().threads; }

  /// make(Scratch&) gives a thread's worker, whose run(item) takes items 0 .. count - 1; they begin
  /// in this order.
  template <class Make>
  void work(std::int64_t count, std::byte* scratch, const Make& make) const {
    std::atomic<std::int64_t> next{0};
#pragma omp parallel num_threads(place().threads)
    {
      Scratch carving(scratch + omp_get_thread_num() * worker_bytes_);
      auto worker = make(carving);
      for (std::int64_t item = next++; item < count; item = next++) worker.run(item);
    }
  }

 public:
  const ChunkSizes sizes;
  const std::vector<detail::Segment> segments;

 private:
  std::int64_t worker_bytes_ = 0, shared_bytes_ = 0;
};

std::shared_ptr<const LinearPlan> plan_sweep_backward(const LinearShape& shape,
                                                      const Recurrence& recurrence,
                                                      std::vector<std::int64_t> starts,
                                                      const BlockPlace& place);

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_LINEAR_PLAN_CPU_H
