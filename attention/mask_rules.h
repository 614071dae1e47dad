#pragma once
// The table of masks by name: what each sees, what it is made of, and what training must know of
// it. The names are those of the long-context attention benchmark (LongCA-bench).

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

/// Within what a token's attention stays: what training numbers positions and sets labels by.
enum class MaskScope : std::uint8_t {
  sequence,  ///< it crosses the documents that a sequence packs, or knows of none
  document,  ///< its document
  answer     ///< its document, which is a question and answers that do not see each other
};
const char* name(MaskScope scope);

/// One row of the table of masks.
struct MaskRule {
  const char* name;
  const char* alias;  ///< another name of the same mask, or ""
  bool causal;        ///< no query sees a later key, whatever the parameters
  MaskScope scope;
  /// One of each list is needed; the first that is given counts.
  std::vector<std::vector<MaskInput>> needs;
  std::vector<MaskInput> may_have;  ///< and does without
  const char* sees;                 ///< when query i sees key j; Markdown

  bool takes(MaskInput input) const;
  /// Whether a query sees every earlier token of its document (or sequence), and itself, unless a
  /// window is given.
  bool sees_whole_past() const;
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

}  // namespace longhaul::attention
