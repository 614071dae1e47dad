// Communication hides behind compute: nothing in a program orders them one after the other, and the
// executor adds no order of its own. Nothing here is timed.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "parallel/executor.h"
#include "parallel/schemes/scheme.h"
#include "runtime/comm/loopback.h"
#include "runtime/error.h"
#include "tests/support/forwarding_communicator.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using runtime::Communicator;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

/// A communicator whose n-th exchange, counted from 0, begins only once `opened` says so.
class Gated final : public test::ForwardingCommunicator {
 public:
  Gated(std::unique_ptr<Communicator> inner, int gated, std::function<bool()> opened,
        std::atomic<bool>& passed)
      : ForwardingCommunicator(std::move(inner)),
        gated_(gated),
        opened_(std::move(opened)),
        passed_(passed) {}

  void exchange(std::vector<runtime::SendMessage> sends,
                std::vector<runtime::ReceiveMessage> receives, const std::string& what,
                const Stream& stream) override {
    if (exchanges_++ == gated_) {
      stream.host_task([opened = opened_, &passed = passed_] {
        const auto deadline = runtime::deadline_in(20);
        while (!opened() && runtime::Clock::now() < deadline)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        passed = opened();
      });
    }
    ForwardingCommunicator::exchange(std::move(sends), std::move(receives), what, stream);
  }

 private:
  const int gated_;
  const std::function<bool()> opened_;
  std::atomic<bool>& passed_;
  int exchanges_ = 0;
};

/// No longer the NaN that was there at first.
std::function<bool()> is_written(const Tensor& tensor) {
  float* last = tensor.as<float>() + tensor.elements() - 1;
  return [last] { return !std::isnan(std::atomic_ref<float>(*last).load()); };
}

Tensor filled(std::initializer_list<std::int64_t> sizes, double value, const Stream& stream) {
  Tensor tensor(sizes, DType::float32, stream);
  runtime::fill(tensor, value, stream);
  return tensor;
}

/// The first hop of a ring of two may begin only after the attention of the local block is done: an
/// executor that ran them one after the other, either way round, would wait here for ever.
void expect_hop_runs_beside_compute(Direction direction) {
  const std::int64_t n = 64;
  const Shapes shapes{2, 2, 16, 16, DType::float32};
  const Layout layout(LayoutKind::contiguous, 2 * n, 1, 2);
  std::array<std::atomic<bool>, 2> passed{};
  const SchemeInputs inputs{Mask::full(2 * n), layout, shapes, direction};
  const ProgramGenerator generate = prepare(inputs);
  runtime::run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    const auto rank = static_cast<std::size_t>(world->rank());
    const Stream compute = Stream::cpu("compute");
    const Tensor q = filled({n, 2, 16}, 0.5, compute), k = filled({n, 2, 16}, 0.25, compute),
                 v = filled({n, 2, 16}, 1, compute), dout = filled({n, 2, 16}, 1, compute),
                 lse = filled({n, 2, 2}, 5, compute), delta = filled({n, 2}, 0, compute);
    const Tensor out = filled({n, 2, 16}, NAN, compute), out_lse = filled({n, 2, 2}, NAN, compute),
                 dq = filled({n, 2, 16}, NAN, compute), dk = filled({n, 2, 16}, NAN, compute),
                 dv = filled({n, 2, 16}, NAN, compute);
    compute.synchronize(runtime::deadline_in(60));
    const bool forward = direction == Direction::forward;
    std::vector<Channel> channels;
    channels.push_back({Stream::cpu("channel"),
                        std::make_unique<Gated>(std::move(world), 0, is_written(forward ? out : dq),
                                                passed[rank])});
    std::vector<runtime::ConstTensorView> inputs_bound{q, k, v};
    std::vector<runtime::TensorView> outputs_bound{out, out_lse};
    if (!forward) {
      inputs_bound = {q, dout, lse, delta, k, v};
      outputs_bound = {dq, dk, dv};
    }
    auto prepared = std::make_shared<const Prepared>(
        generate(static_cast<int>(rank)),
        forward ? forward_signature(shapes.weighting) : backward_signature(shapes.weighting),
        attention::Scoring{.scale = 0.25f}, attention::place_of(compute));
    Execution execution(std::make_shared<const Loaded>(std::move(prepared), compute), inputs_bound,
                        outputs_bound, compute, channels);
    execution.finish();
    compute.synchronize(runtime::deadline_in(60));
  });
  EXPECT_TRUE(passed[0] && passed[1]) << name(direction);
}

TEST(Overlap, ARingsHopRunsBesideTheLocalBlock) {
  expect_hop_runs_beside_compute(Direction::forward);
  expect_hop_runs_beside_compute(Direction::backward);
}

/// What a rank of a ring of two calls forward with; one of its exchanges is gated.
struct GatedRing {
  static constexpr std::int64_t kRows = 16;

  GatedRing(std::unique_ptr<Communicator> world, int gated, std::function<bool()> opened,
            std::atomic<bool>& passed)
      : rank_(world->rank()) {
    channels_.push_back(
        {Stream::cpu("channel"), std::make_unique<Gated>(std::move(world), gated, opened, passed)});
  }

  std::unique_ptr<Execution> call(const Tensor& out, const Tensor& lse) {
    return std::make_unique<Execution>(loaded(), std::vector<runtime::ConstTensorView>{q_, k_, v_},
                                       std::vector<runtime::TensorView>{out, lse}, compute,
                                       channels_);
  }
  Tensor out() const { return filled({kRows, 2, 8}, NAN, compute); }
  Tensor lse() const { return filled({kRows, 2, 2}, NAN, compute); }

  const Stream compute = Stream::cpu("compute");

