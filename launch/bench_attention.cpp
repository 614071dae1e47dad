// `longhaul bench attention`: rates of local attention calls, and of one rank's part of a spread
// one, beside a matrix product's.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "attention/named_masks.h"
#include "attention/sdpa_plan.h"
#include "launch/bench.h"
#include "launch/bench_calls.h"
#include "launch/bench_gemm.h"
#include "launch/bench_json_impl.h"
#include "parallel/local_work.h"
#include "parallel/policy.h"
#include "runtime/build_info.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/output_file.h"
#include "runtime/peak.h"

namespace longhaul::launch {
namespace {

using parallel::Direction;
using runtime::counted;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::grouped;
using runtime::Stream;

constexpr const char* kBothWays = "forward_backward";

/// The options with every default filled in.
struct Plan {
  BenchAttentionOptions options;
  bool cuda = false;
  std::vector<DType> dtypes;
  int heads = 0;
  parallel::LayoutKind layout = parallel::LayoutKind::contiguous;
  attention::Kernels kernels = attention::Kernels::automatic;
  Repeats repeats;
};

Plan plan_of(const BenchAttentionOptions& options) {
  Plan plan;
  plan.options = options;
  BenchAttentionOptions& o = plan.options;
  plan.cuda = o.device == "cuda";
  if (o.dtypes.empty()) plan.dtypes = {bench_dtype({}, plan.cuda)};
  for (const std::string& dtype : o.dtypes) plan.dtypes.push_back(bench_dtype(dtype, plan.cuda));
  plan.heads = o.heads.value_or(plan.cuda ? 16 : 8);
  if (o.tokens.empty()) {
    o.tokens = plan.cuda ? std::vector<std::int64_t>{8192, 32768} : std::vector<std::int64_t>{2048};
  }
  if (o.kv_heads.empty()) {
    o.kv_heads = {plan.heads};
    if (plan.heads % 4 == 0) o.kv_heads.push_back(plan.heads / 4);
  }
  for (const int kv_heads : o.kv_heads) {
    if (plan.heads % kv_heads != 0)
      fail(ExitCode::usage, "--heads ", plan.heads, " is no multiple of --kv-heads ", kv_heads);
  }
  if (o.ranks > 1 && std::ranges::count(o.directions, kBothWays) > 0)
    fail(ExitCode::usage, "--direction ", kBothWays,
         ": with --ranks each direction is timed alone");
  plan.layout = parallel::layout_from_name(o.layout);
  if (o.kernels == "exact") plan.kernels = attention::Kernels::exact;
  if (o.kernels == "cudnn") plan.kernels = attention::Kernels::cudnn;
  plan.repeats.most = o.repeats;
  plan.repeats.seconds = o.seconds;
  return plan;
}

attention::Mask mask_of(const Plan& plan, const std::string& name, std::int64_t tokens) {
  attention::MaskParameters parameters;
  parameters.numbers.spelling = "--";
  if (name == "causal_window") parameters.numbers.window = plan.options.window;
  std::vector<std::int64_t> offsets;
  for (std::int64_t at = 0; at < tokens; at += plan.options.document_tokens) offsets.push_back(at);
  offsets.push_back(tokens);
  parameters.documents = std::move(offsets);
  return attention::make_mask(name, parameters, tokens).of(0);
}

/// One line of the table, as it is called and as it is measured.
struct Case {
  std::string direction;
  std::string mask;
  std::int64_t tokens = 0;  ///< of a rank
  RankCall call;            ///< backward where both ways are timed

