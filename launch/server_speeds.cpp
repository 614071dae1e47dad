#include "launch/server_speeds.h"

#include <algorithm>
#include <cmath>
#include <ranges>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

std::vector<std::int64_t> quantised(const std::vector<double>& rates) {
  const double fastest = std::ranges::max(rates);
  if (fastest == 0) return {};
  std::vector<std::int64_t> speeds;
  for (const double rate : rates) {
    const double part = rate == 0 ? 1 : rate / fastest;
    speeds.push_back(std::max<std::int64_t>(1, std::llround(ServerSpeeds::kFastest * part)));
  }
  return speeds;
}

bool differ(const std::vector<std::int64_t>& a, const std::vector<std::int64_t>& b) {
  return !std::ranges::equal(
      a, b, [](std::int64_t one, std::int64_t other) { return std::abs(one - other) <= 1; });
}

}  // namespace

void ServerSpeeds::add(std::int64_t step, std::span<const ServedWork> servers) {
  LONGHAUL_CHECK(servers.size() == rates_.size(), "speeds of ", servers.size(), " servers of ",
                 rates_.size());
  for (std::size_t i = 0; i < servers.size(); ++i) {
    if (servers[i].pairs <= 0 || servers[i].seconds <= 0) continue;
    const double rate = servers[i].pairs / servers[i].seconds;
    rates_[i] = rates_[i] == 0 ? rate : (rates_[i] + rate) / 2;
  }
  std::vector<std::int64_t> speeds = quantised(rates_);
  const std::lock_guard lock(mutex_);
  if (!speeds_.empty() && !differ(speeds, speeds_.back().second)) speeds = speeds_.back().second;
  speeds_.emplace_back(step, std::move(speeds));
  constexpr std::size_t kRecent = 4;  // plans are at most a validation and a step behind
  if (speeds_.size() > kRecent) speeds_.pop_front();
}

std::vector<std::int64_t> ServerSpeeds::of(std::int64_t step) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [after, speeds] : std::views::reverse(speeds_)) {
    if (after <= step - 2) return speeds;
  }
  return {};
}

}  // namespace longhaul::launch
