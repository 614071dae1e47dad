#pragma once
// How the layouts that depend on the mask are planned; internal to layout.cpp.

#include <cstdint>
#include <vector>

#include "attention/head_masks.h"

namespace longhaul::parallel {

/// The runs of every rank, and the longest piece dealt as one.
struct LayoutPlan {
  std::vector<std::vector<attention::Run>> runs;
  std::int64_t chunk_tokens = 0;
};

LayoutPlan plan_document_zigzag(const attention::HeadMasks& masks, int ranks);
LayoutPlan plan_balanced(const attention::HeadMasks& masks, int ranks);
LayoutPlan plan_packed(const attention::HeadMasks& masks, int ranks);

/// First token of part `index` of `parts` nearly equal parts.
inline std::int64_t part_begin(std::int64_t tokens, std::int64_t index, std::int64_t parts) {
  return tokens * index / parts;
}

/// Appends [begin, end), joined to a run that ends where it begins.
inline void append_range(std::vector<attention::Run>& runs, std::int64_t begin, std::int64_t end) {
  if (begin == end) return;
  if (!runs.empty() && runs.back().stride == 1 && runs.back().first + runs.back().count == begin) {
    runs.back().count += end - begin;
  } else {
    runs.push_back({begin, end - begin, 1});
  }
}

}  // namespace longhaul::parallel
