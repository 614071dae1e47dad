// `longhaul bench linear`: times of recurrences against the length of the sequence, beside the
// machine's peak, softmax attention's times, and what both send over ranks.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <vector>

#include "attention/linear.h"
#include "launch/bench.h"
#include "launch/bench_calls.h"
#include "launch/bench_gemm.h"
#include "launch/bench_json_impl.h"
#include "parallel/policy.h"
#include "runtime/build_info.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/output_file.h"
#include "runtime/ops/random.h"
#include "runtime/peak.h"

namespace longhaul::launch {
namespace {

using attention::Decay;
using attention::LinearPass;
using attention::StateRule;
using parallel::Direction;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::grouped;
using runtime::Stream;
using runtime::Tensor;

/// One line of the table.
struct Case {
  Direction direction = Direction::forward;
  std::string kind;
  std::int64_t tokens = 0;
  parallel::Shapes shapes;  ///< linear
};

std::vector<Case> cases_of(const BenchLinearOptions& o, bool cuda) {
  const int heads = o.heads.value_or(cuda ? 16 : 2), key_heads = o.key_heads.value_or(heads);
  if (heads % key_heads != 0)
    fail(ExitCode::usage, "--heads ", heads, " is no multiple of --key-heads ", key_heads);
  const DType dtype = bench_dtype(o.dtype, cuda);
  std::vector<Case> cases;
  for (const std::string& direction : o.directions) {
    for (const std::string& kind : o.kinds) {
      parallel::Shapes shapes{heads, key_heads, o.head_dim, o.head_dim, dtype};
      shapes.linear = parallel::LinearCall{.recurrence = attention::recurrence_of_kind(kind)};
      shapes.linear->recurrence.scale =
          static_cast<float>(1 / std::sqrt(static_cast<double>(o.head_dim)));
      for (const std::int64_t tokens : o.tokens) {
        cases.push_back({direction == "forward" ? Direction::forward : Direction::backward, kind,
                         tokens, shapes});
      }
    }
  }
  return cases;
}

/// Of chunks of 64 tokens, a multiply-add counted as two, a token and state head; d = e. Sum rule:
/// the chunk's products of queries and keys and of those with values, the state read and written;
/// the delta rule solves for its values besides. Gates are not counted.
double flops_of(const Case& of) {
  constexpr double kChunk = 64;
  const auto d = static_cast<double>(of.shapes.dim), e = static_cast<double>(of.shapes.value_dim);
  const bool delta = of.shapes.linear->recurrence.rule == StateRule::delta;
  const double forward = delta ? 2 * kChunk * (2 * d + 2 * e) + 6 * d * e
                               : 2 * kChunk * (d + e) + 4 * d * e,
               backward = delta ? kChunk * (12 * d + 10 * e) + 14 * d * e
                                : 2 * kChunk * (3 * d + 2 * e) + 10 * d * e;
  return (of.direction == Direction::forward ? forward : backward) *
         static_cast<double>(of.tokens * of.shapes.heads);
}

/// A sweep over one sequence and its operands: random normal elements, keys of a norm of about 1
/// under the delta rule, log decays of -0.05, beta 0.5.
class LocalCall {
 public:
  LocalCall(const Case& of, const Stream& stream)
      : stream_(stream),
        forward_(of.direction == Direction::forward),
        plan_(attention::plan_linear(forward_ ? LinearPass::sweep : LinearPass::sweep_backward,
                                     {of.tokens, of.shapes.heads, of.shapes.kv_heads, of.shapes.dim,
                                      of.shapes.value_dim, of.shapes.activation},
                                     of.shapes.linear->recurrence, {},
                                     attention::place_of(stream))),
        memory_(plan_->scratch_bytes(), plan_->table(), stream) {
    const parallel::Shapes& s = of.shapes;
    const attention::Recurrence& how = s.linear->recurrence;
    const bool delta = how.rule == StateRule::delta, vector = how.decay == Decay::vector;
    const double of_key = delta ? 1 / std::sqrt(static_cast<double>(s.dim)) : 1;
    q_ = random(of.tokens, s.kv_heads, s.dim, s.activation, 1, 1);
    k_ = random(of.tokens, s.kv_heads, s.dim, s.activation, of_key, 2);
    v_ = random(of.tokens, s.heads, s.value_dim, s.activation, 1, 3);
    const auto gates = [&](std::int64_t rows, bool wide, double value) {
      Tensor all = wide ? make({rows, s.heads, s.dim}) : make({rows, s.heads});
      runtime::fill(all, value, stream_);
      return all;
    };
    const std::int64_t decays = how.decay == Decay::head ? 1 : of.tokens;
    if (how.decay != Decay::none) log_decay_ = gates(decays, vector, -0.05);
    if (delta) beta_ = gates(of.tokens, false, 0.5);
    if (forward_) {
      out_ = make({of.tokens, s.heads, s.value_dim});
      return;
    }
    dout_ = random(of.tokens, s.heads, s.value_dim, s.activation, 1, 4);
    dq_ = make({of.tokens, s.kv_heads, s.dim});
    dk_ = make({of.tokens, s.kv_heads, s.dim});
    dv_ = make({of.tokens, s.heads, s.value_dim});
    if (how.decay != Decay::none) dlog_decay_ = gates(decays, vector, 0);
    if (delta) dbeta_ = gates(of.tokens, false, 0);
  }