  bool both_ways() const { return direction == kBothWays; }
  double flops(std::int64_t pairs) const {
    return (both_ways() ? attention_flops(Direction::forward, pairs, call.shapes) : 0) +
           attention_flops(call.direction, pairs, call.shapes);
  }
};

/// The rank whose queries see most, the first of them.
int busiest(const attention::Mask& mask, const parallel::Layout& layout) {
  const std::vector<std::int64_t> areas = parallel::query_areas(mask, layout);
  return static_cast<int>(std::ranges::max_element(areas) - areas.begin());
}

std::vector<Case> cases_of(const Plan& plan) {
  const BenchAttentionOptions& o = plan.options;
  std::vector<Case> cases;
  for (const std::string& name : o.masks) {
    for (const std::int64_t tokens : o.tokens) {
      const attention::Mask mask = mask_of(plan, name, tokens * o.ranks);
      const auto layout = parallel::Layout::make(plan.layout, mask, 1, o.ranks);
      const int rank = busiest(mask, layout);
      for (const DType dtype : plan.dtypes) {
        for (const std::int64_t dim : o.head_dims) {
          for (const int kv_heads : o.kv_heads) {
            const parallel::Shapes shapes{plan.heads, kv_heads, dim, o.value_dim.value_or(dim),
                                          dtype};
            for (const std::string& direction : o.directions) {
              const auto of = direction == "forward" ? Direction::forward : Direction::backward;
              cases.push_back(
                  {direction, name, tokens, {of, mask, shapes, layout, rank, plan.kernels}});
            }
          }
        }
      }
    }
  }
  return cases;
}

Json json_of(const Case& of) {
  const parallel::Shapes& s = of.call.shapes;
  return {{"direction", of.direction}, {"mask", of.mask},
          {"tokens", of.tokens},       {"heads", s.heads},
          {"kv_heads", s.kv_heads},    {"head_dim", s.dim},
          {"value_dim", s.value_dim},  {"dtype", runtime::name(s.activation)}};
}

/// What precedes the times in a row.
std::string label(const Case& of) {
  const parallel::Shapes& s = of.call.shapes;
  return fmt::format(
      "{:<17}{:<14}{:>10}{:>8}{:>8}  {:<8}", of.direction, of.mask, grouped(of.tokens),
      fmt::format("{}:{}", s.heads, s.kv_heads),
      s.value_dim == s.dim ? fmt::format("{}", s.dim) : fmt::format("{}/{}", s.dim, s.value_dim),
      runtime::name(s.activation));
}
constexpr const char* kLabels =
    "direction        mask              tokens   heads     dim  dtype   ";

std::string times(const Spread& s) {
  return fmt::format("{:>10.3f}{:>10.3f}{:>10.3f}{:>10.3f}{:>5}", 1e3 * s.median, 1e3 * s.lower,
                     1e3 * s.upper, 1e3 * s.least, s.count);
}
constexpr const char* kTimes = " median ms     lower     upper     least    n";

/// A rate's share of the peak of the CPU's kernels, whose speed drifts: of the mean of what was
/// measured just before and just after.
class Adjacent {
 public:
  Adjacent(DType dtype, const Stream& stream)
      : unit_(runtime::kernel_unit(dtype)), threads_(stream.threads()) {}
  static bool applies(const Stream& stream) {
    return stream.device().kind == runtime::DeviceKind::cpu;
  }
  void measure() {
    const runtime::Rate rate = measure_peak(unit_, threads_, 0.02);
    flops_ += rate.median;
    cores_ += rate.cores;
    ++count_;
  }
  double flops_per_second() const { return flops_ / count_; }
  /// That the system gave the threads: fewer than these where others were busy.
  double cores() const { return cores_ / count_; }

 private:
  const runtime::Unit unit_;
  const int threads_;
  double flops_ = 0, cores_ = 0;
  int count_ = 0;
};

/// What a call's times were measured beside.
struct Beside {
  std::optional<Adjacent> peak;  ///< of a CPU
  double gemm = 0;               ///< flops a second

