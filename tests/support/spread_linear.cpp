#include "tests/support/spread_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "attention/linear_reference.h"
#include "runtime/comm/loopback.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::test {

using attention::Decay;
using attention::StateRule;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

runtime::Deadline deadline() { return runtime::deadline_in(120); }

bool delta(const LinearProblem& p) { return p.inputs.recurrence.rule == StateRule::delta; }
std::int64_t state_size(const LinearProblem& p) {
  const auto& s = p.inputs.shape;
  return s.value_dim * s.heads * s.dim;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Rows of a global array [tokens, width] and back.
class Rows {
 public:
  Rows(std::vector<std::int64_t> tokens, const Stream& stream)
      : tokens_(std::move(tokens)), stream_(stream) {}
  std::int64_t count() const { return static_cast<std::int64_t>(tokens_.size()); }

  Tensor upload(const std::vector<float>& global, std::initializer_list<std::int64_t> sizes,
                DType dtype = DType::float32) const {
    std::vector<std::int64_t> all{count()};
    all.insert(all.end(), sizes);
    std::int64_t width = 1;
    for (const std::int64_t size : sizes) width *= size;
    std::vector<float> mine;
    for (const std::int64_t token : tokens_) {
      const auto row = global.begin() + token * width;
      mine.insert(mine.end(), row, row + width);
    }
    Tensor rows(all, DType::float32, stream_);
    runtime::ops::upload(std::move(mine), rows, stream_);
    if (dtype == DType::float32) return rows;
    Tensor copy(all, dtype, stream_);
    runtime::copy(rows, copy, stream_);
    return copy;
  }
  void download(const Tensor& rows, std::vector<float>& global) const {
    const auto values = runtime::ops::download<float>(rows, stream_);
    stream_.synchronize(deadline());
    const std::int64_t width = count() == 0 ? 0 : rows.elements() / count();
    for (std::int64_t i = 0; i < count(); ++i)
      std::copy_n(values->begin() + i * width, width,
                  global.begin() + tokens_[static_cast<std::size_t>(i)] * width);
  }

 private:
  const std::vector<std::int64_t> tokens_;
  const Stream stream_;
};

/// The gate's sizes behind its rows.
std::vector<std::int64_t> decay_sizes(const LinearProblem& p) {
  if (p.inputs.recurrence.decay == Decay::vector) return {p.inputs.shape.heads, p.inputs.shape.dim};
  return {p.inputs.shape.heads};
}

Tensor rows_like(std::int64_t rows, std::vector<std::int64_t> sizes, const Stream& stream) {
  sizes.insert(sizes.begin(), rows);
  return Tensor(sizes, DType::float32, stream);
}

/// One rank's run of a job.
class RankRun {
 public:
  RankRun(const LinearJob& job, runtime::Communicator& world, const Stream& compute)
      : p_(*job.problem),
        shape_(p_.inputs.shape),
        rank_(world.rank()),
        compute_(compute),
        rows_(job.layout.tokens_of(rank_), compute),
        ends_(parallel::sequence_ends(job.layout, rank_)) {}

  LinearAnswer run(parallel::Attention& attention, const parallel::AttentionBatch& batch) {
    const auto before = attention.sent_to();
    const LinearCase& in = p_.inputs;
    const std::int64_t n = rows_.count(), h = shape_.heads, hk = shape_.key_heads, d = shape_.dim,
                       e = shape_.value_dim;
    const Tensor q = rows_.upload(in.q, {hk, d}, shape_.activation),
                 k = rows_.upload(in.k, {hk, d}, shape_.activation),
                 v = rows_.upload(in.v, {h, e}, shape_.activation),
                 dout = rows_.upload(in.dout, {h, e}, shape_.activation);
    Tensor decay, beta, ddecay, dbeta;
    const bool constant = in.recurrence.decay == Decay::head;
    if (constant) {
      decay = Tensor({1, h}, DType::float32, compute_);
      runtime::ops::upload(in.log_decay, decay, compute_);
      ddecay = Tensor({1, h}, DType::float32, compute_);
    } else if (in.recurrence.decay != Decay::none) {
      decay = in.recurrence.decay == Decay::vector ? rows_.upload(in.log_decay, {h, d})
                                                   : rows_.upload(in.log_decay, {h});
      ddecay = rows_like(n, decay_sizes(p_), compute_);
    }
    if (delta(p_)) {
      beta = rows_.upload(in.beta, {h});
      dbeta = rows_like(n, {h}, compute_);
    }
    const Tensor out = rows_like(n, {h, e}, compute_), dq = rows_like(n, {hk, d}, compute_),
                 dk = rows_like(n, {hk, d}, compute_), dv = rows_like(n, {h, e}, compute_);
    Tensor initial, final, dinitial, dfinal;
    if (p_.initial_state) {
      initial = upload_states(p_.initial_states, ends_.beginning);
      dinitial = states_like(ends_.beginning);
    }
    if (p_.final_state) {
      final = states_like(ends_.ending);
      dfinal = upload_states(p_.dfinal_states, ends_.ending);
    }
    const attention::LinearInputs inputs{q, k, v, decay, beta};
    parallel::LinearKept kept;
    const parallel::LinearCall call = p_.call();
    auto forward = attention.linear_forward(batch, call, {inputs, initial, out, final}, kept);
    forward->start();
    forward->advance();
    forward->finish();
    // Once more, from the states, changes no bit and exchanges nothing.
    const Tensor again = rows_like(n, {h, e}, compute_);
    const auto exchanged = attention.sent_bytes();
    attention.linear_again(batch, call, {inputs, initial, again, final}, kept)->finish();
    EXPECT_TRUE(same(download(again), download(out))) << "from the states that entered";
    EXPECT_EQ(attention.sent_bytes(), exchanged);
    auto backward = attention.linear_backward(
        batch, call, {inputs, initial, dout, dfinal, dq, dk, dv, ddecay, dbeta, dinitial}, kept);
    backward->finish();
    compute_.synchronize(deadline());

    LinearAnswer answer = empty();
    rows_.download(out, answer.out);
    rows_.download(dq, answer.dq);
    rows_.download(dk, answer.dk);
    rows_.download(dv, answer.dv);
    if (constant && p_.slopes_gradient) answer.dlog_decay = download(ddecay);
    if (!constant && !ddecay.empty()) rows_.download(ddecay, answer.dlog_decay);
    if (delta(p_)) rows_.download(dbeta, answer.dbeta);
    if (p_.initial_state) download_states(dinitial, ends_.beginning, answer.dinitial_states);
    if (p_.final_state) download_states(final, ends_.ending, answer.final_states);
    answer.kept[static_cast<std::size_t>(rank_)] = download(kept.states);
    auto& sent = answer.sent[static_cast<std::size_t>(rank_)];
    for (const auto& [peer, bytes] : attention.sent_to()) {
      const auto found = before.find(peer);
      const std::int64_t more = bytes - (found == before.end() ? 0 : found->second);
      if (more > 0) sent[peer] = more;
    }
    return answer;
  }

  /// Everything NaN.
  LinearAnswer empty() const {
    const LinearCase& in = p_.inputs;
    const auto nan = [](std::size_t size) { return std::vector<float>(size, kNaN); };
    LinearAnswer answer;
    answer.out = nan(in.v.size());
    answer.dq = nan(in.q.size());
    answer.dk = nan(in.k.size());
    answer.dv = nan(in.v.size());
    const bool wanted = in.recurrence.decay != Decay::head || p_.slopes_gradient;
    if (wanted) answer.dlog_decay = nan(in.log_decay.size());
    answer.dbeta = nan(in.beta.size());
    const auto states = static_cast<std::size_t>(p_.batch * state_size(p_));
    if (p_.final_state) answer.final_states = nan(states);
    if (p_.initial_state) answer.dinitial_states = nan(states);
    answer.kept.resize(64);
    answer.sent.resize(64);
    return answer;
  }

 private:
  Tensor states_like(const std::vector<std::int64_t>& sequences) const {
    return Tensor({std::ssize(sequences) * shape_.value_dim, shape_.heads, shape_.dim},
                  DType::float32, compute_);
  }
  Tensor upload_states(const std::vector<float>& all,
                       const std::vector<std::int64_t>& sequences) const {
    std::vector<float> mine;
    const std::int64_t size = state_size(p_);
    for (const std::int64_t s : sequences)
      mine.insert(mine.end(), all.begin() + s * size, all.begin() + (s + 1) * size);
    Tensor states = states_like(sequences);
    runtime::ops::upload(std::move(mine), states, compute_);
    return states;
  }
  void download_states(const Tensor& states, const std::vector<std::int64_t>& sequences,
                       std::vector<float>& all) const {
    const std::vector<float> values = download(states);
    const std::int64_t size = state_size(p_);
    for (std::size_t i = 0; i < sequences.size(); ++i)
      std::copy_n(values.begin() + static_cast<std::int64_t>(i) * size, size,
                  all.begin() + sequences[i] * size);
  }
  std::vector<float> download(const Tensor& tensor) const {
    const auto values = runtime::ops::download<float>(tensor, compute_);
    compute_.synchronize(deadline());
    return *values;
  }

  const LinearProblem& p_;
  const attention::LinearShape& shape_;
  const int rank_;
  const Stream compute_;
  const Rows rows_;
  const parallel::SequenceEnds ends_;
};

/// What another rank filled in.
void join(const std::vector<float>& part, std::vector<float>& whole) {
  for (std::size_t i = 0; i < part.size(); ++i) {
    if (!std::isnan(part[i])) whole[i] = part[i];
  }
}

std::vector<double> widened(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

struct Sums {
  double error = 0, size = 0;
  double relative() const { return std::sqrt(error / (size > 0 ? size : 1)); }
};
void add(const std::vector<double>& want, std::span<const float> got, Sums& sums) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = got[i] - want[i];
    sums.error += error * error;
    sums.size += want[i] * want[i];
  }
}

}  // namespace

