#pragma once
// What papers and other programs call our schemes; answered with our names, never accepted.

#include <span>
#include <string>

namespace longhaul::parallel {

struct OtherName {
  const char* scheme;
  const char* words;      ///< in lower case, with _ for - and +, and a space between them
  const char* note = "";  ///< what to write besides
};
std::span<const OtherName> other_names();

/// nullptr when `name` is none.
const OtherName* find_other_name(const std::string& name);
/// "here it is called 'ring'", and the note.
std::string says(const OtherName& other);

}  // namespace longhaul::parallel
