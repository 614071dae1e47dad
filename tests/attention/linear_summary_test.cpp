// A run as the map of the state that enters it: summaries, folds, and what they conserve.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/expect_error.h"
#include "tests/support/linear_contract.h"

namespace longhaul::attention {
namespace {

using test::fold_run;
using test::Gates;
using test::linear_case;
using test::LinearCase;
using test::LinearResult;
using test::LinearSummary;
using test::relative_error;
using test::run_linear;
using test::run_linear_reference;
using test::summarize;
using test::summarize_backward;

LinearCase problem(const char* kind, std::int64_t rows, Gates gates = Gates::slow) {
  LinearCase c = linear_case(kind, {rows, 4, 2, 24, 40});
  c.fill(17, gates);
  c.fill_states(18);
  return c;
}

double inner(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

TEST(LinearSummary, KeepsTheContract) {
  for (const char* kind : recurrence_kinds()) {
    test::expect_folded_summaries(kind, {}, {0, 1, 64, 200});
    test::expect_summaries_of_documents(kind, {});
    test::expect_fold_by_rows(kind, {});
  }
  test::expect_summaries_of_whole_sequences({});
}

TEST(LinearSummary, TransitionsCompose) {
  // Of runs one after the other: T2 T1, from T1^T of the rows of T2.
  for (const char* kind : {"delta", "gated_delta", "kda"}) {
    const LinearCase c = problem(kind, 200);
    const LinearSummary first = summarize(c.rows(0, 90)), second = summarize(c.rows(90, 200)),
                        both = summarize(c);
    const std::vector<double> exact(both.transition.begin(), both.transition.end());
    EXPECT_LE(relative_error(fold_run(c.rows(0, 90), first.transition, true, second.transition, {}),
                             exact),
              2e-6)
        << kind;
  }
}

TEST(LinearSummary, ConservesInnerProducts) {
  // <D, S_out> - <dS_in, S_in> = <D, M> - <N, S_in>; over a call <dout, out> + <dS_f, S_f> = <dv,
  // v>
  // + <dS_0, S_0>.
  for (const char* kind : recurrence_kinds()) {
    const LinearCase c = problem(kind, 150, Gates::mild);
    const LinearResult r = run_linear(c);
    const LinearSummary forward = summarize(c), backward = summarize_backward(c);
    const double scale = std::abs(inner(c.dstate_out, r.state_out)) +
                         std::abs(inner(r.dstate_in, c.state_in)) + std::abs(inner(c.dout, r.out)) +
                         std::sqrt(inner(r.dv, r.dv) * inner(c.v, c.v));
    EXPECT_NEAR(inner(c.dstate_out, r.state_out) - inner(r.dstate_in, c.state_in),
                inner(c.dstate_out, forward.state) - inner(backward.state, c.state_in),
                2e-6 * scale)
        << kind;
    EXPECT_NEAR(inner(c.dout, r.out) + inner(c.dstate_out, r.state_out),
                inner(r.dv, c.v) + inner(r.dstate_in, c.state_in), 2e-6 * scale)
        << kind;
  }
}

TEST(LinearSummary, ThreadsAndStridesChangeNoBit) {
  for (const char* kind : recurrence_kinds()) {
    const LinearCase c = problem(kind, 150);
    const LinearSummary one = summarize(c), other = summarize(c, {.threads = 3, .strided = true});
    EXPECT_EQ(one.state, other.state) << kind;
    EXPECT_EQ(one.transition, other.transition) << kind;
    EXPECT_EQ(summarize_backward(c).state,
              summarize_backward(c, {.threads = 3, .strided = true}).state)
        << kind;
  }
}

TEST(LinearFold, InPlace) {
  const LinearCase c = problem("kda", 70);
  const LinearSummary run = summarize(c);
  const auto expected = fold_run(c, run.transition, false, c.state_in, run.state);
  const runtime::Stream stream = runtime::Stream::cpu("fold", 2);
  const LinearShape& s = c.shape;
  const auto tensor = [&](std::int64_t rows, const std::vector<float>& values) {
    runtime::Tensor made({rows, s.heads, s.dim}, runtime::DType::float32, stream);
    std::copy(values.begin(), values.end(), made.as<float>());
    return made;
  };
  const runtime::Tensor map = tensor(s.dim, run.transition), in = tensor(s.value_dim, c.state_in),
                        addend = tensor(s.value_dim, run.state),
                        in_too = tensor(s.value_dim, c.state_in);
  const StateMap how{c.recurrence, false, map.view(), {}, 70};
  fold(how, in, addend, in, stream);
  fold(how, in_too, addend, addend, stream);
  stream.synchronize(runtime::deadline_in(60));
  EXPECT_EQ(expected, std::vector<float>(in.as<float>(), in.as<float>() + in.elements()));
  EXPECT_EQ(expected, std::vector<float>(addend.as<float>(), addend.as<float>() + in.elements()));
}

TEST(LinearPlan, RefusesWhatHasNoMeaning) {
  const BlockPlace cpu{};
  const LinearShape shape{10, 4, 2, 8, 8};
  const auto refuse = [&](const char* message, const LinearShape& s, Recurrence how,
                          std::vector<std::int64_t> starts) {
    test::expect_error(runtime::ExitCode::config, message,
                       [&] { plan_linear(LinearPass::sweep, s, how, std::move(starts), cpu); });
  };
  refuse("5 heads are no multiple of 2 key heads", {10, 5, 2, 8, 8}, {}, {});
  refuse("a document begins at row 10 after -1 in a run of 10 rows", shape, {}, {10});
  refuse("a document begins at row 3 after 3", shape, {}, {3, 3});
  refuse("kind scalar is causal", shape, {.decay = Decay::scalar, .causal = false}, {});
  refuse("was given 1 documents", shape, {.causal = false}, {3});
  refuse("no kind of recurrence", shape, {.rule = StateRule::delta, .decay = Decay::head}, {});
  refuse("scale is nan", shape, {.scale = std::nanf("")}, {});
  test::expect_error(runtime::ExitCode::config,
                     "linear, decay, scalar, vector, delta, gated_delta, kda",
                     [] { recurrence_of_kind("gla"); });
}

TEST(LinearPlan, RefusesWhatGpusHaveNoKernelsFor) {
  const BlockPlace cuda{.device = {runtime::DeviceKind::cuda, 0}, .sizes_only = true};
  const LinearShape shape{10, 4, 2, 8, 8};
  for (const char* kind : {"delta", "gated_delta", "kda"}) {
    test::expect_error(runtime::ExitCode::config, "use [device] kind = cpu", [&] {
      plan_linear(LinearPass::sweep, shape, recurrence_of_kind(kind), {}, cuda);
    });
  }
#ifdef LONGHAUL_HAS_CUDA
  // Kept: a state a chunk, backward also its gradient; on any machine.
  const auto bytes = [&](LinearPass pass) {
    return plan_linear(pass, {130, 4, 2, 8, 6}, {}, {70}, cuda)->scratch_bytes();
  };
  const std::int64_t states = 3 * 4 * 6 * 8 * 4;  // chunks of 64, 6 and 60 rows
  EXPECT_EQ(bytes(LinearPass::summarize), 0);
  EXPECT_EQ(bytes(LinearPass::sweep), states);
  EXPECT_EQ(bytes(LinearPass::sweep_backward), 2 * states + 3 * 4 * 8);
#else
  test::expect_error(runtime::ExitCode::config, "use [device] kind = cpu",
                     [&] { plan_linear(LinearPass::sweep, shape, {}, {}, cuda); });
#endif
}

}  // namespace
}  // namespace longhaul::attention
