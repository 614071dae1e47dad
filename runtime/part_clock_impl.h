#pragma once
// Behind Stream::part_times(). Private to runtime/.

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/part_times.h"

namespace longhaul::runtime::detail {

/// Next to free until it is started.
class PartClock {
 public:
  void start() { started_ = true; }
  /// Runs a task that `source` has enqueued.
  void run(const std::function<void()>& task, const char* source);
  void count(const char* source, const Work& work);
  std::vector<PartTimes> times() const;

 private:
  std::atomic<bool> started_{false};
  mutable std::mutex mutex_;
  std::map<const char*, PartTimes>
      by_source_;  // a file may be several: those of its headers' users
};

}  // namespace longhaul::runtime::detail
