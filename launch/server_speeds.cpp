#include "launch/server_speeds.h"

#include <algorithm>
#include <cmath>
#include <ranges>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

/// Pairs a second; 0 where nothing is known.
double rate_of(const ServedWork& work) { return work.seconds > 0 ? work.pairs / work.seconds : 0; }

std::vector<std::int64_t> quantised(const std::vector<ServedWork>& servers) {
  std::vector<double> rates;
  for (const ServedWork& work : servers) rates.push_back(rate_of(work));
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

SpeedMeter::SpeedMeter(const AttentionAxis& axis, const parallel::Attention& attention,
                       const parallel::ExternalServers* external)
    : axis_(axis), attention_(attention), external_(external) {}

int SpeedMeter::servers() const {
  return axis_.servers.mode == parallel::ServerMode::in_place ? axis_.homes : axis_.servers.count;
}

std::vector<double> SpeedMeter::since_last_step() {
  std::vector<double> now;
  if (external_ != nullptr) {
    for (const parallel::ServerUse& server : external_->use())
      now.insert(now.end(), {static_cast<double>(server.pairs), server.seconds});
  } else {
    const parallel::AttendTimes times = attention_.attend_times();
    now = {static_cast<double>(times.pairs), times.seconds};
  }
  last_.resize(now.size());
  std::vector<double> since = now;
  for (std::size_t i = 0; i < since.size(); ++i) since[i] -= last_[i];
  last_ = std::move(now);
  return since;
}

std::vector<ServedWork> SpeedMeter::by_server(const std::vector<std::vector<double>>& ranks,
                                              std::size_t first) const {
  std::vector<ServedWork> servers(static_cast<std::size_t>(this->servers()));
  if (external_ == nullptr) {  // in place all ranks serve, else the last ones
    for (std::size_t i = 0; i < servers.size(); ++i) {
      const auto& rank = ranks[ranks.size() - servers.size() + i];
      servers[i] = {rank[first], rank[first + 1]};
    }
    return servers;
  }
  for (const auto& rank : ranks) {
    for (std::size_t i = 0; i < servers.size(); ++i) {
      servers[i].pairs += rank[first + 2 * i];
      servers[i].seconds += rank[first + 2 * i + 1];
    }
  }
  return servers;
}

void ServerSpeeds::add(std::int64_t step, std::span<const ServedWork> servers) {
  LONGHAUL_CHECK(servers.size() == work_.size(), "speeds of ", servers.size(), " servers of ",
                 work_.size());
  for (std::size_t i = 0; i < servers.size(); ++i) {
    if (servers[i].pairs <= 0 || servers[i].seconds <= 0) continue;
    constexpr double kRemembered = 0.75;
    work_[i] = {kRemembered * work_[i].pairs + servers[i].pairs,
                kRemembered * work_[i].seconds + servers[i].seconds};
  }
  std::vector<std::int64_t> speeds = quantised(work_);
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
