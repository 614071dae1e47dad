#include "tests/support/spread_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <thread>

#include "attention/block.h"
#include "runtime/error.h"
#include "runtime/ops/host_copy.h"
#include "tests/support/host_tensors.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::test {

using parallel::Direction;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

runtime::Deadline deadline() { return runtime::deadline_in(120); }

template <class T>
struct Answer {
  std::array<std::vector<T>, 4> tensors;
  std::vector<T> lse;
};

template <class T>
Answer<T> answer(const AttentionCase& inputs, const attention::HeadMasks& masks) {
  AttentionCase c = inputs;
  for (int head = 0; head < c.heads; ++head) c.head_bands.push_back(masks.of(head).slices());
  auto result = run_reference<T>(c);
  return {{std::move(result.out), std::move(result.dq), std::move(result.dk), std::move(result.dv)},
          std::move(result.lse)};
}

double norm(const std::vector<double>& values) {
  double squares = 0;
  for (const double x : values) squares += x * x;
  return std::sqrt(squares);
}

double relative(double squared_error, const std::vector<double>& exact) {
  const double size = norm(exact);
  return std::sqrt(squared_error) / (size > 0 ? size : 1);
}

/// Rows `tokens` of a global [rows, width] array, as [rows, heads, width / heads].
Tensor take(const std::vector<float>& global, const std::vector<std::int64_t>& tokens,
            std::int64_t heads, std::int64_t width, DType dtype, const Stream& stream) {
  const auto n = static_cast<std::int64_t>(tokens.size()), row = heads * width;
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(n * row));
  for (const std::int64_t token : tokens)
    values.insert(values.end(), global.begin() + token * row, global.begin() + (token + 1) * row);
  Tensor rows({n, heads, width}, DType::float32, stream);
  runtime::ops::upload(std::move(values), rows, stream);
  Tensor rounded({n, heads, width}, dtype, stream);
  runtime::copy(rows, rounded, stream);
  stream.synchronize(deadline());
  return rounded;
}

/// Waits for the stream.
std::vector<float> floats_of(const Tensor& tensor, const Stream& stream) {
  const auto values = runtime::ops::download<float>(tensor, stream);
  stream.synchronize(deadline());
  return *values;
}