attention::HeadMasks LinearProblem::masks() const {
  if (!inputs.recurrence.causal) return attention::Mask::full(tokens() / batch).repeated(batch);
  std::vector<std::int64_t> offsets = inputs.starts;
  offsets.push_back(tokens());
  return attention::Mask::documents(offsets);
}

parallel::LinearCall LinearProblem::call() const {
  return {inputs.recurrence, initial_state, final_state, slopes_gradient};
}

LinearProblem linear_problem(const std::string& kind, const attention::LinearShape& shape,
                             std::int64_t batch, const std::vector<std::int64_t>& offsets,
                             Gates gates, std::uint32_t seed) {
  LinearProblem p;
  p.name = runtime::concat(kind, ", ", name(gates), ", ", batch, " x ", shape.rows / batch);
  p.inputs = linear_case(kind, shape);
  p.inputs.fill(seed, gates);
  p.batch = batch;
  p.slopes_gradient = p.inputs.recurrence.decay == Decay::head;
  const std::int64_t length = shape.rows / batch;
  for (std::int64_t s = 0; s < batch; ++s) {
    for (const std::int64_t offset : offsets) {
      if (offset < length &&
          (p.inputs.starts.empty() || p.inputs.starts.back() < s * length + offset))
        p.inputs.starts.push_back(s * length + offset);
    }
  }
  std::mt19937 random(seed + 1000);
  std::normal_distribution<float> normal;
  for (auto* states : {&p.initial_states, &p.dfinal_states}) {
    states->resize(static_cast<std::size_t>(batch * state_size(p)));
    for (float& x : *states) x = normal(random);
  }
  return p;
}

