// Halos of the short convolution: what the ranks compute with them, and what they send.
#include "parallel/halo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "attention/short_conv.h"
#include "parallel/executor.h"
#include "runtime/comm/loopback.h"
#include "tests/support/conv_oracle.h"
#include "tests/support/expect_error.h"
#include "tests/support/halo_cases.h"
#include "tests/support/host_tensors.h"

namespace longhaul::parallel {
namespace {

using runtime::DType;
using runtime::ExitCode;
using runtime::Stream;
using runtime::Tensor;
using test::ConvAnswers;
using test::ConvProblem;

/// Rows that others hold of what a rank's runs read before them (behind them), token by token.
std::int64_t rows_from_others(const HaloInputs& inputs, int rank) {
  const std::vector<std::int64_t> held = inputs.layout.tokens_of(rank);
  const std::int64_t way = inputs.direction == Direction::forward ? -1 : 1;
  const auto holds = [&](std::int64_t token) { return std::ranges::count(held, token) > 0; };
  std::int64_t rows = 0;
  for (const std::int64_t token : held) {
    if (holds(token + way)) continue;
    for (std::int64_t far = 1; far < inputs.conv_width; ++far) {
      const std::int64_t other = token + way * far;
      const auto document = [&](std::int64_t t) {
        return std::ranges::upper_bound(inputs.documents, t) - inputs.documents.begin();
      };
      if (other < 0 || other >= inputs.layout.tokens() || document(other) != document(token)) break;
      rows += holds(other) ? 0 : 1;
    }
  }
  return rows;
}

// ---- the convolution over ranks

struct Job {
  ConvProblem problem;
  Layout layout;
  std::string show() const {
    return runtime::concat(problem.show(), " over ", name(layout.kind()), " P=", layout.ranks());
  }
};

/// What the ranks computed, rows in token order.
struct Gathered {
  std::vector<double> y, dpre, dx;
  std::vector<std::vector<double>> dweight, dbias;  // by rank
  std::vector<std::int64_t> sent;                   // by rank, both ways

  explicit Gathered(const Job& job)
      : y(job.problem.x.size()),
        dpre(y.size()),
        dx(y.size()),
        dweight(static_cast<std::size_t>(job.layout.ranks())),
        dbias(dweight.size()),
        sent(dweight.size()) {}
};

/// One rank of a session of jobs.
class RankOfJobs {
 public:
  RankOfJobs(runtime::Communicator& world, int threads)
      : rank_(world.rank()), compute_(Stream::cpu("compute", threads)) {
    compute_.poison_new_memory();
    channels_.push_back({compute_.sibling("halo"), world.split(0, rank_, "halo")});
  }

  void run(const Job& job, Gathered& into) {
    const ConvProblem& problem = job.problem;
    const DType dtype = problem.bfloat16 ? DType::bfloat16 : DType::float32;
    const std::int64_t n = job.layout.rows(rank_), channels = problem.channels;
    const auto rows = std::make_shared<const attention::ConvRows>(
        attention::conv_rows(job.layout.runs(rank_), problem.documents, problem.width));
    const Tensor x = mine(job, problem.x, dtype), dy = mine(job, problem.dy, dtype),
                 weight = test::make_tensor(problem.weight, {channels, problem.width},
                                            DType::float32, compute_),
                 bias = test::make_tensor(problem.bias, {channels}, DType::float32, compute_),
                 left({rows->left_rows, channels}, dtype, compute_),
                 right({rows->right_rows, channels}, dtype, compute_),
                 y({n, channels}, dtype, compute_), dpre({n, channels}, dtype, compute_),
                 dx({n, channels}, dtype, compute_),
                 dweight({channels, problem.width}, DType::float32, compute_),
                 dbias({channels}, DType::float32, compute_);
    runtime::fill(dweight, 0, compute_);
    runtime::fill(dbias, 0, compute_);
    const std::int64_t sent = channels_[0].communicator->sent_bytes();
    const attention::ShortConvInputs inputs{x, left, weight, bias};
    exchange(job, Direction::forward, x, left);
    attention::short_conv(rows, inputs, y, compute_);
    attention::short_conv_dpre(rows, inputs, dy, dpre, compute_);
    exchange(job, Direction::backward, dpre, right);
    attention::short_conv_backward(rows, inputs, dpre, right, {dx, dweight, dbias}, compute_);
    const auto index = static_cast<std::size_t>(rank_);
    scatter(job, test::read(y, compute_), into.y);
    scatter(job, test::read(dpre, compute_), into.dpre);
    scatter(job, test::read(dx, compute_), into.dx);
    into.dweight[index] = test::read(dweight, compute_);
    into.dbias[index] = test::read(dbias, compute_);
    into.sent[index] = channels_[0].communicator->sent_bytes() - sent;
  }

