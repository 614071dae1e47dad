#include "runtime/size_text.h"

#include <fmt/format.h>

namespace longhaul::runtime {

std::string size_text(std::int64_t bytes) {
  constexpr double kKib = 1024, kMib = 1024 * kKib, kGib = 1024 * kMib;
  const auto value = static_cast<double>(bytes);
  if (value < 0.1 * kMib) return fmt::format("{:.1f} KiB", value / kKib);
  if (value < 0.1 * kGib) return fmt::format("{:.1f} MiB", value / kMib);
  return value < kGib ? fmt::format("{:.2f} GiB", value / kGib)
                      : fmt::format("{:.1f} GiB", value / kGib);
}

}  // namespace longhaul::runtime