  std::string text(double rate) const {
    const std::string of_gemm = fmt::format("{:>9.3f}", rate / gemm);
    if (!peak) return of_gemm;
    return fmt::format("{}{:>9.3f}{:>7.2f}", of_gemm, rate / peak->flops_per_second(),
                       peak->cores());
  }
  void add_to(Json& row, double rate) const {
    row["flops_per_second"] = rate;
    row["of_gemm"] = rate / gemm;
    if (!peak) return;
    row["peak_flops_per_second"] = peak->flops_per_second();
    row["of_peak"] = rate / peak->flops_per_second();
    row["cores"] = peak->cores();
  }
};

/// Times `works`, which take turns, between two measurements of the peak.
Turns time_beside(Beside& beside, const Case& of, const std::vector<Enqueue>& works,
                  const Plan& plan, const Stream& stream) {
  if (Adjacent::applies(stream)) beside.peak.emplace(of.call.shapes.activation, stream);
  if (beside.peak) beside.peak->measure();
  Turns turns = time_in_turn(stream, plan.repeats, works);
  if (beside.peak) beside.peak->measure();
  return turns;
}

/// What computes the one call: "cuDNN", "cuDNN, ragged", "exact"; empty on the CPU.
std::string kernels_of(const RankCall& call, const Stream& stream) {
  if (stream.device().kind == runtime::DeviceKind::cpu) return "";
  const auto pass =
      call.direction == Direction::forward ? attention::Pass::forward : attention::Pass::backward;
  const auto bands = call.bands();
  const attention::KernelChoice choice =
      choose_kernels(pass, bands, call.shape(), call.scoring(), call.place(stream));
  if (choice.exact()) return "exact";
  return shares_of(choice, bands).ragged > 0 ? "cuDNN, ragged" : "cuDNN";
}

/// A row of calls that are a whole one: time, rate, share of the GEMM's.
Json measure_one(const Case& of, double gemm, const Plan& plan, const Stream& stream) {
  const CallTensors tensors(of.call, stream);
  Beside beside{{}, gemm};
  const Enqueue work = of.both_ways() ? tensors.both_calls() : tensors.one_call();
  const Spread spread = time_beside(beside, of, {work}, plan, stream).spread(0);
  const double flops = of.flops(attention::area(of.call.bands()) * of.call.shapes.heads);
  const double rate = flops / spread.median;
  const std::string kernels = kernels_of(of.call, stream);
  fmt::print("{}{}{:>10.3f}{}{}{}\n", label(of), times(spread), rate / 1e12, beside.text(rate),
             kernels.empty() ? "" : "  ", kernels);
  Json row = json_of(of);
  row["flops"] = flops;
  row["seconds"] = json_of(spread);
  beside.add_to(row, rate);
  if (!kernels.empty()) row["kernels"] = kernels;
  return row;
}

/// A row of one rank's part: the same, beside one call of the same area and without merging.
Json measure_rank(const Case& of, const parallel::Expression& scheme, double gemm, const Plan& plan,
                  const Stream& stream) {
  const RankCall& call = of.call;
  parallel::SchemeInputs inputs{call.mask, call.layout, call.shapes, call.direction, {}, scheme};
  const parallel::Program program = parallel::prepare(inputs)(call.rank);
  const CallTensors tensors(call, stream);
  const std::int64_t pairs = count(program).pairs;
  std::vector<Enqueue> works{tensors.steps_of(parallel::local_work(program)),
                             tensors.steps_of(parallel::local_work_without_merging(program))};
  // Some schemes have a rank attend for others: there is no one call to compare with.
  const bool comparable = pairs == attention::area(call.bands()) * call.shapes.heads;
  if (comparable) works.push_back(tensors.one_call());
  Beside measured{{}, gemm};
  const Turns turns = time_beside(measured, of, works, plan, stream);
  const Spread whole = turns.spread(0), without = turns.spread(1);
  const double flops = of.flops(pairs);
  const double rate = flops / whole.median, merging = 1 - turns.ratio(1, 0);
  const std::string beside =
      comparable ? fmt::format("{:>13.3f}{:>8.3f}", 1e3 * turns.spread(2).median, turns.ratio(2, 0))
                 : fmt::format("{:>13}{:>8}", "-", "-");
  fmt::print("{}{}{:>10.3f}{}{}{:>8.1f}%\n", label(of), times(whole), rate / 1e12,
             measured.text(rate), beside, 100 * merging);
  Json row = json_of(of);
  row["rank"] = call.rank;
  row["flops"] = flops;
  row["seconds"] = json_of(whole);
  measured.add_to(row, rate);
  row["without_merging_seconds"] = json_of(without);
  row["merging"] = merging;
  if (comparable) {
    row["one_call_seconds"] = json_of(turns.spread(2));
    row["of_one_call"] = turns.ratio(2, 0);
  }
  return row;
}

/// The scheme of several ranks; refuses what one of the cases could not run.
parallel::Expression scheme_of(const Plan& plan, const std::vector<Case>& cases) {
  parallel::Expression scheme;
  for (const Case& of : cases) {
    parallel::Combination asked{parallel::choose_scheme(plan.options.scheme, of.call.shapes, {}),
                                plan.options.ranks,
                                of.call.shapes.heads,
                                of.call.shapes.kv_heads,
                                plan.layout,
                                parallel::is_causal(of.call.mask),
                                parallel::Family::softmax,
                                parallel::sees_whole_past(of.call.mask)};
    parallel::check_legal(asked);
    scheme = parallel::resolved(asked);
  }
  return scheme;
}

void print_gemm(const char* when, DType dtype, const GemmRate& gemm) {
  fmt::print("GEMM {}^3 {} {}: {:.3f} TFLOP/s (median of {}; quartiles {:.3f} to {:.3f})\n",
             gemm.size, runtime::name(dtype), when, gemm.flops_per_second() / 1e12,
             gemm.seconds.count, gemm.flops() / gemm.seconds.upper / 1e12,
             gemm.flops() / gemm.seconds.lower / 1e12);
}

}  // namespace

int run_bench_attention(const BenchAttentionOptions& options) {
  const Plan plan = plan_of(options);
  const BenchAttentionOptions& o = plan.options;
  std::optional<runtime::OutputFile> json_file;
  if (!o.json_path.empty()) {
    json_file.emplace(o.json_path,
                      o.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const std::vector<Case> cases = cases_of(plan);
  const bool several = o.ranks > 1;
  const parallel::Expression scheme = several ? scheme_of(plan, cases) : parallel::Expression();
  const Stream stream = bench_stream(plan.cuda);
  const std::string device = bench_device(stream);

  fmt::print("{}; by the {}\n", device, plan.cuda ? "device's clock" : "host's clock");
  std::map<DType, GemmRate> gemms;
  for (const DType dtype : plan.dtypes) {
    gemms[dtype] = measure_gemm(dtype, plan.repeats, stream);
    print_gemm("before", dtype, gemms[dtype]);
    if (!plan.cuda) {
      fmt::print("peak of {}: {}, just before and after each\n", runtime::name(dtype),
                 name(runtime::kernel_unit(dtype)));
    }
  }
  fmt::print(
      "operations: for each visible (query, key) pair and head 2 an element of a key and of a "
      "value "
      "forward, 6 and 4 backward\n");
  if (several) {
    fmt::print(
        "one rank's part of {} over {}, {} of so many tokens each: its block calls and "
        "merges back to back, nothing sent; beside one call of its queries over all keys\n",
        scheme.text(), o.layout, counted(o.ranks, "rank"));
  }
  fmt::print("{}{}   TFLOP/s  of GEMM{}{}\n", kLabels, kTimes, plan.cuda ? "" : "  of peak  cores",
             several     ? "  one call ms of that  merging"
             : plan.cuda ? "  kernels"
                         : "");
  Json rows = Json::array();
  for (const Case& of : cases) {
    const double gemm = gemms[of.call.shapes.activation].flops_per_second();
    rows.push_back(several ? measure_rank(of, scheme, gemm, plan, stream)
                           : measure_one(of, gemm, plan, stream));
  }
  Json products = Json::array();
  for (const auto& [dtype, before] : gemms) {
    const GemmRate after = measure_gemm(dtype, plan.repeats, stream);
    print_gemm("after", dtype, after);
    products.push_back({{"dtype", runtime::name(dtype)},
                        {"size", before.size},
                        {"flops", before.flops()},
                        {"seconds", json_of(before.seconds)},
                        {"seconds_after", json_of(after.seconds)}});
  }
  if (!json_file) return 0;
  Json json{{"record", "bench attention"},
            {"build", runtime::version_line()},
            {"device", device},
            {"threads", stream.threads()},
            {"gemm", std::move(products)}};
  if (several) {
    json["ranks"] = o.ranks;
    json["scheme"] = scheme.text();
    json["layout"] = o.layout;
  }
  json["cases"] = std::move(rows);
  write_output(*json_file, json.dump(2) + "\n");
  return 0;
}

}  // namespace longhaul::launch