bool LinearAnswer::same_bits(const LinearAnswer& other) const {
  return same(out, other.out) && same(dq, other.dq) && same(dk, other.dk) && same(dv, other.dv) &&
         same(dlog_decay, other.dlog_decay) && same(dbeta, other.dbeta) &&
         same(final_states, other.final_states) && same(dinitial_states, other.dinitial_states);
}

std::string show(const LinearJob& job) {
  const LinearProblem& p = *job.problem;
  return runtime::concat(job.scheme.text(), " over ", name(job.layout.kind()),
                         " P=", job.layout.ranks(), ", ", p.name, ", heads ", p.inputs.shape.heads,
                         "/", p.inputs.shape.key_heads, p.initial_state ? ", initial state" : "",
                         p.final_state ? ", final state" : "");
}

std::vector<LinearAnswer> run_linear_jobs_of_rank(std::span<const LinearJob> jobs,
                                                  runtime::Communicator& world, int threads) {
  std::vector<LinearAnswer> answers;
  if (jobs.empty()) return answers;
  const Stream compute = Stream::cpu("compute", threads);
  compute.poison_new_memory();
  parallel::Attention attention({}, world.split(0, world.rank(), "context"), compute);
  for (const LinearJob& job : jobs) {
    attention.set_scheme(job.scheme);
    const auto batch = attention.batch(job.problem->masks(), job.layout);
    answers.push_back(RankRun(job, world, compute).run(attention, *batch));
  }
  return answers;
}

