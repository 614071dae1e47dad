#pragma once
// Masks by name: one table says what each sees and what it is made of, and one function lowers any
// of them to slices. The names are those of the long-context attention benchmark (LongCA-bench).

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/head_masks.h"

namespace longhaul::attention {

/// What a mask may be made of: numbers first, then arrays.
enum class MaskInput : std::uint8_t {
  window,         ///< tokens, at least 1
  prefix,         ///< tokens, 0 up to the sequence's
  global,         ///< tokens, 0 up to the sequence's
  block,          ///< tokens, at least 1
  documents,      ///< offsets [n+1]: rise from 0 to the token count; empty documents allowed
  prefixes,       ///< [n], one per document, at most its length
  blocks,         ///< 0 or 1 [m,m]: query block x key block; or [H,m,m]
  block_offsets,  ///< [m+1]: rise from 0 to the token count; empty blocks allowed
  slices          ///< [n,5]: query begin and end, key begin and end, type 0..3; or [H,n,5]
};
const char* name(MaskInput input);
constexpr bool is_number(MaskInput input) { return input <= MaskInput::block; }

/// One row of the table of masks.
struct MaskRule {
  const char* name;
  const char* alias;  ///< another name of the same mask, or ""
  bool causal;        ///< no query sees a later key, whatever the parameters
  /// One of each list is needed; the first that is given counts.
  std::vector<std::vector<MaskInput>> needs;
  const char* sees;  ///< when query i sees key j; Markdown

  bool takes(MaskInput input) const;
  /// Whether numbers and the documents of a packed sequence are enough: such masks can be trained
  /// with; the others need arrays made for one sequence.
  bool trainable() const;
};
std::span<const MaskRule> mask_rules();
/// By name or alias. Throws Error(config) listing the names.
const MaskRule& mask_rule(std::string_view name);
/// All names, each alias behind its mask.
std::vector<std::string> mask_names();
/// The table as Markdown, as attention/README.md shows it.
std::string mask_reference();

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
