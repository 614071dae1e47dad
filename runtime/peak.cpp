#include "runtime/peak.h"

#include <immintrin.h>

#include <cstdint>

#include "runtime/cpu_level.h"
#include "runtime/error.h"
#include "runtime/peak_impl.h"

namespace longhaul::runtime {
namespace {

// Two units with a latency of 4 to 5 cycles: 12 independent sums keep both busy.
constexpr int kSums = 12;
constexpr std::int64_t kSteps = 20'000;  // of one sample, well under a millisecond
constexpr double kInstructions = kSums * static_cast<double>(kSteps);

/// kSteps dependent FMAs in each of 12 registers. The empty asm makes every step happen.
__attribute__((target("avx2,fma"))) void sample_fma_avx2() {
  __m256 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm256_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+x"(sum[i]));
    }
  }
}

__attribute__((target("avx512f"))) void sample_fma_avx512() {
  __m512 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+v"(sum[i]));
    }
  }
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) void sample_dot_avx512() {
  __m512 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(-0.5f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25f), _mm512_set1_ps(0.25f));
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
      asm volatile("" : "+v"(sum[i]));
    }
  }
}

struct Probe {
  void (*sample)();
  double flops;
};

Probe probe(Unit unit) {
  switch (unit) {
    case Unit::fma_avx2:
      return {sample_fma_avx2, 2 * 8 * kInstructions};
    case Unit::fma_avx512:
      return {sample_fma_avx512, 2 * 16 * kInstructions};
    case Unit::dot_avx512:
      return {sample_dot_avx512, 2 * 32 * kInstructions};
    case Unit::tiles:
      return {detail::sample_tiles, detail::kTileSampleFlops};
    case Unit::tiles_from_memory:
      return {detail::sample_tiles_from_memory, detail::kTileSampleFlops};
  }
  fail(ExitCode::internal, "no such unit: ", static_cast<int>(unit));
}

}  // namespace

std::string_view name(Unit unit) {
  switch (unit) {
    case Unit::fma_avx2:
      return "float32 FMA, AVX2";
    case Unit::fma_avx512:
      return "float32 FMA, AVX-512";
    case Unit::dot_avx512:
      return "bfloat16 dot, AVX-512";
    case Unit::tiles:
      return "bfloat16 tiles, AMX";
    case Unit::tiles_from_memory:
      return "bfloat16 tiles, AMX, loaded";
  }
  return "?";
}

bool has(Unit unit) {
  const CpuLevel best = best_cpu_level();
  switch (unit) {
    case Unit::fma_avx2:
      return true;
    case Unit::fma_avx512:
      return best >= CpuLevel::avx512;
    case Unit::dot_avx512:
      return best >= CpuLevel::avx512 && __builtin_cpu_supports("avx512bf16");
    case Unit::tiles:
    case Unit::tiles_from_memory:
      return best >= CpuLevel::amx;
  }
  return false;
}

Unit kernel_unit(DType dtype) {
  const CpuLevel level = cpu_level();
  if (level == CpuLevel::amx && dtype == DType::bfloat16) return Unit::tiles;
  return level == CpuLevel::avx2 ? Unit::fma_avx2 : Unit::fma_avx512;
}

Unit product_unit(DType dtype) {
  const Unit own = kernel_unit(dtype);
  const bool faster = dtype == DType::bfloat16 && own == Unit::fma_avx512 && has(Unit::dot_avx512);
  return faster ? Unit::dot_avx512 : own;
}

Rate measure_peak(Unit unit, int threads, double seconds) {
  if (!has(unit)) fail(ExitCode::launch, "this machine has no ", name(unit));
  const Probe with = probe(unit);
  return measure_rate(threads, seconds, with.flops, [&] { return Sample(with.sample); });
}

double measure_fma_flops(int threads, double seconds) {
  return measure_peak(kernel_unit(DType::float32), threads, seconds).median;
}

}  // namespace longhaul::runtime
