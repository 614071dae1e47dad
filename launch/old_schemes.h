#pragma once
// How schemes were written before they were expressions: a name, and beside it up to four texts.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

/// The four texts, each where it was given.
struct OldSchemeOptions {
  std::optional<std::string> degrees;   ///< "outer=2,inner=4", either alone, or "auto"
  std::optional<std::string> nesting;   ///< of usp: "heads_inside" or "ring_inside"
  std::optional<std::string> around;    ///< of usp: "ring", "burst" or "double_ring"
  std::optional<std::string> backward;  ///< of double_ring: "ring", "burst" or "auto"

  static constexpr const char* kNames[] = {"degrees", "nesting", "around", "backward"};
  std::optional<std::string>& of(std::string_view name);
  bool any() const { return degrees || nesting || around || backward; }
};

/// The expression that replaces a name and those of the options that the scheme had a use for, in
/// canonical form; a text that is an expression already, or a policy, stays as it is. `ranks`: on
/// the context axis, where known. nullopt where an option says nothing that can be understood, or
/// where it takes the number of ranks to say it.
std::optional<std::string> replace_old_options(const std::string& scheme,
                                               const OldSchemeOptions& options,
                                               std::optional<std::int64_t> ranks);

/// The same of every scheme of a context_parallel_switch.
std::optional<std::string> replace_old_options_in_switch(const std::string& text,
                                                         const OldSchemeOptions& options,
                                                         std::optional<std::int64_t> ranks);

/// The text of a configuration as a checkpoint stores it, in today's words: keys that options of
/// schemes had are written into context_parallel_scheme and context_parallel_switch. A text that
/// has none of them, or is no TOML, stays as it is.
std::string translate_config(const std::string& toml);

}  // namespace longhaul::launch
