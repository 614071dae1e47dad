#pragma once
// Small tools of the generators.

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "parallel/builder.h"

namespace longhaul::parallel {

/// Scratch slots in turn: that of turn t is slot t % count, made when first used.
class Buffers {
 public:
  Buffers(Builder& builder, std::string name, Record record, std::int64_t rows, int heads,
          int count = 2)
      : builder_(&builder),
        name_(std::move(name)),
        record_(std::move(record)),
        rows_(rows),
        heads_(heads),
        views_(static_cast<std::size_t>(count)) {}
  /// Its first `rows` rows.
  View at(int turn, std::int64_t rows) {
    const auto index = static_cast<std::size_t>(turn) % views_.size();
    auto& view = views_[index];
    if (!view) view = builder_->scratch(name_ + std::to_string(index), record_, rows_, heads_);
    return rows_of(*view, 0, rows);
  }

 private:
  Builder* builder_;
  std::string name_;
  Record record_;
  std::int64_t rows_;
  int heads_;
  std::vector<std::optional<View>> views_;
};

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