std::uint64_t digest_of(std::uint64_t digest, const std::vector<float>& values) {
  for (const float value : values)
    digest = (digest ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001b3ull;
  return digest;
}

/// One rank's tensors of a problem under a layout.
class RankTensors {
 public:
  RankTensors(const Problem& problem, const parallel::Layout& layout, int rank,
              const Stream& stream)
      : problem_(problem),
        runs_(layout.runs(rank)),
        tokens_(layout.tokens_of(rank)),
        stream_(stream) {
    const AttentionCase& c = problem.inputs;
    const DType dtype = c.bf16 ? DType::bfloat16 : DType::float32;
    const auto n = static_cast<std::int64_t>(tokens_.size());
    q_ = take(c.q, tokens_, c.heads, c.dim, dtype, stream);
    k_ = take(c.k, tokens_, c.kv_heads, c.dim, dtype, stream);
    v_ = take(c.v, tokens_, c.kv_heads, c.value_dim, dtype, stream);
    dout_ = take(c.dout, tokens_, c.heads, c.value_dim, dtype, stream);
    const auto output = [&](std::int64_t heads, std::int64_t width) {
      return Tensor({n, heads, width}, DType::float32, stream);
    };
    outputs_ = {output(c.heads, c.value_dim), output(c.heads, c.dim), output(c.kv_heads, c.dim),
                output(c.kv_heads, c.value_dim)};
    if (!c.sigmoid()) {
      lse_ = Tensor({n, c.heads, 2}, DType::float32, stream);
      delta_ = Tensor({n, c.heads}, DType::float32, stream);
    }
    stream.synchronize(deadline());
    inputs_before_ = inputs();
  }
  bool inputs_untouched() const { return inputs() == inputs_before_; }

  /// Forward and backward, enqueued; outputs hold NaN before.
  void run(parallel::Attention& attention, const parallel::AttentionBatch& batch,
           const SpreadOptions& options) const {
    for (const Tensor& output : outputs_) runtime::fill(output, NAN, stream_);
    if (!problem_.inputs.sigmoid()) {
      runtime::fill(lse_, NAN, stream_);
      runtime::fill(delta_, NAN, stream_);
    }
    const attention::Scoring& scoring = problem_.inputs.scoring;
    parallel::AttentionKept kept;
    auto forward = attention.forward(batch, q_, k_, v_, scoring, outputs_[0], lse_, &kept);
    forward->start();
    forward->advance();
    forward->finish();
    if (!problem_.inputs.sigmoid()) attention::block_delta(outputs_[0], dout_, delta_, stream_);
    if (options.sabotage) options.sabotage({problem_, runs_, q_, k_, v_, lse_, delta_, stream_});
    auto backward = attention.backward(batch, {q_, k_, v_, dout_, lse_, delta_, &kept}, scoring,
                                       outputs_[1], outputs_[2], outputs_[3]);
    backward->finish();
  }

  /// After the stream: errors and digest of what run() left.
  void judge(SpreadRank& into, bool note) const {
    const Oracle& oracle = problem_.oracle();
    std::array<std::vector<float>, 4> rows;
    const auto widths = problem_.widths();
    into.digest = 0xcbf29ce484222325ull;
    for (std::size_t t = 0; t < rows.size(); ++t) {
      rows[t] = floats_of(outputs_[t], stream_);
      into.digest = digest_of(into.digest, rows[t]);
      const auto width = static_cast<std::size_t>(widths[t]);
      double squares = 0, rounded_squares = 0;
      for (std::size_t i = 0; i < rows[t].size(); ++i) {
        const auto at = static_cast<std::size_t>(tokens_[i / width]) * width + i % width;
        const double difference = rows[t][i] - oracle.exact[t][at];
        squares += difference * difference;
        const double rounded =
            static_cast<float>(runtime::BFloat16(rows[t][i])) - oracle.exact[t][at];
        rounded_squares += rounded * rounded;
      }
      into.squared_error[t] = squares;
      into.rounded_squared_error[t] = rounded_squares;
    }
    if (problem_.inputs.sigmoid()) {
      if (note) problem_.note(rows, tokens_);
      return;
    }
    const std::vector<float> lse = floats_of(lse_, stream_);
    into.digest = digest_of(into.digest, lse);
    const auto heads = static_cast<std::size_t>(problem_.inputs.heads);
    for (std::size_t i = 0; i < lse.size() / 2; ++i) {
      const double exact =
          oracle.lse[static_cast<std::size_t>(tokens_[i / heads]) * heads + i % heads];
      const float high = lse[2 * i], low = lse[2 * i + 1];
      double error = std::abs(high - exact) / std::max(1.0, std::abs(exact));
      if (std::isinf(exact) && high == -std::numeric_limits<float>::infinity()) error = 0;
      if (high + low != high) error = NAN;  // the high part is the nearest float
      // NaN counts as the largest.
      if (!(error <= into.lse_error))
        into.lse_error = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
    if (note) problem_.note(rows, tokens_);
  }

 private:
  std::array<std::vector<std::byte>, 4> inputs() const {
    return {read_bytes(q_, stream_), read_bytes(k_, stream_), read_bytes(v_, stream_),
            read_bytes(dout_, stream_)};
  }
  const Problem& problem_;
  std::vector<attention::Run> runs_;
  std::vector<std::int64_t> tokens_;
  const Stream& stream_;
  Tensor q_, k_, v_, dout_, lse_, delta_;
  std::array<Tensor, 4> outputs_;  // by kTensors
  std::array<std::vector<std::byte>, 4> inputs_before_;
};

bool same_rows(const SpreadJob& a, const SpreadJob& b) {
  if (a.problem != b.problem || a.layout.kind() != b.layout.kind()) return false;
  for (int rank = 0; rank < a.layout.ranks(); ++rank) {
    if (a.layout.runs(rank) != b.layout.runs(rank)) return false;
  }
  return true;
}

}  // namespace

Problem::Problem(std::string problem_name, attention::HeadMasks head_masks,
                 const ProblemSizes& sizes, std::uint32_t seed)
    : name(std::move(problem_name)), masks(std::move(head_masks)) {
  inputs.q_rows = inputs.k_rows = masks.tokens();
  inputs.heads = sizes.heads;
  inputs.kv_heads = sizes.kv_heads;
  inputs.dim = sizes.dim;
  inputs.value_dim = sizes.value_dim;
  inputs.bf16 = sizes.bf16;
  inputs.fill(seed);
}

Problem::Problem(std::string problem_name, attention::HeadMasks head_masks, AttentionCase given)
    : name(std::move(problem_name)), masks(std::move(head_masks)), inputs(std::move(given)) {}

const Oracle& Problem::oracle() const {
  std::call_once(solved_, [&] {
    Answer<double> right = answer<double>(inputs, masks);
    const Answer<float> plain = answer<float>(inputs, masks);
    for (std::size_t t = 0; t < kTensors.size(); ++t)
      oracle_.bound[t] = std::max(3e-6, 2 * relative_error(plain.tensors[t], right.tensors[t]));
    oracle_.exact = std::move(right.tensors);
    oracle_.lse = std::move(right.lse);
  });
  return oracle_;
}

std::array<std::int64_t, 4> Problem::widths() const {
  return {inputs.heads * inputs.value_dim, inputs.heads * inputs.dim, inputs.kv_heads * inputs.dim,
          inputs.kv_heads * inputs.value_dim};
}

parallel::Shapes Problem::shapes() const {
  return {static_cast<int>(inputs.heads),
          static_cast<int>(inputs.kv_heads),
          inputs.dim,
          inputs.value_dim,
          inputs.bf16 ? DType::bfloat16 : DType::float32,
          inputs.scoring.weighting};
}

void Problem::note(const std::array<std::vector<float>, 4>& rows,
                   const std::vector<std::int64_t>& tokens) const {
  const std::lock_guard lock(mutex_);
  const auto row_widths = widths();
  const std::int64_t tokens_of_all = masks.tokens();
  for (std::size_t t = 0; t < rows.size(); ++t) {
    auto &low = envelope_.low[t], &high = envelope_.high[t];
    if (low.empty()) {
      const auto size = static_cast<std::size_t>(tokens_of_all * row_widths[t]);
      low.assign(size, std::numeric_limits<float>::infinity());
      high.assign(size, -std::numeric_limits<float>::infinity());
    }
    const auto width = static_cast<std::size_t>(row_widths[t]);
    for (std::size_t i = 0; i < rows[t].size(); ++i) {
      const auto at = static_cast<std::size_t>(tokens[i / width]) * width + i % width;
      low[at] = std::min(low[at], rows[t][i]);
      high[at] = std::max(high[at], rows[t][i]);
    }
  }
}

std::array<double, 4> Problem::spread() const {
  std::array<double, 4> spread{};
  for (std::size_t t = 0; t < spread.size(); ++t) {
    double squares = 0;
    for (std::size_t i = 0; i < envelope_.low[t].size(); ++i) {
      const double difference =
          static_cast<double>(envelope_.high[t][i]) - static_cast<double>(envelope_.low[t][i]);
      squares += difference * difference;
    }
    spread[t] = relative(squares, oracle().exact[t]);
  }
  return spread;
}

std::string show(const SpreadJob& job) {
  return runtime::concat(show(job.scheme), " over ", name(job.layout.kind()),
                         " P=", job.layout.ranks(), ", ", job.problem->name,
                         " n=", job.problem->tokens(), ", heads ", job.problem->inputs.heads, "/",
                         job.problem->inputs.kv_heads);
}

std::vector<SpreadRank> run_jobs_of_rank(std::span<const SpreadJob> jobs,
                                         const SpreadOptions& options,
                                         runtime::Communicator& world) {
  std::vector<SpreadRank> ranks(jobs.size());
  if (jobs.empty()) return ranks;
  const bool cpu = options.device.kind == runtime::DeviceKind::cpu;
  const Stream compute =
      cpu ? Stream::cpu("compute", options.threads) : Stream::cuda("compute", options.device.index);
  if (cpu && options.poison) compute.poison_new_memory();
  parallel::AttentionOptions made{jobs[0].scheme, options.wire_dtype, options.kernels};
  made.lend = options.lend;
  made.transport = options.transport;
  parallel::Attention attention(made, world.split(0, world.rank(), "context"), compute);
  const bool ahead = options.ahead || !cpu;
  const Stream host = Stream::cpu("meeting");
  const auto meet = [&] {
    world.barrier(host);
    host.synchronize(deadline());
  };
  std::unique_ptr<RankTensors> tensors;
  const SpreadJob* before = nullptr;
  const auto check_inputs = [&] {
    EXPECT_TRUE(!tensors || tensors->inputs_untouched()) << "an input was modified";
  };
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const SpreadJob& job = jobs[j];
    if (before == nullptr || !same_rows(job, *before)) {
      check_inputs();
      tensors = std::make_unique<RankTensors>(*job.problem, job.layout, world.rank(), compute);
    }
    before = &job;
    attention.set_scheme(job.scheme);
    const auto batch = attention.batch(job.problem->masks, job.layout, job.servers);
    SpreadRank& rank = ranks[j];
    if (ahead) {
      meet();
      attention.prepare(*batch, job.scheme, job.problem->shapes(), job.problem->inputs.scoring);
      attention.load(*batch);
      meet();
      rank.taken = -runtime::system_allocations();
      meet();
    }
    for (int repeat = 0; repeat < options.repeats; ++repeat) {
      const auto sent_before = attention.sent_to();
      const double waited_before = compute.waited_seconds();
      const auto begin = runtime::Clock::now();
      tensors->run(attention, *batch, options);
      compute.synchronize(deadline());
      rank.seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
      rank.waited_seconds = compute.waited_seconds() - waited_before;
      rank.sent_to.clear();
      for (const auto& [peer, bytes] : attention.sent_to()) {
        const auto found = sent_before.find(peer);
        const std::int64_t more = bytes - (found == sent_before.end() ? 0 : found->second);
        if (more > 0) rank.sent_to[peer] = more;
      }
    }
    if (ahead) {
      meet();
      rank.taken += runtime::system_allocations();
      meet();
    }
    if (options.judge) tensors->judge(rank, options.envelope);
  }
  check_inputs();
  return ranks;
}