 private:
  Tensor mine(const Job& job, const std::vector<double>& all, DType dtype) const {
    std::vector<double> own;
    for (const std::int64_t token : job.layout.tokens_of(rank_)) {
      const auto begin = all.begin() + token * job.problem.channels;
      own.insert(own.end(), begin, begin + job.problem.channels);
    }
    return test::make_tensor(own, {job.layout.rows(rank_), job.problem.channels}, dtype, compute_);
  }
  void scatter(const Job& job, const std::vector<double>& own, std::vector<double>& all) const {
    std::int64_t row = 0;
    for (const std::int64_t token : job.layout.tokens_of(rank_)) {
      std::copy_n(own.begin() + row * job.problem.channels, job.problem.channels,
                  all.begin() + token * job.problem.channels);
      ++row;
    }
  }
  void exchange(const Job& job, Direction direction, const Tensor& rows, const Tensor& halo) {
    const std::int64_t channels = job.problem.channels;
    const HaloInputs inputs = test::halo_inputs(
        job.layout, job.problem.documents, job.problem.width, direction, channels, rows.dtype());
    const auto prepared =
        std::make_shared<const Prepared>(prepare_halo(inputs)(rank_), halo_signature(),
                                         attention::Scoring{}, attention::place_of(compute_));
    const auto loaded = std::make_shared<const Loaded>(prepared, compute_);
    const runtime::ConstTensorView in = rows.view().reshape({rows.size(0), 1, channels});
    const runtime::TensorView out = halo.view().reshape({halo.size(0), 1, channels});
    Execution(loaded, std::span(&in, 1), std::span(&out, 1), compute_, channels_).finish();
  }

  const int rank_;
  const Stream compute_;
  std::vector<Channel> channels_;
};

std::vector<Gathered> run_jobs(const std::vector<Job>& jobs, int ranks, int threads = 1) {
  std::vector<Gathered> all;
  for (const Job& job : jobs) all.emplace_back(job);
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    RankOfJobs rank(*world, threads);
    for (std::size_t j = 0; j < jobs.size(); ++j) rank.run(jobs[j], all[j]);
  });
  return all;
}

std::vector<double> sum_over_ranks(const std::vector<std::vector<double>>& by_rank) {
  std::vector<double> sum(by_rank.front().size());
  for (const auto& one : by_rank) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += one[i];
  }
  return sum;
}

void expect_right(const Job& job, const Gathered& got, const Gathered& alone) {
  const std::string what = job.show();
  const double bound = job.problem.bfloat16 ? 5e-3 : 2e-6;
  const ConvAnswers exact = test::conv_answers(job.problem);
  EXPECT_LE(test::relative_error(got.y, exact.y), bound) << "y, " << what;
  EXPECT_LE(test::relative_error(got.dx, exact.dx), bound) << "dx, " << what;
  EXPECT_LE(test::sum_error(sum_over_ranks(got.dweight), exact.dweight, exact.dweight_terms), bound)
      << "dweight, " << what;
  EXPECT_LE(test::sum_error(sum_over_ranks(got.dbias), exact.dbias, exact.dbias_terms), bound)
      << "dbias, " << what;
  EXPECT_EQ(got.y, alone.y) << what;
  EXPECT_EQ(got.dpre, alone.dpre) << what;
  EXPECT_EQ(got.dx, alone.dx) << what;
}

void expect_bytes(const Job& job, const Gathered& got) {
  std::vector<std::int64_t> counted(got.sent.size());
  std::int64_t needed = 0;
  const ConvProblem& problem = job.problem;
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    const HaloInputs inputs =
        test::halo_inputs(job.layout, problem.documents, problem.width, direction, problem.channels,
                          problem.bfloat16 ? DType::bfloat16 : DType::float32);
    const Schedule schedule = build_halo_schedule(inputs);
    for (std::size_t rank = 0; rank < counted.size(); ++rank) {
      counted[rank] += count(schedule.programs[rank]).sent_bytes;
      needed += rows_from_others(inputs, static_cast<int>(rank)) * problem.channels *
                (problem.bfloat16 ? 2 : 4);
    }
  }
  EXPECT_EQ(got.sent, counted) << job.show();
  std::int64_t sent = 0;
  for (const std::int64_t bytes : got.sent) sent += bytes;
  EXPECT_EQ(sent, needed) << job.show();
}

class OverRanks : public testing::TestWithParam<int> {};

