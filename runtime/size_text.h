#pragma once
// Bytes as people read them.

#include <cstdint>
#include <string>

namespace longhaul::runtime {

/// "61.3 GiB", "0.25 GiB"; below 0.1 GiB in MiB, and below 0.1 MiB in KiB: "33.6 MiB", "12.0 KiB".
std::string size_text(std::int64_t bytes);

}  // namespace longhaul::runtime
