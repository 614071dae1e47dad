// `longhaul bench attention`: rates of local attention calls, and of one rank's part of a spread
// one, beside a matrix product's.

#include <fmt/format.h>

#include <algorithm>
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

namespace longhaul::launch {
namespace {

using parallel::Direction;
using runtime::counted;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::grouped;
using runtime::Stream;

/// The options with every default filled in.
struct Plan {
  BenchAttentionOptions options;
  bool cuda = false;
  DType dtype = DType::float32;
  int heads = 0;
  std::vector<Direction> directions;
  parallel::LayoutKind layout = parallel::LayoutKind::contiguous;
  attention::Kernels kernels = attention::Kernels::automatic;
  Repeats repeats;
};

Plan plan_of(const BenchAttentionOptions& options) {
  Plan plan;
  plan.options = options;
  BenchAttentionOptions& o = plan.options;
  plan.cuda = o.device == "cuda";
  plan.dtype = bench_dtype(o.dtype, plan.cuda);
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
  for (const std::string& name : o.directions)
    plan.directions.push_back(name == "forward" ? Direction::forward : Direction::backward);
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
  std::string mask;
  std::int64_t tokens = 0;  ///< of a rank
  RankCall call;
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
      for (const std::int64_t dim : o.head_dims) {
        for (const int kv_heads : o.kv_heads) {
          for (const Direction direction : plan.directions) {
            const parallel::Shapes shapes{plan.heads, kv_heads, dim, dim, plan.dtype};
            cases.push_back({name, tokens, {direction, mask, shapes, layout, rank, plan.kernels}});
          }
        }
      }
    }
  }
  return cases;
}

Json json_of(const Case& of) {
  const parallel::Shapes& s = of.call.shapes;
  return {{"direction", parallel::name(of.call.direction)},
          {"mask", of.mask},
          {"tokens", of.tokens},
          {"heads", s.heads},
          {"kv_heads", s.kv_heads},
          {"head_dim", s.dim}};
}

/// What precedes the times in a row.
std::string label(const Case& of) {
  const parallel::Shapes& s = of.call.shapes;
  return fmt::format("{:<9} {:<14}{:>10}{:>8}{:>5}", parallel::name(of.call.direction), of.mask,
                     grouped(of.tokens), fmt::format("{}:{}", s.heads, s.kv_heads), s.dim);
}
constexpr const char* kLabels = "direction mask              tokens   heads  dim";

std::string times(const Spread& s) {
  return fmt::format("{:>10.3f}{:>10.3f}{:>10.3f}{:>10.3f}{:>5}", 1e3 * s.median, 1e3 * s.lower,
                     1e3 * s.upper, 1e3 * s.least, s.count);
}
constexpr const char* kTimes = " median ms     lower     upper     least    n";

double flops_of(const RankCall& call) {
  return attention_flops(call.direction, attention::area(call.bands()) * call.shapes.heads,
                         call.shapes.dim);
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
  const Spread spread = time_on_stream(stream, plan.repeats, tensors.one_call());
  const double flops = flops_of(of.call), rate = flops / spread.median;
  const std::string kernels = kernels_of(of.call, stream);
  fmt::print("{}{}{:>10.3f}{:>9.3f}{}{}\n", label(of), times(spread), rate / 1e12, rate / gemm,
             kernels.empty() ? "" : "  ", kernels);
  Json row = json_of(of);
  row["flops"] = flops;
  row["seconds"] = json_of(spread);
  row["flops_per_second"] = rate;
  row["of_gemm"] = rate / gemm;
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
  const Turns turns = time_in_turn(stream, plan.repeats, works);
  const Spread whole = turns.spread(0), without = turns.spread(1);
  const double flops = attention_flops(call.direction, pairs, call.shapes.dim);
  const double rate = flops / whole.median, merging = 1 - turns.ratio(1, 0);
  const std::string beside =
      comparable ? fmt::format("{:>13.3f}{:>8.3f}", 1e3 * turns.spread(2).median, turns.ratio(2, 0))
                 : fmt::format("{:>13}{:>8}", "-", "-");
  fmt::print("{}{}{:>10.3f}{:>9.3f}{}{:>8.1f}%\n", label(of), times(whole), rate / 1e12,
             rate / gemm, beside, 100 * merging);
  Json row = json_of(of);
  row["rank"] = call.rank;
  row["flops"] = flops;
  row["seconds"] = json_of(whole);
  row["flops_per_second"] = rate;
  row["of_gemm"] = rate / gemm;
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

void print_gemm(const char* when, const GemmRate& gemm) {
  fmt::print("GEMM {}^3 {}: {:.3f} TFLOP/s (median of {}; quartiles {:.3f} to {:.3f})\n", gemm.size,
             when, gemm.flops_per_second() / 1e12, gemm.seconds.count,
             gemm.flops() / gemm.seconds.upper / 1e12, gemm.flops() / gemm.seconds.lower / 1e12);
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

  fmt::print("{}, {}; by the {}\n", device, runtime::name(plan.dtype),
             plan.cuda ? "device's clock" : "host's clock");
  const GemmRate gemm = measure_gemm(plan.dtype, plan.repeats, stream);
  print_gemm("before", gemm);
  fmt::print(
      "operations: 4 for each visible (query, key) pair, head and element of it forward, 10 "
      "backward\n");
  if (several) {
    fmt::print(
        "one rank's part of {} over {}, {} of so many tokens each: its block calls and "
        "merges back to back, nothing sent; beside one call of its queries over all keys\n",
        scheme.text(), o.layout, counted(o.ranks, "rank"));
  }
  fmt::print("{}{}   TFLOP/s  of GEMM{}\n", kLabels, kTimes,
             several     ? "  one call ms of that  merging"
             : plan.cuda ? "  kernels"
                         : "");
  Json rows = Json::array();
  for (const Case& of : cases) {
    rows.push_back(several ? measure_rank(of, scheme, gemm.flops_per_second(), plan, stream)
                           : measure_one(of, gemm.flops_per_second(), plan, stream));
  }
  const GemmRate after = measure_gemm(plan.dtype, plan.repeats, stream);
  print_gemm("after", after);
  if (!json_file) return 0;
  Json json{{"record", "bench attention"},
            {"build", runtime::version_line()},
            {"device", device},
            {"dtype", runtime::name(plan.dtype)},
            {"gemm",
             {{"size", gemm.size},
              {"flops", gemm.flops()},
              {"seconds", json_of(gemm.seconds)},
              {"seconds_after", json_of(after.seconds)}}}};
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
