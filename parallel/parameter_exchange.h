#pragma once
// What ranks that hold the same parameters do together in a step: they add up gradients, find their
// norm, and share the update where each has updated a part.

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/sharding.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

/// Flat tensors are [elements of the table] fp32 of the compute stream. Work beside compute runs on
/// a stream of its own. All ranks call alike; results do not depend on who updates what, bit for
/// bit. Source of the sharded update: Rajbhandari et al. 2020 (ZeRO, stage 1).
class ParameterExchange {
 public:
  /// `sharded`: each rank updates what it owns; else every rank updates everything.
  ParameterExchange(const ParameterTable& table, bool sharded,
                    std::unique_ptr<runtime::Communicator> comm, const runtime::Stream& compute);

  const Sharding& sharding() const { return sharding_; }
  /// What this rank updates: ascending and disjoint.
  const std::vector<ElementRange>& updated() const { return updated_; }

  /// The gradients of `finished` are complete on this rank: sums over ranks of what is now complete
  /// start, beside later work of compute. A step calls this with ranges that follow each other
  /// from the end of the table to its beginning. Gradients that this rank does not update are
  /// undefined afterwards.
  /// Comm: n elements reduced and gathered, or sharded only reduced: n (P-1)/P sent for each.
  void reduce(runtime::TensorView gradients, ElementRange finished);

  /// After the last reduce() of a step: the Euclidean norm of the sums, float64[1], on compute,
  /// which waits for them. Double sums over chunks, added in the order of chunks.
  [[nodiscard]] runtime::Tensor gradient_norm(runtime::ConstTensorView gradients);

  /// After the update: every rank gets the values that others have updated; compute waits for them.
  /// Comm: sharded, n elements gathered; else none.
  void share(runtime::TensorView values);

  /// Most bytes in staging memory of the exchange's stream since the last reset.
  std::int64_t peak_staging_bytes() const { return stream_.memory().peak_bytes; }
  void reset_peak() const { stream_.reset_peak(); }

 private:
  const std::unique_ptr<runtime::Communicator> comm_;
  const bool sharded_;
  const runtime::Stream compute_, stream_;
  const Sharding sharding_;
  const std::int64_t elements_;
  const std::vector<ElementRange> updated_;
  std::int64_t complete_;    ///< the gradients from this element on, in this step
  std::size_t waiting_ = 0;  ///< buckets that are not being reduced yet: the first ones
};

}  // namespace longhaul::parallel