TEST_P(OverRanks, TheConvolutionIsThatOfOneRankAndSendsWhatIsRead) {
  const int ranks = GetParam();
  std::vector<Job> jobs, alone;
  for (std::int64_t width = 1; width <= 5; ++width) {
    for (const std::int64_t n : {0, 1, 5, 11, 37, 127}) {
      for (const auto& documents : test::document_offsets(n)) {
        const bool bfloat16 = (width + n) % 3 == 0;
        const ConvProblem problem(documents, 7, width, true, bfloat16, 11);
        for (const Layout& layout : test::consecutive_layouts(documents, ranks)) {
          jobs.push_back({problem, layout});
          alone.push_back({problem, Layout(LayoutKind::contiguous, n, 1, 1)});
        }
      }
    }
  }
  const std::vector<Gathered> results = run_jobs(jobs, ranks), single = run_jobs(alone, 1);
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    expect_right(jobs[j], results[j], single[j]);
    expect_bytes(jobs[j], results[j]);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Halo, OverRanks, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 32),
                         [](const auto& info) { return "P" + std::to_string(info.param); });

TEST(Halo, BytesAreThoseOfTheBordersWhateverTheLength) {
  constexpr int kRanks = 4;
  const auto sent = [](const HaloInputs& inputs) {
    std::int64_t bytes = 0;
    for (const Program& program : build_halo_schedule(inputs).programs)
      bytes += count(program).sent_bytes;
    return bytes;
  };
  constexpr std::int64_t kChannels = 10, kBorder = 3 * kChannels * 2;  // bfloat16, K = 4
  for (const std::int64_t n : {64, 64'000}) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      const auto bytes = [&](LayoutKind kind, std::vector<std::int64_t> documents) {
        const Layout layout(kind, n, 1, kRanks);
        return sent(test::halo_inputs(layout, documents, 4, direction, kChannels, DType::bfloat16));
      };
      EXPECT_EQ(bytes(LayoutKind::contiguous, {0, n}), (kRanks - 1) * kBorder);
      // Of 2 P chunks the last rank's two are neighbours.
      EXPECT_EQ(bytes(LayoutKind::zigzag, {0, n}), (2 * kRanks - 2) * kBorder);
      EXPECT_EQ(bytes(LayoutKind::contiguous, {0, n / 4, n / 2, 3 * n / 4, n}), 0);
      EXPECT_EQ(bytes(LayoutKind::contiguous, {0, n / 4 - 1, n / 4 + 2, n}),
                kBorder / 3 * (direction == Direction::forward ? 1 : 2) + 2 * kBorder);
    }
  }
}

TEST(Halo, BatchesOfSequencesAreDocuments) {
  const std::vector<std::int64_t> documents{0, 9, 20, 31, 40};  // two sequences of 20
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag}) {
    const Job job{ConvProblem(documents, 2, 4, true, false, 12), Layout(kind, 20, 2, 3)};
    const Job alone{job.problem, Layout(LayoutKind::contiguous, 20, 2, 1)};
    const Gathered got = run_jobs({job}, 3)[0];
    expect_right(job, got, run_jobs({alone}, 1)[0]);
    expect_bytes(job, got);
  }
}

TEST(Halo, ADocumentOfNaNsReachesNoOther) {
  const std::vector<std::int64_t> documents{0, 17, 24, 45};
  Job job{ConvProblem(documents, 3, 5, true, false, 13), Layout(LayoutKind::zigzag, 45, 1, 4)};
  const Gathered clean = run_jobs({job}, 4)[0];
  const std::size_t begin = 17 * 3, end = 24 * 3;
  for (std::size_t i = begin; i < end; ++i)
    job.problem.x[i] = job.problem.dy[i] = std::numeric_limits<double>::quiet_NaN();
  const Gathered dirty = run_jobs({job}, 4)[0];
  for (std::size_t i = 0; i < clean.y.size(); ++i) {
    if (i >= begin && i < end) continue;
    EXPECT_EQ(dirty.y[i], clean.y[i]);
    EXPECT_EQ(dirty.dx[i], clean.dx[i]);
  }
}

TEST(Halo, RefusesStripedRanksAndOtherWidths) {
  const std::vector<std::int64_t> documents{0, 12};
  const Layout striped(LayoutKind::striped, 12, 1, 3), one(LayoutKind::striped, 12, 1, 1);
  test::expect_error(ExitCode::config, "use a layout other than striped", [&] {
    prepare_halo(test::halo_inputs(striped, documents, 4, Direction::forward));
  });
  EXPECT_TRUE(build_halo_schedule(test::halo_inputs(one, documents, 4, Direction::forward))
                  .programs[0]
                  .steps.empty());
  test::expect_error(ExitCode::config, "width 6; expected 1 to 5", [&] {
    prepare_halo(test::halo_inputs(one, documents, 6, Direction::forward));
  });
  test::expect_error(ExitCode::internal, "documents over 11 tokens, layout of 12", [&] {
    prepare_halo(test::halo_inputs(one, {0, 11}, 4, Direction::forward));
  });
}

}  // namespace
}  // namespace longhaul::parallel