std::vector<LinearAnswer> run_linear_jobs(std::span<const LinearJob> jobs, int ranks, int threads) {
  std::vector<std::vector<LinearAnswer>> by_rank(static_cast<std::size_t>(ranks));
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    by_rank[static_cast<std::size_t>(world->rank())] =
        run_linear_jobs_of_rank(jobs, *world, threads);
  });
  std::vector<LinearAnswer> answers = by_rank[0];
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    LinearAnswer& all = answers[j];
    const bool constant = jobs[j].problem->inputs.recurrence.decay == Decay::head;
    for (std::size_t rank = 1; rank < by_rank.size(); ++rank) {
      const LinearAnswer& own = by_rank[rank][j];
      join(own.out, all.out);
      join(own.dq, all.dq);
      join(own.dk, all.dk);
      join(own.dv, all.dv);
      join(own.dbeta, all.dbeta);
      join(own.final_states, all.final_states);
      join(own.dinitial_states, all.dinitial_states);
      if (constant) {  // each rank's of its own rows
        for (std::size_t i = 0; i < own.dlog_decay.size(); ++i)
          all.dlog_decay[i] += own.dlog_decay[i];
      } else {
        join(own.dlog_decay, all.dlog_decay);
      }
      all.kept[rank] = own.kept[rank];
      all.sent[rank] = own.sent[rank];
    }
  }
  return answers;
}

LinearErrors linear_errors(const LinearProblem& problem, const LinearAnswer& got) {
  const LinearCase& in = problem.inputs;
  const std::int64_t length = problem.tokens() / problem.batch;
  const auto q = widened(in.q), k = widened(in.k), v = widened(in.v), dout = widened(in.dout),
             decay = widened(in.log_decay), beta = widened(in.beta),
             initial = widened(problem.initial_states), dfinal = widened(problem.dfinal_states);
  const bool constant = in.recurrence.decay == Decay::head;
  Sums out, dq, dk, dv, ddecay, dbeta, final, dinitial;
  std::vector<double> slopes(constant ? in.log_decay.size() : 0, 0);
  for (std::int64_t s = 0; s < problem.batch; ++s) {
    const auto part = [&](const auto& all) {
      const std::size_t rows = all.size() / static_cast<std::size_t>(problem.batch);
      return std::span(all).subspan(static_cast<std::size_t>(s) * rows, rows);
    };
    std::vector<std::int64_t> starts;
    for (const std::int64_t start : in.starts) {
      const std::int64_t row = start - s * length;
      if (row >= 0 && row < length && !(row == 0 && problem.initial_state)) starts.push_back(row);
    }
    attention::LinearReferenceInputs<double> one{length, in.shape.heads, in.shape.key_heads,
                                                 in.shape.dim, in.shape.value_dim};
    one.q = part(q), one.k = part(k), one.v = part(v), one.dout = part(dout), one.beta = part(beta);
    one.log_decay = constant ? std::span<const double>(decay) : part(decay);
    one.starts = starts;
    if (problem.initial_state) one.initial_state = part(initial);
    if (problem.final_state) one.dfinal_state = part(dfinal);
    const auto want = attention::reference_linear<double>(one, in.recurrence);
    add(want.out, part(got.out), out);
    add(want.dq, part(got.dq), dq);
    add(want.dk, part(got.dk), dk);
    add(want.dv, part(got.dv), dv);
    if (!want.dbeta.empty()) add(want.dbeta, part(got.dbeta), dbeta);
    if (constant) {
      for (std::size_t i = 0; i < slopes.size(); ++i) slopes[i] += want.dlog_decay[i];
    } else if (!want.dlog_decay.empty()) {
      add(want.dlog_decay, part(got.dlog_decay), ddecay);
    }
    if (problem.final_state) add(want.final_state, part(got.final_states), final);
    if (problem.initial_state) add(want.dinitial_state, part(got.dinitial_states), dinitial);
  }
  if (constant && problem.slopes_gradient) add(slopes, got.dlog_decay, ddecay);
  LinearErrors errors;
  const auto note = [&](const char* name, const Sums& sums) {
    if (!(sums.relative() <= errors.values)) {  // NaN too
      errors.values = sums.relative();
      errors.worst = name;
    }
  };
  note("out", out);
  note("dq", dq);
  note("dk", dk);
  note("dv", dv);
  note("dbeta", dbeta);
  note("final_state", final);
  note("dinitial_state", dinitial);
  errors.gates = ddecay.relative();
  return errors;
}

}  // namespace longhaul::test
