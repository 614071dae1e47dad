#pragma once
// What benchmarks' JSON has in common.

#include <nlohmann/json.hpp>

#include "launch/timing.h"

namespace longhaul::launch {

using Json = nlohmann::ordered_json;

/// In seconds.
inline Json json_of(const Spread& s) {
  return {{"repetitions", s.count}, {"least", s.least},          {"lower_quartile", s.lower},
          {"median", s.median},     {"upper_quartile", s.upper}, {"most", s.most}};
}

}  // namespace longhaul::launch
