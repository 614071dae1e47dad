#pragma once
// Who owns which part of the parameters, where every rank of a group holds all of them, and which
// blocks of its tensors such a part is. Plain data: parameter_exchange.h moves what it says.

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

/// A range of the flat storage that is reduced and gathered as one message. Rank r owns counts[r]
/// elements of it, rank 0 the first ones.
struct Bucket {
  ElementRange range;
  std::vector<std::int64_t> counts;
  ElementRange owned(int rank) const;
};

/// A table's flat storage, dealt to `ranks` ranks. Every group's part is dealt to all of them, so
/// that none waits while the others receive. Cuts lie at multiples of the gradient norm's chunk
/// (ops::kNormChunk), so every chunk has one owner; a chunk in which a group begins goes with the
/// group before it. What two ranks own differs by two chunks at most; with fewer chunks than ranks
/// some own nothing.
class Sharding {
 public:
  Sharding(const ParameterTable& table, int ranks);

  /// Elements that a rank owns at most: its even share, in whole chunks.
  static std::int64_t largest_share(std::int64_t elements, std::int64_t ranks);

  /// Ascending, one a group; groups in which no chunk begins have none.
  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// What a rank owns: ascending, neighbours joined. Over all ranks they are disjoint and cover the
  /// table.
  std::vector<ElementRange> owned(int rank) const;

 private:
  std::vector<Bucket> buckets_;
};

/// A box of a tensor.
struct Box {
  std::vector<std::int64_t> start, sizes;
  bool operator==(const Box&) const = default;
};

/// The elements [range.begin, range.end) of a tensor in row-major order as boxes, in that order: as
/// few whole rows at either end as there are, so at most 2 dims - 1 boxes (three of a matrix).
std::vector<Box> boxes_of(const std::vector<std::int64_t>& sizes, ElementRange range);

/// State laid out like a table's flat storage, or like some ranges of it: the values, a moment of
/// an optimizer. What it holds of parameter NAME belongs to the tensor prefix + NAME of a
/// checkpoint.
struct FlatState {
  std::string prefix;
  runtime::TensorView elements;      ///< [sum of the ranges], one range after another
  std::vector<ElementRange> ranges;  ///< of the table's storage, ascending and disjoint
};

/// A box of a global tensor, and the memory that holds it here.
struct StateBox {
  std::string name;                        ///< of the tensor
  std::vector<std::int64_t> sizes, start;  ///< of the tensor, and of the box in it
  runtime::TensorView view;                ///< in the box's sizes, contiguous
};

/// What `state` holds of the ranges `wanted` (ascending), as boxes of tensors.
std::vector<StateBox> state_boxes(const ParameterTable& table, const FlatState& state,
                                  const std::vector<ElementRange>& wanted);

}  // namespace longhaul::parallel
