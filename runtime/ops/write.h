#pragma once
// What an operation does with what its output already holds.

namespace longhaul::runtime::ops {

enum class Write : unsigned char {
  overwrite,  ///< the output may hold anything, NaN included
  add         ///< the result is added to the output
};

}  // namespace longhaul::runtime::ops