  /// One call. Refers to this.
  Enqueue once() const {
    const attention::LinearInputs inputs{q_, k_, v_, log_decay_, beta_};
    if (forward_) {
      return [=, this] {
        plan_->sweep({.inputs = inputs, .state_in = {}, .out = out_, .state_out = {}},
                     memory_.memory(), stream_);
      };
    }
    const attention::SweepBackwardTensors tensors{.inputs = inputs,
                                                  .dout = dout_,
                                                  .state_in = {},
                                                  .dstate_out = {},
                                                  .dq = dq_,
                                                  .dk = dk_,
                                                  .dv = dv_,
                                                  .dlog_decay = dlog_decay_,
                                                  .dbeta = dbeta_,
                                                  .dstate_in = {}};
    return [=, this] { plan_->sweep_backward(tensors, memory_.memory(), stream_); };
  }

 private:
  Tensor make(std::initializer_list<std::int64_t> sizes) const {
    return Tensor(sizes, DType::float32, stream_);
  }
  Tensor random(std::int64_t rows, std::int64_t heads, std::int64_t width, DType dtype,
                double deviation, std::uint64_t number) const {
    Tensor values({rows, heads, width}, dtype, stream_);
    runtime::ops::fill_normal(values, 0, deviation, {1, number}, 0, stream_);
    return values;
  }

  const Stream stream_;
  const bool forward_;
  const std::shared_ptr<const attention::LinearPlan> plan_;
  const CallMemory memory_;
  Tensor q_, k_, v_, log_decay_, beta_, out_, dout_, dq_, dk_, dv_, dlog_decay_, dbeta_;
};

Spread time_recurrence(const Case& of, const Repeats& repeats, const Stream& stream) {
  const LocalCall call(of, stream);
  return time_on_stream(stream, repeats, call.once());
}

/// Most that one of the ranks sends, in bytes.
std::int64_t sent_bytes(const BenchLinearOptions& o, const parallel::Shapes& shapes,
                        Direction direction, std::int64_t tokens,
                        const parallel::Expression& scheme) {
  const attention::Mask mask = attention::Mask::causal(tokens);
  const auto layout =
      parallel::Layout::make(parallel::layout_from_name(o.layout), mask, 1, o.ranks);
  const parallel::SchemeInputs inputs{mask, layout, shapes, direction, {}, scheme};
  std::int64_t most = 0;
  for (const parallel::Program& program : parallel::build_schedule(inputs).programs)
    most = std::max(most, parallel::count(program).sent_bytes);
  return most;
}

/// The scheme of a case over the ranks; refuses what could not run.
parallel::Expression scheme_of(const BenchLinearOptions& o, const Case& of) {
  const auto layout = parallel::layout_from_name(o.layout);
  const parallel::Combination asked{
      parallel::choose_linear_scheme(o.scheme, of.shapes, layout, o.ranks,
                                     (of.tokens + o.ranks - 1) / o.ranks)
          .scheme,
      o.ranks,
      of.shapes.heads,
      of.shapes.kv_heads,
      layout,
      true,
      parallel::Family::linear};
  parallel::check_legal(asked);
  return parallel::resolved(asked);
}

/// Times of softmax attention over the same tokens, heads and dims: causal, by one local call.
class SoftmaxTimes {
 public:
  SoftmaxTimes(const Repeats& repeats, const Stream& stream) : repeats_(repeats), stream_(stream) {}
  /// Measured once for all kinds.
  const Spread& of(const Case& which) {
    const auto [found, added] = times_.try_emplace({which.direction, which.tokens});
    if (added) found->second = measure(which);
    return found->second;
  }

