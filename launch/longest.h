#pragma once
// The longest sequence whose memory fits.

#include <cstdint>
#include <functional>

namespace longhaul::launch {

/// The most tokens, a multiple of `unit`, of which `bytes_of` is at most `available`, by doubling
/// and then bisecting; 0 where not even one unit fits. bytes_of does not fall with the tokens.
std::int64_t longest_fitting(std::int64_t unit, std::int64_t available,
                             const std::function<std::int64_t(std::int64_t tokens)>& bytes_of);

}  // namespace longhaul::launch
