#pragma once
// Scratch slots that generators use in turn.

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

}  // namespace longhaul::parallel
