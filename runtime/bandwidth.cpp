#include "runtime/bandwidth.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cores.h"
#include "runtime/error.h"

namespace longhaul::runtime {

namespace {

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

/// Of the third caches of this process's CPUs, as Linux tells them ("32768K"); 0 where it does not.
std::int64_t shared_cache_bytes() {
  std::map<std::string, std::int64_t> bytes;  // by the CPUs that share one
  for (const int cpu : own_cores("").cpus) {
    const std::string cache = concat("/sys/devices/system/cpu/cpu", cpu, "/cache/index3/");
    bytes[first_word(cache + "shared_cpu_list")] =
        std::int64_t{1024} * std::atoll(first_word(cache + "size").c_str());
  }
  std::int64_t sum = 0;
  for (const auto& [cpus, size] : bytes) sum += size;
  return sum;
}

}  // namespace

std::int64_t uncached_bytes() {
  constexpr std::int64_t kLeast = std::int64_t{64} << 20;
  return std::max(kLeast, 2 * shared_cache_bytes());
}

Rate measure_triad(int threads, double seconds) {
  const auto elements =
      static_cast<std::size_t>(uncached_bytes() / threads) / sizeof(float);  // of a thread
  return measure_rate(threads, seconds, 3.0 * sizeof(float) * static_cast<double>(elements), [&] {
    const auto arrays = std::make_shared<std::vector<float>>(3 * elements, 1.0f);
    return [=] {
      float* a = arrays->data();
      const float *b = a + elements, *c = b + elements;
      for (std::size_t i = 0; i < elements; ++i) a[i] = b[i] + 3.0f * c[i];
      asm volatile("" : : "r"(a) : "memory");
    };
  });
}

Rate measure_memcpy(std::int64_t bytes, int threads, double seconds) {
  const auto size = static_cast<std::size_t>(bytes);
  return measure_rate(threads, seconds, static_cast<double>(bytes), [&] {
    const auto buffers = std::make_shared<std::vector<std::byte>>(2 * size, std::byte{1});
    return [=] {
      std::memcpy(buffers->data(), buffers->data() + size, size);
      asm volatile("" : : "r"(buffers->data()) : "memory");
    };
  });
}

}  // namespace longhaul::runtime
