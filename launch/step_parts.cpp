#include "launch/step_parts_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string_view>

#include "runtime/bandwidth.h"
#include "runtime/counted.h"
#include "runtime/peak.h"
#include "runtime/wake.h"

namespace longhaul::launch {
namespace {

using runtime::PartTimes;

constexpr const char* kAttention = "attention";
constexpr const char* kMatmul = "matmul";

/// Source files, by what they begin with, and what people call their work.
struct Named {
  std::string_view source, part;
};
constexpr Named kNames[] = {
    {"block", kAttention},
    {"merge", kAttention},
    {"attend", kAttention},
    {"matmul", kMatmul},
    {"rms_norm", "norms"},
    {"rope", "rope"},
    {"glu", "glu"},
    {"cross_entropy", "loss"},
    {"softcap", "loss"},
    {"adamw", "optimizer"},
    {"gradient", "optimizer"},
    {"linear", "recurrence"},
    {"gates", "recurrence"},
    {"short_conv", "recurrence"},
    {"normaliser", "recurrence"},
    {"time_step", "recurrence"},
    {"l2_norm", "recurrence"},
    {"gated_norm", "recurrence"},
    {"feature_map", "recurrence"},
    {"tensor", "copies"},
    {"rows", "copies"},
    {"cast", "copies"},
    {"scaled", "copies"},
    {"host_copy", "copies"},
    {"host_communicator", "communication"},
    {"gather", "communication"},
    {"staging", "communication"},
    {runtime::kWaitingPart, "communication"},
};

std::string name_of(const std::string& source) {
  const auto found = std::ranges::find_if(
      kNames, [&](const Named& named) { return source.starts_with(named.source); });
  return found == std::end(kNames) ? source : std::string(found->part);
}

std::optional<double> least_seconds(const StepPart& part, const Ceilings& ceilings) {
  const double flops = part.name == kMatmul ? ceilings.product_flops : ceilings.kernel_flops;
  const double least = std::max(part.work.flops / flops, part.work.bytes / ceilings.triad_bytes);
  return least > 0 ? std::optional(least) : std::nullopt;
}

std::string rate_text(double work, double seconds, double unit) {
  return work > 0 ? fmt::format("{:>10.2f}", work / seconds / unit) : fmt::format("{:>10}", "-");
}

}  // namespace

std::int64_t StepParts::tasks() const {
  std::int64_t sum = 0;
  for (const StepPart& part : parts) sum += part.tasks;
  return sum;
}

double StepParts::of_ceiling() const {
  double least = 0;
  for (const StepPart& part : parts) least += part.least_seconds.value_or(0);
  return least / seconds;
}

StepParts step_parts(const std::vector<PartTimes>& times, int steps, double seconds,
                     double attention_flops, const Ceilings& ceilings) {
  std::map<std::string, StepPart> by_name;
  double busy = 0;
  for (const PartTimes& of : times) {
    StepPart& part = by_name[name_of(of.part)];
    part.tasks += of.tasks;
    part.seconds += of.seconds / steps;
    part.work.flops += of.work.flops / steps;
    part.work.bytes += of.work.bytes / steps;
    busy += of.seconds / steps;
  }
  if (const auto attention = by_name.find(kAttention); attention != by_name.end())
    attention->second.work = {.flops = attention_flops};
  StepParts result{seconds / steps, {}, ceilings, {}, 0};
  by_name["idle"].seconds = std::max(0.0, result.seconds - busy);
  for (auto& [name, part] : by_name) {
    part.name = name;
    part.tasks /= steps;
    part.least_seconds = least_seconds(part, ceilings);
    result.parts.push_back(std::move(part));
  }
  std::ranges::stable_sort(result.parts, std::ranges::greater(), &StepPart::seconds);
  return result;
}

StepPartsClock::StepPartsClock(const runtime::Stream& compute, runtime::DType dtype, int threads)
    : compute_(compute), dtype_(dtype), threads_(threads), before_(measure()) {
  compute_.time_parts();
}

Ceilings StepPartsClock::measure() const {
  constexpr double kSeconds = 0.1;
  const runtime::Rate kernels = measure_peak(runtime::kernel_unit(dtype_), threads_, kSeconds),
                      products = measure_peak(runtime::product_unit(dtype_), threads_, kSeconds);
  return {kernels.median, products.median, runtime::measure_triad(threads_, kSeconds).median,
          kernels.cores};
}

StepParts StepPartsClock::stop(const std::vector<double>& seconds, double attention_flops) const {
  const std::vector<runtime::PartTimes> times = compute_.part_times();
  const Ceilings after = measure();
  const Ceilings ceilings{std::midpoint(before_.kernel_flops, after.kernel_flops),
                          std::midpoint(before_.product_flops, after.product_flops),
                          std::midpoint(before_.triad_bytes, after.triad_bytes),
                          std::midpoint(before_.cores, after.cores)};
  StepParts parts =
      step_parts(times, static_cast<int>(seconds.size()),
                 std::accumulate(seconds.begin(), seconds.end(), 0.0), attention_flops, ceilings);
  const runtime::Unit kernels = runtime::kernel_unit(dtype_),
                      products = runtime::product_unit(dtype_);
  parts.units =
      kernels == products
          ? fmt::format("attention and matmul {}, all else triad", name(kernels))
          : fmt::format("attention {}, matmul {}, all else triad", name(kernels), name(products));
  const runtime::WakeTimes wake = runtime::measure_wake(threads_, 50e-6, 200);
  parts.wake_seconds = spread_of(wake.region).median * static_cast<double>(parts.tasks());
  return parts;
}

std::string text_of(const StepParts& all) {
  const Ceilings& c = all.ceilings;
  std::string text = fmt::format(
      "parts    rank 0's, means; ceilings ({}): {:.1f}, {:.1f} GFLOP/s, {:.1f} GB/s, measured on "
      "{:.2f} cores\n",
      all.units, c.kernel_flops / 1e9, c.product_flops / 1e9, c.triad_bytes / 1e9, c.cores);
  text += fmt::format("{:<16}{:>10}{:>8}{:>8}{:>10}{:>10}  of ceiling\n", "part", "ms", "share",
                      "tasks", "GFLOP/s", "GB/s");
  for (const StepPart& part : all.parts) {
    text += fmt::format("{:<16}{:>10.1f}{:>7.1f}%{:>8}{}{}", part.name, 1e3 * part.seconds,
                        100 * part.seconds / all.seconds, part.tasks,
                        rate_text(part.work.flops, part.seconds, 1e9),
                        rate_text(part.work.bytes, part.seconds, 1e9));
    text += part.least_seconds ? fmt::format("{:>12.3f}\n", *part.least_seconds / part.seconds)
                               : fmt::format("{:>12}\n", "-");
  }
  text += fmt::format("{:<16}{:>10.1f}{:>7.1f}%{:>8}{:>32.3f}\n", "all", 1e3 * all.seconds, 100.0,
                      all.tasks(), all.of_ceiling());
  return text + fmt::format("waking   a team for each of the {}: {:.2f}% of a step at most\n",
                            runtime::counted(all.tasks(), "task"),
                            100 * all.wake_seconds / all.seconds);
}

Json json_of(const StepParts& all) {
  Json parts = Json::array();
  for (const StepPart& part : all.parts) {
    parts.push_back({{"part", part.name},
                     {"tasks", part.tasks},
                     {"seconds", part.seconds},
                     {"flops", part.work.flops},
                     {"bytes", part.work.bytes},
                     {"least_seconds", part.least_seconds ? Json(*part.least_seconds) : Json()}});
  }
  return {{"seconds", all.seconds},
          {"parts", std::move(parts)},
          {"of_ceiling", all.of_ceiling()},
          {"units", all.units},
          {"kernel_flops", all.ceilings.kernel_flops},
          {"product_flops", all.ceilings.product_flops},
          {"triad_bytes", all.ceilings.triad_bytes},
          {"cores", all.ceilings.cores},
          {"wake_seconds", all.wake_seconds}};
}

}  // namespace longhaul::launch
