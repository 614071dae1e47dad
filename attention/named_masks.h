#pragma once
// Masks by name: one function lowers any of the table in mask_rules.h to slices.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attention/head_masks.h"
#include "attention/mask_rules.h"

namespace longhaul::attention {

struct MaskNumbers {
  std::optional<std::int64_t> window, prefix, global, block;
  /// What stands before a number's name in errors: "--" of options, "data." of configuration keys.
  const char* spelling = "";
  const std::optional<std::int64_t>& of(MaskInput number) const;
};

/// A row-major array of any rank.
struct IntegerArray {
  std::vector<std::int64_t> sizes, values;
};

struct MaskParameters {
  MaskNumbers numbers;
  std::optional<std::vector<std::int64_t>> documents, prefixes, block_offsets;
  /// Tokens of the first document that lie before the first token: `prefix` and `block` count from
  /// the document's own start. At least 0.
  std::int64_t tokens_before = 0;
  std::optional<IntegerArray> blocks, slices;
  bool has(MaskInput input) const;
};

/// The mask over `tokens` tokens. Arrays that it does not take are ignored. Slices are disjoint and
/// few: neighbouring blocks are joined. Masks per head come from blocks [H,m,m] and slices [H,n,5];
/// all others are shared by all heads. In slices, rows whose query or key range is empty are
/// padding.
/// Throws: Error(config) for an unknown name, a number that is wrong, unused or missing;
/// Error(data) naming dataset, head, row and value for an array that is.
HeadMasks make_mask(std::string_view name, const MaskParameters& parameters, std::int64_t tokens);

}  // namespace longhaul::attention