std::vector<std::uint64_t> SpreadReport::digests() const {
  std::vector<std::uint64_t> all;
  for (const SpreadRank& rank : ranks) all.push_back(rank.digest);
  return all;
}

std::vector<SpreadReport> run_jobs(std::span<const SpreadJob> jobs, int ranks,
                                   const SpreadOptions& options,
                                   const runtime::LoopbackOptions& loopback) {
  std::vector<SpreadReport> reports(jobs.size());
  for (SpreadReport& report : reports) report.ranks.resize(static_cast<std::size_t>(ranks));
  runtime::run_loopback(ranks, loopback, [&](std::unique_ptr<runtime::Communicator> world) {
    auto mine = run_jobs_of_rank(jobs, options, *world);
    for (std::size_t j = 0; j < jobs.size(); ++j)
      reports[j].ranks[static_cast<std::size_t>(world->rank())] = std::move(mine[j]);
  });
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    SpreadReport& report = reports[j];
    if (!options.judge) continue;
    for (std::size_t t = 0; t < kTensors.size(); ++t) {
      double squares = 0, rounded = 0;
      for (const SpreadRank& rank : report.ranks) {
        squares += rank.squared_error[t];
        rounded += rank.rounded_squared_error[t];
      }
      report.rounded_error[t] = relative(rounded, jobs[j].problem->oracle().exact[t]);
      report.error[t] = relative(squares, jobs[j].problem->oracle().exact[t]);
    }
    for (const SpreadRank& rank : report.ranks)
      report.lse_error = std::max(report.lse_error, rank.lse_error);
  }
  return reports;
}

