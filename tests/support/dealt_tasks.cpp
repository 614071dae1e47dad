#include "tests/support/dealt_tasks.h"

#include <gtest/gtest.h>

#include <bit>
#include <mutex>

#include "attention/block.h"
#include "parallel/executor.h"
#include "parallel/schemes/disaggregated.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::test {

using parallel::Direction;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

runtime::Deadline deadline() { return runtime::deadline_in(120); }

Tensor rows_of(const std::vector<float>& global, const std::vector<std::int64_t>& tokens,
               std::int64_t heads, std::int64_t dim, const Stream& stream) {
  const std::int64_t width = heads * dim;
  std::vector<float> values;
  for (const std::int64_t token : tokens)
    values.insert(values.end(), global.begin() + token * width,
                  global.begin() + (token + 1) * width);
  Tensor tensor({std::ssize(tokens), heads, dim}, DType::float32, stream);
  runtime::ops::upload(std::move(values), tensor, stream);
  return tensor;
}

class DealtRank {
 public:
  DealtRank(const SpreadJob& job, const std::array<parallel::TaskPlan, 2>& plans,
            runtime::Communicator& world)
      : job_(job), plans_(plans), rank_(world.rank()) {
    channels_.push_back({compute_.sibling("tasks"), world.split(0, rank_, "tasks")});
  }

  std::array<std::vector<float>, 5> run() {
    const AttentionCase& c = job_.problem->inputs;
    const std::vector<std::int64_t> tokens = job_.layout.tokens_of(rank_);
    const std::int64_t n = std::ssize(tokens);
    const auto input = [&](const std::vector<float>& all, std::int64_t heads, std::int64_t dim) {
      return rows_of(all, tokens, heads, dim, compute_);
    };
    const Tensor q = input(c.q, c.heads, c.dim), k = input(c.k, c.kv_heads, c.dim),
                 v = input(c.v, c.kv_heads, c.value_dim),
                 dout = input(c.dout, c.heads, c.value_dim);
    const auto output = [&](std::int64_t heads, std::int64_t dim) {
      return Tensor({n, heads, dim}, DType::float32, compute_);
    };
    const Tensor out = output(c.heads, c.value_dim), lse = output(c.heads, 2),
                 dq = output(c.heads, c.dim), dk = output(c.kv_heads, c.dim),
                 dv = output(c.kv_heads, c.value_dim);
    const Tensor delta({n, c.heads}, DType::float32, compute_);
    call(Direction::forward, {q, k, v}, {out, lse});
    attention::block_delta(out, dout, delta, compute_);
    call(Direction::backward, {q, dout, lse, delta, k, v}, {dq, dk, dv});
    std::array<std::vector<float>, 5> results;
    std::size_t i = 0;
    for (const Tensor* tensor : {&out, &lse, &dq, &dk, &dv}) {
      const auto values = runtime::ops::download<float>(*tensor, compute_);
      compute_.synchronize(deadline());
      results[i++] = *values;
    }
    return results;
  }

 private:
  void call(Direction direction, std::vector<runtime::ConstTensorView> inputs,
            std::vector<runtime::TensorView> outputs) {
    const parallel::SchemeInputs scheme = scheme_inputs(job_, direction);
    auto program = prepare_tasks(scheme, plans_[static_cast<std::size_t>(direction)])(rank_);
    const auto prepared = std::make_shared<const parallel::Prepared>(
        std::move(program), parallel::signature(scheme.shapes, direction),
        job_.problem->inputs.scoring, attention::place_of(compute_));
    if (direction == Direction::forward && prepared->saved_bytes() > 0)
      saved_ = Tensor({prepared->saved_bytes()}, DType::uint8, compute_);
    std::byte* const saved =
        saved_.empty() ? nullptr : static_cast<std::byte*>(saved_.view().data());
    parallel::Execution execution(std::make_shared<const parallel::Loaded>(prepared, compute_),
                                  inputs, outputs, compute_, channels_, saved);
    execution.finish();
    compute_.synchronize(deadline());
  }

  const SpreadJob& job_;
  const std::array<parallel::TaskPlan, 2>& plans_;
  const int rank_;
  const Stream compute_ = Stream::cpu("compute");
  std::vector<parallel::Channel> channels_;
  Tensor saved_;
};

/// Answers tasks in an order that is not theirs.
class ServersInProcess final : public parallel::TaskTransport {
 public:
  explicit ServersInProcess(int count) : count_(count) {}
  void forward(std::span<const parallel::ForwardTask> tasks) override {
    work(attention::Pass::forward, tasks);
  }
  void backward(std::span<const parallel::BackwardTask> tasks) override {
    work(attention::Pass::backward, tasks);
  }

 private:
  template <class Tasks>
  void work(attention::Pass pass, const Tasks& tasks) {
    const std::lock_guard lock(mutex_);
    for (auto task = tasks.rbegin(); task != tasks.rend(); ++task) {
      ASSERT_GE(task->server, 0);
      ASSERT_LT(task->server, count_);
      const auto plan = attention::plan_block(pass, task->bands, task->shape, task->scoring,
                                              attention::place_of(stream_));
      attention::run_once(plan, task->tensors, stream_);
    }
    stream_.synchronize(deadline());
  }

  const int count_;
  const Stream stream_ = Stream::cpu("servers");
  std::mutex mutex_;  // ranks are threads
};

}  // namespace

std::vector<std::vector<std::uint32_t>> dealt(const SpreadJob& job,
                                              const std::array<parallel::TaskPlan, 2>& plans) {
  const auto ranks = static_cast<std::size_t>(job.layout.ranks());
  std::vector<std::array<std::vector<float>, 5>> of_ranks(ranks);
  runtime::run_loopback(job.layout.ranks(), {}, [&](std::unique_ptr<runtime::Communicator> world) {
    of_ranks[static_cast<std::size_t>(world->rank())] = DealtRank(job, plans, *world).run();
  });
  std::vector<std::vector<std::uint32_t>> all(5);
  for (const auto& rank : of_ranks) {
    for (std::size_t t = 0; t < all.size(); ++t)
      for (const float value : rank[t]) all[t].push_back(std::bit_cast<std::uint32_t>(value));
  }
  return all;
}

std::shared_ptr<parallel::TaskTransport> servers_in_process(int count) {
  return std::make_shared<ServersInProcess>(count);
}

}  // namespace longhaul::test