 private:
  Spread measure(const Case& which) const {
    parallel::Shapes shapes = which.shapes;
    shapes.linear.reset();
    const RankCall call{which.direction, attention::Mask::causal(which.tokens), shapes,
                        parallel::Layout(parallel::LayoutKind::contiguous, which.tokens, 1, 1)};
    const CallTensors tensors(call, stream_);
    return time_on_stream(stream_, repeats_, tensors.one_call());
  }

  const Repeats repeats_;
  const Stream stream_;
  std::map<std::pair<Direction, std::int64_t>, Spread> times_;
};

constexpr const char* kLabels =
    "direction kind             tokens   heads  dim median ms     lower     upper     least    n  "
    "us/token   TFLOP/s  of peak softmax ms   ratio   sent MB   ring MB  scheme";

/// A row: times, rates, softmax's where it is timed, bytes.
Json measure(const BenchLinearOptions& o, const Case& of, double peak, const Repeats& repeats,
             SoftmaxTimes& softmax_times, const Stream& stream) {
  const Spread spread = time_recurrence(of, repeats, stream);
  const double flops = flops_of(of), rate = flops / spread.median;
  std::optional<Spread> softmax;
  if (of.tokens <= o.softmax_tokens) softmax = softmax_times.of(of);
  const parallel::Expression scheme = scheme_of(o, of);
  parallel::Shapes without = of.shapes;
  without.linear.reset();
  const std::int64_t sent = sent_bytes(o, of.shapes, of.direction, of.tokens, scheme),
                     ring = sent_bytes(o, without, of.direction, of.tokens, "ring");
  const std::string beside = softmax ? fmt::format("{:>11.3f}{:>8.2f}", 1e3 * softmax->median,
                                                   softmax->median / spread.median)
                                     : fmt::format("{:>11}{:>8}", "-", "-");
  fmt::print(
      "{:<9} {:<12}{:>11}{:>8}{:>5}{:>10.3f}{:>10.3f}{:>10.3f}{:>10.3f}{:>5}{:>10.3f}"
      "{:>10.3f}{:>9.3f}{}{:>10.3f}{:>10.1f}  {}\n",
      parallel::name(of.direction), of.kind, grouped(of.tokens),
      fmt::format("{}:{}", of.shapes.heads, of.shapes.kv_heads), of.shapes.dim, 1e3 * spread.median,
      1e3 * spread.lower, 1e3 * spread.upper, 1e3 * spread.least, spread.count,
      1e6 * spread.median / static_cast<double>(of.tokens), rate / 1e12, rate / peak, beside,
      static_cast<double>(sent) / 1e6, static_cast<double>(ring) / 1e6, scheme.text());
  Json row{{"direction", parallel::name(of.direction)},
           {"kind", of.kind},
           {"tokens", of.tokens},
           {"heads", of.shapes.heads},
           {"key_heads", of.shapes.kv_heads},
           {"head_dim", of.shapes.dim},
           {"flops", flops},
           {"seconds", json_of(spread)},
           {"flops_per_second", rate},
           {"of_peak", rate / peak},
           {"scheme", scheme.text()},
           {"sent_bytes", sent},
           {"ring_sent_bytes", ring}};
  if (softmax) row["softmax_seconds"] = json_of(*softmax);
  return row;
}

/// From which of the timed lengths on softmax attention takes longer, for each kind and direction.
Json print_crossovers(const Json& rows) {
  using Ratios = std::map<std::int64_t, double>;
  std::vector<std::pair<std::pair<std::string, std::string>, Ratios>> all_ratios;  // in their order
  for (const Json& row : rows) {
    if (!row.contains("softmax_seconds")) continue;
    const std::pair<std::string, std::string> of{row["direction"], row["kind"]};
    if (all_ratios.empty() || all_ratios.back().first != of) all_ratios.push_back({of, {}});
    all_ratios.back().second[row["tokens"]] =
        row["softmax_seconds"]["median"].get<double>() / row["seconds"]["median"].get<double>();
  }
  Json all = Json::array();
  for (const auto& [of, by_tokens] : all_ratios) {
    std::optional<std::int64_t> from;
    for (auto at = by_tokens.rbegin(); at != by_tokens.rend() && at->second > 1; ++at)
      from = at->first;
    const std::int64_t longest = by_tokens.rbegin()->first;
    const std::string what = of.first + " of " + of.second;
    if (from) {
      fmt::print("{} is faster than softmax attention's from {} tokens on ({:.2f} times at {})\n",
                 what, grouped(*from), by_tokens.at(longest), grouped(longest));
    } else {
      fmt::print("{} is not faster than softmax attention's up to {} tokens\n", what,
                 grouped(longest));
    }
    Json one{{"direction", of.first}, {"kind", of.second}, {"softmax_up_to", longest}};
    one["faster_from"] = from ? Json(*from) : Json();
    all.push_back(std::move(one));
  }
  return all;
}

/// What rates are divided by.
struct Peak {
  std::string what;
  double flops = 0;
};
Peak measure_peak_of(const Stream& stream, DType dtype, const Repeats& repeats) {
  if (stream.device().kind == runtime::DeviceKind::cpu) {
    return {"float32 FMA of all threads", runtime::measure_fma_flops(stream.threads(), 0.5)};
  }
  const GemmRate gemm = measure_gemm(dtype, repeats, stream);
  return {"a matrix product", gemm.flops_per_second()};
}

}  // namespace

int run_bench_linear(const BenchLinearOptions& options) {
  BenchLinearOptions o = options;
  const bool cuda = o.device == "cuda";
  std::ranges::sort(o.tokens);
  std::optional<runtime::OutputFile> json_file;
  if (!o.json_path.empty()) {
    json_file.emplace(o.json_path,
                      o.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const std::vector<Case> cases = cases_of(o, cuda);
  for (const Case& of : cases) scheme_of(o, of);  // before anything is timed
  const Stream stream = bench_stream(cuda);
  const DType dtype = bench_dtype(o.dtype, cuda);
  const Repeats repeats{.warm_up = std::min(2, o.repeats), .most = o.repeats, .seconds = o.seconds};
  const std::string device = bench_device(stream);

  const Peak before = measure_peak_of(stream, dtype, repeats);
  fmt::print("{}, {}; by the {}; peak, {}: {:.3f} TFLOP/s\n", device, runtime::name(dtype),
             cuda ? "device's clock" : "host's clock", before.what, before.flops / 1e12);
  fmt::print("operations: of chunks of 64; sent: most of {} over {}, ring's beside it\n{}\n",
             runtime::counted(o.ranks, "rank"), o.layout, kLabels);
  SoftmaxTimes softmax_times(repeats, stream);
  Json rows = Json::array();
  for (const Case& of : cases)
    rows.push_back(measure(o, of, before.flops, repeats, softmax_times, stream));
  Json crossovers = print_crossovers(rows);
  const Peak after = measure_peak_of(stream, dtype, repeats);
  const auto state = static_cast<std::int64_t>(cases.front().shapes.heads) *
                     cases.front().shapes.dim * cases.front().shapes.value_dim * 4;
  fmt::print("a state is {}; peak after: {:.3f} TFLOP/s\n", runtime::counted(state, "byte"),
             after.flops / 1e12);
  if (!json_file) return 0;
  const Json json{
      {"record", "bench linear"},
      {"build", runtime::version_line()},
      {"device", device},
      {"dtype", runtime::name(dtype)},
      {"peak", {{"what", before.what}, {"flops", before.flops}, {"after", after.flops}}},
      {"ranks", o.ranks},
      {"layout", o.layout},
      {"state_bytes", state},
      {"cases", std::move(rows)},
      {"crossovers", std::move(crossovers)}};
  write_output(*json_file, json.dump(2) + "\n");
  return 0;
}

}  // namespace longhaul::launch
