#pragma once
// Private to the files that declare keys.

#include <cstdint>

#include "launch/train_config.h"

namespace longhaul::launch {

// Large enough for any real run, small enough that products of a few sizes stay far from overflow.
constexpr double kMaxWidth = 1 << 24;
constexpr double kMaxHeads = 1 << 16;
constexpr double kMaxDegree = 1 << 20;
constexpr double kMaxTokens = static_cast<double>(std::int64_t{1} << 40);

// `on_resume_`: what another value means for a run that goes on from a checkpoint (OnResume).
#define LONGHAUL_KEY(section_, name_, on_resume_) \
  LONGHAUL_CONFIG_KEY(TrainConfig, section_, name_), .on_resume = runtime::OnResume::on_resume_

}  // namespace longhaul::launch