parallel::SchemeInputs scheme_inputs(const SpreadJob& job, Direction direction,
                                     const SpreadOptions& options) {
  parallel::SchemeInputs inputs{job.problem->masks, job.layout, job.problem->shapes(), direction};
  if (options.wire_dtype != DType::float32) inputs.wire_dtype = options.wire_dtype;
  inputs.lends = options.lend;
  inputs.scheme = job.scheme;
  inputs.servers = job.servers;
  return inputs;
}

parallel::Schedule schedule_of(const SpreadJob& job, Direction direction,
                               const SpreadOptions& options) {
  return build_schedule(scheme_inputs(job, direction, options));
}

void expect_right(const SpreadJob& job, const SpreadReport& report,
                  const std::array<double, 4>& least) {
  const bool tiles = job.problem->inputs.on_tiles();
  for (std::size_t t = 0; t < kTensors.size(); ++t) {
    const double of_tiles = !tiles ? 0 : t == 0 ? 4e-3 : 6e-3;  // as expect_matches_in_bfloat16
    const double bound = std::max({job.problem->oracle().bound[t], least[t], of_tiles});
    EXPECT_TRUE(report.error[t] <= bound)
        << show(job) << ": " << kTensors[t] << " has relative error " << report.error[t]
        << ", bound " << bound;
  }
  EXPECT_LE(report.lse_error, tiles ? 5e-4 : 1e-5) << show(job) << ": lse";
}

void expect_bytes_as_counted(const SpreadJob& job, const SpreadReport& report,
                             const SpreadOptions& options) {
  const auto forward = scheme_inputs(job, Direction::forward, options),
             backward = scheme_inputs(job, Direction::backward, options);
  const auto generate = prepare(forward), generate_backward = prepare(backward);
  for (int rank = 0; rank < job.layout.ranks(); ++rank) {
    std::map<int, std::int64_t> counted = count(generate(rank)).sent_to;
    for (const auto& [peer, bytes] : count(generate_backward(rank)).sent_to) counted[peer] += bytes;
    std::erase_if(counted, [](const auto& entry) { return entry.second == 0; });
    EXPECT_EQ(report.ranks[static_cast<std::size_t>(rank)].sent_to, counted)
        << show(job) << ": bytes of rank " << rank << " by peer";
  }
}

}  // namespace longhaul::test
