#include <algorithm>
#include <chrono>
#include <filesystem>

#include "runtime/part_clock_impl.h"

namespace longhaul::runtime::detail {
namespace {

/// "rms_norm" of ".../rms_norm_cpu.cpp".
std::string part_of(const char* source) {
  std::string name = std::filesystem::path(source).stem().string();
  for (const char* device : {"_cpu", "_cuda"}) {
    if (name.ends_with(device)) name.erase(name.rfind('_'));
  }
  return name;
}

}  // namespace

void PartClock::run(const std::function<void()>& task, const char* source) {
  if (!started_.load(std::memory_order_relaxed)) return task();
  const auto begin = std::chrono::steady_clock::now();
  task();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const std::lock_guard lock(mutex_);
  PartTimes& times = by_source_[source];
  ++times.tasks;
  times.seconds += seconds.count();
}

void PartClock::count(const char* source, const Work& work) {
  if (!started_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(mutex_);
  PartTimes& times = by_source_[source];
  times.work.flops += work.flops;
  times.work.bytes += work.bytes;
}

std::vector<PartTimes> PartClock::times() const {
  std::map<std::string, PartTimes> by_part;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [source, times] : by_source_) {
      PartTimes& part = by_part[part_of(source)];
      part.tasks += times.tasks;
      part.seconds += times.seconds;
      part.work.flops += times.work.flops;
      part.work.bytes += times.work.bytes;
    }
  }
  std::vector<PartTimes> all;
  for (auto& [name, times] : by_part) {
    times.part = name;
    all.push_back(std::move(times));
  }
  std::ranges::stable_sort(all, std::ranges::greater(), &PartTimes::seconds);
  return all;
}

}  // namespace longhaul::runtime::detail
