#pragma once
// Private to runtime/text: canonical composition (normalization form C).

#include "runtime/text/text_impl.h"

namespace longhaul::runtime {

/// The text in form C, by the data of Unicode 9 as in the Hugging Face tokenizers: what later
/// versions added stays as it is. Returns `part` itself where it holds only characters below
/// U+0300, else the buffer's content. A character's origin is that of the first it is made of, and
/// origins never fall.
TextPart compose(const TextPart& part, TextBuffer& buffer);

}  // namespace longhaul::runtime