 private:
  std::shared_ptr<const Loaded> loaded() const {
    const Shapes shapes{2, 2, 8, 8, DType::float32};
    const HeadMasks mask = Mask::full(2 * kRows);
    const Layout layout(LayoutKind::contiguous, 2 * kRows, 1, 2);
    auto prepared = std::make_shared<const Prepared>(
        prepare(SchemeInputs{mask, layout, shapes, Direction::forward})(rank_),
        forward_signature(shapes.weighting), attention::Scoring{}, attention::place_of(compute));
    return std::make_shared<const Loaded>(std::move(prepared), compute);
  }

  const int rank_;
  const Tensor q_ = filled({kRows, 2, 8}, 0.5, compute), k_ = filled({kRows, 2, 8}, 0.25, compute),
               v_ = filled({kRows, 2, 8}, 1, compute);
  std::vector<Channel> channels_;
};

TEST(Overlap, ACallFinishesBesideTheExchangeOfAnother) {
  // Two calls in flight on one channel. The second one's exchange may begin only after what comes
  // behind the first call on the compute stream: had finish() waited for the channel and not for
  // its own exchanges, it would wait here for ever.
  std::array<std::atomic<bool>, 2> passed{}, behind{};
  runtime::run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    const auto rank = static_cast<std::size_t>(world->rank());
    GatedRing ring(
        std::move(world), 1, [&flag = behind[rank]] { return flag.load(); }, passed[rank]);
    const Tensor outs[] = {ring.out(), ring.out()}, lses[] = {ring.lse(), ring.lse()};
    std::vector<std::unique_ptr<Execution>> calls;
    for (std::size_t i = 0; i < 2; ++i) {
      calls.push_back(ring.call(outs[i], lses[i]));
      calls.back()->start();
    }
    calls[0]->finish();
    ring.compute.host_task([&flag = behind[rank]] { flag = true; });
    calls[1]->finish();
    ring.compute.synchronize(runtime::deadline_in(60));
    for (std::int64_t i = 0; i < outs[0].elements(); ++i)
      ASSERT_EQ(outs[0].as<float>()[i], outs[1].as<float>()[i]);
  });
  EXPECT_TRUE(passed[0] && passed[1]);
}

TEST(Overlap, WhatComesBehindACallThatIsGivenUpWaitsForItsExchange) {
  // Its arena goes back to the compute stream, whose next work may write there, while the channel
  // still receives into it.
  std::array<std::atomic<bool>, 2> passed{}, given_up{};
  runtime::run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    const auto rank = static_cast<std::size_t>(world->rank());
    GatedRing ring(
        std::move(world), 0, [&flag = given_up[rank]] { return flag.load(); }, passed[rank]);
    const Tensor out = ring.out(), lse = ring.lse();
    ring.call(out, lse)->start();  // and no more
    const runtime::Event behind = ring.compute.record();
    EXPECT_THROW(behind.synchronize(runtime::deadline_in(0.1)), runtime::Error);
    given_up[rank] = true;
    behind.synchronize(runtime::deadline_in(60));
  });
  EXPECT_TRUE(passed[0] && passed[1]);
}

/// For each step, whether it comes before a later one through streams and waits.
std::vector<std::vector<bool>> precedence(const Program& program) {
  const std::size_t count = program.steps.size();
  std::vector<std::vector<bool>> before(count, std::vector<bool>(count, false));
  std::map<int, std::size_t> last;
  for (std::size_t step = 0; step < count; ++step) {
    std::vector<std::size_t> direct;
    for (const int wait : program.steps[step].waits)
      direct.push_back(static_cast<std::size_t>(wait));
    const int stream = program.steps[step].stream;
    if (last.contains(stream)) direct.push_back(last[stream]);
    last[stream] = step;
    for (const std::size_t earlier : direct) {
      before[earlier][step] = true;
      for (std::size_t s = 0; s < earlier; ++s) {
        if (before[s][earlier]) before[s][step] = true;
      }
    }
  }
  return before;
}

/// Attention steps, but the last, beside which some transfer may run.
std::pair<int, int> hidden_and_all(const Program& program) {
  const auto before = precedence(program);
  std::vector<std::size_t> attends, transfers;
  for (std::size_t step = 0; step < program.steps.size(); ++step) {
    const Operation& operation = program.steps[step].operation;
    if (std::holds_alternative<Transfer>(operation)) transfers.push_back(step);
    if (std::holds_alternative<Attend>(operation) ||
        std::holds_alternative<AttendBackward>(operation)) {
      attends.push_back(step);
    }
  }
  int hidden = 0;
  for (std::size_t i = 0; i + 1 < attends.size(); ++i) {
    const std::size_t a = attends[i];
    hidden += std::ranges::any_of(transfers,
                                  [&](std::size_t t) { return !before[a][t] && !before[t][a]; })
                  ? 1
                  : 0;
  }
  return {hidden, static_cast<int>(attends.size()) - 1};
}

TEST(Overlap, EveryAttentionStepButTheLastHasATransferBesideIt) {
  const Layout layout(LayoutKind::contiguous, 80, 1, 8);
  for (const char* scheme : {"ring", "burst", "double_ring(backward=ring)", "ring_self_attention",
                             "group_cast", "balanced_ring", "all_gather"}) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      SchemeInputs inputs{Mask::causal(80), layout, {4, 4, 8, 8, DType::float32}, direction};
      if (std::string(scheme) != "balanced_ring") inputs.masks = Mask::full(80);
      inputs.scheme = parse_scheme(scheme);
      const ProgramGenerator generate = prepare(inputs);
      for (int rank = 0; rank < 8; ++rank) {
        const auto [hidden, all] = hidden_and_all(generate(rank));
        EXPECT_EQ(hidden, all) << scheme << " " << name(direction) << " rank " << rank;
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
