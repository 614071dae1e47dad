#pragma once
// The process grid: how ranks are numbered along named axes, and the communicators along them.

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/grid_shape.h"

namespace longhaul::runtime {

/// Outermost first: ranks that are neighbours on the context axis are neighbours in the world.
enum class Axis : std::uint8_t { pipeline, data, tensor, context };
constexpr int kAxes = 4;
const char* name(Axis axis);

class ProcessGrid {
 public:
  /// Throws Error(config) for a degree below 1, or tensor or pipeline above 1.
  explicit ProcessGrid(const GridShape& shape);

  int size() const;
  int size(Axis axis) const { return sizes_[static_cast<std::size_t>(axis)]; }
  /// The coordinate of a world rank on an axis.
  int coordinate(int rank, Axis axis) const;

  /// The ranks that differ from this one only on `axes`, in grid order; collective over `world`,
  /// which has the grid's size. Each call gives a communicator of its own: a second stream takes a
  /// second one.
  std::unique_ptr<Communicator> split(Communicator& world, const std::vector<Axis>& axes,
                                      const std::string& name) const;

 private:
  std::array<int, kAxes> sizes_;
};

/// A name and what this rank holds under it, e.g. {"config", "9f8e..."}.
struct NamedDigest {
  std::string name;
  std::string digest;
};
/// Throws Error(disagree) on every rank, with a table of which ranks hold what, unless all hold the
/// same digests under the same names. Collective; waits for `stream`, which must be a CPU stream.
void check_agreement(Communicator& world, const std::vector<NamedDigest>& digests,
                     const Stream& stream);

}  // namespace longhaul::runtime
