#pragma once
// Private to runtime/text: tables of the Unicode standard, as text. generate_unicode makes them.

#include <string_view>

namespace longhaul::runtime::unicode {

/// Version 16: general categories of all characters, each two letters and the length of its run, in
/// decimal: "Cc32Zs1Po3...".
extern const std::string_view kCategories;

// Version 9, which canonical composition keeps to; numbers in hexadecimal. A character comes as
// its distance from the one before it in the list.

/// Runs of characters with equal combining classes other than 0: "GAP RUN CLASS;", where GAP is the
/// distance from the run's beginning to the end of the one before it.
extern const std::string_view kCombiningClasses;
/// Canonical decompositions, one step: "GAP FIRST;" or "GAP FIRST SECOND;", with '!' for ';' where
/// the two never compose again. Hangul syllables are left to arithmetic.
extern const std::string_view kDecompositions;

}  // namespace longhaul::runtime::unicode
