#pragma once
// Sums of what other ranks send.

#include <utility>
#include <vector>

#include "parallel/builder.h"

namespace longhaul::parallel {

/// Sums whose terms are on their way: added once later compute has been appended, which hides the
/// transfer.
class Arrivals {
 public:
  void expect(const View& arrived, const View& into) {
    expect(std::vector{arrived}, std::vector{into});
  }
  /// Pair by pair.
  void expect(std::vector<View> arrived, std::vector<View> into) {
    expected_.emplace_back(std::move(arrived), std::move(into));
  }
  void add_all(Builder& builder) {
    for (auto& [arrived, into] : std::exchange(expected_, {}))
      builder.accumulate(std::move(arrived), std::move(into));
  }

 private:
  std::vector<std::pair<std::vector<View>, std::vector<View>>> expected_;
};

}  // namespace longhaul::parallel
