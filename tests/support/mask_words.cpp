#include "tests/support/mask_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace longhaul::test {
namespace {

/// The part of rising offsets that holds token t.
std::int64_t part_of(const std::vector<std::int64_t>& offsets, std::int64_t t) {
  std::int64_t part = -1;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    if (offsets[i] <= t && t < offsets[i + 1]) part = static_cast<std::int64_t>(i);
  }
  return part;
}

}  // namespace

bool MaskWords::sees(std::int64_t i, std::int64_t j) const {
  if (name_ == "full") return true;
  if (name_ == "causal") return j <= i;
  const bool near = !n_.window || std::abs(i - j) < *n_.window;
  if (name_ == "full_document") return document(i) == document(j) && near;
  if (name_ == "causal_document" || name_ == "documents")
    return document(i) == document(j) && j <= i && near;
  if (name_ == "full_window") return std::abs(i - j) < *n_.window;
  if (name_ == "causal_window") return 0 <= i - j && i - j < *n_.window;
  if (name_ == "shared_question") {
    const auto together = [&](std::int64_t key) {
      return document(i) == document(key) &&
             (in_prefix(key) || (!in_prefix(i) && answer(i) == answer(key)));
    };
    if (j > i || !together(j)) return false;
    std::int64_t from_j = 0;
    for (std::int64_t key = i; n_.window && key >= j && from_j <= *n_.window; --key)
      from_j += together(key) ? 1 : 0;
    return from_j <= n_.window.value_or(0);
  }
  if (name_ == "global_window")
    return std::abs(i - j) < *n_.window || i < *n_.global || j < *n_.global;
  if (name_ == "causal_blockwise") {
    const auto block = [&](std::int64_t t) { return n_.block ? t / *n_.block : document(t); };
    return j <= i && (block(i) == block(j) || block(i) == block(tokens_ - 1));
  }
  if (name_ == "prefix_causal") return j <= i || j < *n_.prefix;
  if (name_ == "prefix_document") return document(i) == document(j) && (j <= i || in_prefix(j));
  if (name_ == "block_causal_document") {
    return document(i) == document(j) && place(j) / *n_.block <= place(i) / *n_.block;
  }
  const auto seen = [&](std::int64_t m, std::int64_t n) {
    return p_.blocks->values[static_cast<std::size_t>(m * p_.blocks->sizes[1] + n)] == 1;
  };
  if (name_ == "block_sparse") return seen(i / *n_.block, j / *n_.block);
  if (name_ == "block_sparse_variable")
    return seen(part_of(*p_.block_offsets, i), part_of(*p_.block_offsets, j));
  ADD_FAILURE() << "the test has no words for " << name_;
  return false;
}

attention::Mask MaskWords::mask() const {
  std::vector<attention::Slice> runs;
  for (std::int64_t i = 0; i < tokens_; ++i) {
    for (std::int64_t j = 0; j < tokens_; ++j) {
      if (!sees(i, j)) continue;
      const std::int64_t begin = j;
      while (j < tokens_ && sees(i, j)) ++j;
      runs.push_back({i, i + 1, begin, j});
    }
  }
  return attention::Mask::from_slices(tokens_, std::move(runs));
}

std::int64_t MaskWords::document(std::int64_t t) const { return part_of(*p_.documents, t); }
std::int64_t MaskWords::place(std::int64_t t) const {
  return t - (*p_.documents)[static_cast<std::size_t>(document(t))];
}
std::int64_t MaskWords::prefix(std::int64_t t) const {
  return n_.prefix ? *n_.prefix : (*p_.prefixes)[static_cast<std::size_t>(document(t))];
}
bool MaskWords::in_prefix(std::int64_t t) const { return place(t) < prefix(t); }
std::int64_t MaskWords::answer(std::int64_t t) const {
  return n_.block ? (place(t) - prefix(t)) / *n_.block : part_of(*p_.block_offsets, t);
}

namespace {

/// [m,m] or [heads,m,m]: the diagonal and a part of the rest, another one for each head.
attention::IntegerArray sample_blocks(std::int64_t count, std::int64_t heads) {
  attention::IntegerArray blocks{{count, count}, {}};
  if (heads > 0) blocks.sizes.insert(blocks.sizes.begin(), heads);
  for (std::int64_t head = 0; head < std::max<std::int64_t>(1, heads); ++head) {
    for (std::int64_t m = 0; m < count; ++m) {
      for (std::int64_t n = 0; n < count; ++n)
        blocks.values.push_back(m == n || (m * 7 + n * 3 + head * 2) % 5 < 2 ? 1 : 0);
    }
  }
  return blocks;
}

}  // namespace

std::vector<MaskSample> mask_samples(std::int64_t tokens, std::int64_t heads) {
  using attention::MaskInput;
  std::vector<MaskSample> samples;
  const std::int64_t s = tokens, width = std::max<std::int64_t>(1, s / 6);
  for (const attention::MaskRule& rule : attention::mask_rules()) {
    attention::MaskParameters p;
    const bool window = rule.takes(MaskInput::window), may_have = !rule.may_have.empty();
    if (window && !may_have) p.numbers.window = std::max<std::int64_t>(1, s / 7);
    if (rule.takes(MaskInput::prefix)) p.numbers.prefix = s / 4;
    if (rule.takes(MaskInput::global)) p.numbers.global = s / 9;
    if (rule.takes(MaskInput::block)) p.numbers.block = width;
    if (rule.takes(MaskInput::documents)) p.documents = {{0, s / 5, s / 5, s / 2, s}};
    if (rule.takes(MaskInput::block_offsets) && !rule.takes(MaskInput::block))
      p.block_offsets = {{0, s / 8, s / 3, s / 3, s}};
    if (rule.takes(MaskInput::blocks))
      p.blocks = sample_blocks(p.block_offsets ? 4 : (s + width - 1) / width, 0);
    if (rule.takes(MaskInput::slices))
      p.slices = {{4, 5}, {0,     s / 4, 0,     s / 4, 0, s / 4, s / 2, s / 8, s / 2, 1,
                           s / 2, s,     s / 3, s,     2, 0,     0,     0,     0,     0}};
    samples.push_back({rule.name, p});
    if (!may_have) continue;
    EXPECT_EQ(rule.may_have, std::vector{MaskInput::window}) << "no other sample is made";
    p.numbers.window = std::max<std::int64_t>(1, s / 7);
    samples.push_back({rule.name, std::move(p)});
  }
  if (heads == 0) return samples;
  MaskSample blocks{"block_sparse", {}}, slices{"slices", {}};
  blocks.parameters.numbers.block = width;
  blocks.parameters.blocks = sample_blocks((s + width - 1) / width, heads);
  samples.push_back(std::move(blocks));
  attention::IntegerArray rows{{heads, 2, 5}, {}};
  for (std::int64_t head = 0; head < heads; ++head) {  // two causal halves, cut elsewhere each
    const std::int64_t at = s * (head + 1) / (heads + 1);
    for (const std::int64_t value :
         {std::int64_t{0}, at, std::int64_t{0}, at, std::int64_t{1}, at, s, at, s, std::int64_t{1}})
      rows.values.push_back(value);
  }
  slices.parameters.slices = std::move(rows);
  samples.push_back(std::move(slices));
  return samples;
}

}  // namespace longhaul::test
