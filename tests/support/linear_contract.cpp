#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/attention_case.h"
#include "tests/support/linear_contract.h"

namespace longhaul::test {

using attention::LinearShape;
using runtime::DType;

namespace {

std::string text(const LinearCase& c) {
  return runtime::concat(attention::kind_of(c.recurrence), " ", c.shape.rows, "x", c.shape.heads,
                         "/", c.shape.key_heads, " d=", c.shape.dim, " e=", c.shape.value_dim);
}

LinearCase run_of(const std::string& kind, std::int64_t rows, Gates gates = Gates::slow) {
  LinearCase c = linear_case(kind, {rows, 4, 2, 24, 40});
  c.fill(17, gates);
  c.fill_states(18);
  return c;
}

}  // namespace

void expect_any_rows(const std::string& kind, const LinearOptions& options,
                     const std::vector<std::int64_t>& lengths) {
  for (const std::int64_t rows : lengths) {
    LinearCase c = linear_case(kind, {rows, 4, 2, 16, 24});
    c.fill(static_cast<std::uint32_t>(rows));
    expect_matches_reference(c, run_linear(c, options), text(c));
    c.fill_states(3);
    expect_matches_reference(c, run_linear(c, options), text(c) + " with states");
  }
}

void expect_any_dims(const std::string& kind, const LinearOptions& options,
                     const std::vector<std::int64_t>& dims) {
  for (const std::int64_t dim : dims) {
    for (const std::int64_t value_dim : dims) {
      LinearCase c = linear_case(kind, {71, 2, 1, dim, value_dim});
      c.fill(9);
      c.fill_states(10);
      // A key of one dim and norm 1 erases the whole state, and of its gradient nothing is left
      // but what the terms round.
      for (float& x : c.k) x *= dim == 1 ? 0.5f : 1;
      expect_matches_reference(c, run_linear(c, options), text(c));
    }
  }
}

void expect_empty_sizes(const std::string& kind, const LinearOptions& options) {
  for (const LinearShape& shape : {LinearShape{0, 2, 1, 8, 5}, LinearShape{5, 0, 0, 8, 5},
                                   LinearShape{5, 2, 1, 0, 5}, LinearShape{5, 2, 1, 8, 0}}) {
    LinearCase c = linear_case(kind, shape);
    c.fill(2);
    c.fill_states(2);
    expect_matches_reference(c, run_linear(c, options), text(c));
  }
}

void expect_any_gates(const std::string& kind, const LinearOptions& options, std::int64_t rows) {
  for (const Gates gates : kAllGates) {
    LinearCase c = linear_case(kind, {rows, 3, 1, 32, 16});
    c.fill(5, gates);
    c.fill_states(6);
    expect_matches_reference(c, run_linear(c, options), text(c) + ", " + name(gates));
  }
}

void expect_constant_slopes(const std::string& kind, const LinearOptions& options) {
  LinearCase c = linear_case(kind, {32768, 1, 1, 8, 8});
  c.fill(5);
  for (float& a : c.log_decay) a = -1.5e-5f;
  for (float& b : c.beta) b *= 0.001f;
  expect_matches_reference(c, run_linear(c, options), text(c) + ", a small constant slope");
}

void expect_slope_gradients_added(const LinearOptions& options) {
  LinearCase c = run_of("decay", 150, Gates::slopes);
  c.starts = {3, 70};
  const LinearResult alone = run_linear(c, options);
  LinearOptions to = options;
  to.dslopes = {1, -2, 0, 300};
  const LinearResult added = run_linear(c, to);
  for (std::size_t head = 0; head < 4; ++head)
    EXPECT_EQ(added.dlog_decay[head], to.dslopes[head] + alone.dlog_decay[head]);
}

void expect_bfloat16(const std::string& kind, const LinearOptions& options) {
  LinearOptions strided = options;
  strided.strided = true;
  LinearCase c = linear_case(kind, {131, 4, 2, 40, 24, DType::bfloat16});
  c.fill(4);
  c.fill_states(5);
  expect_matches_reference(c, run_linear(c, strided), text(c) + " in bfloat16");
}

void expect_whole_sequence(const LinearOptions& options) {
  for (const std::int64_t rows : {1, 64, 257}) {
    LinearCase c = linear_case("linear", {rows, 4, 2, 16, 24});
    c.recurrence.causal = false;
    c.fill(7);
    expect_matches_reference(c, run_linear(c, options), text(c) + ", full");
    c.fill_states(8);
    expect_matches_reference(c, run_linear(c, options), text(c) + ", full with states");
  }
}

void expect_strides_change_no_bit(const std::string& kind, const LinearOptions& options) {
  LinearCase c = linear_case(kind, {200, 6, 2, 24, 40});
  c.starts = {70, 90};
  c.fill(12);
  c.fill_states(13);
  const auto one = run_linear(c, options);
  expect_matches_reference(c, one, text(c));
  EXPECT_TRUE(run_linear(c, options) == one) << text(c) << ", again";
  LinearOptions strided = options;
  strided.strided = true;
  strided.threads = 3;
  EXPECT_TRUE(run_linear(c, strided) == one) << text(c) << ", strided";
}

void expect_folded_summaries(const std::string& kind, const LinearOptions& options,
                             const std::vector<std::int64_t>& lengths) {
  for (const std::int64_t rows : lengths) {
    for (const Gates gates : {Gates::slow, Gates::third_strong, Gates::slopes}) {
      const LinearCase c = run_of(kind, rows, gates);
      const auto exact = run_linear_reference<double>(c);
      const LinearSummary forward = summarize(c, options),
                          backward = summarize_backward(c, options);
      const std::string what = runtime::concat(kind, ", ", rows, " rows, ", name(gates));
      EXPECT_LE(
          relative_error(fold_run(c, forward.transition, false, c.state_in, forward.state, options),
                         exact.final_state),
          2e-6)
          << what;
      EXPECT_LE(relative_error(
                    fold_run(c, forward.transition, true, c.dstate_out, backward.state, options),
                    exact.dinitial_state),
                2e-6)
          << what;
    }
  }
}

void expect_summaries_of_documents(const std::string& kind, const LinearOptions& options) {
  LinearCase c = run_of(kind, 200);
  c.starts = {50, 130};
  const LinearSummary forward = summarize(c, options), backward = summarize_backward(c, options);
  EXPECT_EQ(forward.state, summarize(c.rows(130, 200), options).state) << kind;
  EXPECT_EQ(forward.state, run_linear(c, options).state_out) << kind;  // the same sweep
  EXPECT_EQ(backward.state, summarize_backward(c.rows(0, 50), options).state) << kind;
  c.dstate_out.clear();
  EXPECT_EQ(backward.state, run_linear(c, options).dstate_in) << kind;
  c.starts = {0, 130};
  for (const float x : summarize_backward(c, options).state) EXPECT_EQ(x, 0) << kind;
}

void expect_summaries_of_whole_sequences(const LinearOptions& options) {
  LinearCase c = run_of("linear", 130);
  c.recurrence.causal = false;
  const auto exact = run_linear_reference<double>(c);
  EXPECT_LE(relative_error(fold_run(c, {}, false, c.state_in, summarize(c, options).state, options),
                           exact.final_state),
            2e-6);
  EXPECT_LE(relative_error(
                fold_run(c, {}, true, c.dstate_out, summarize_backward(c, options).state, options),
                exact.dinitial_state),
            2e-6);
}

void expect_fold_by_rows(const std::string& kind, const LinearOptions& options) {
  LinearOptions strided = options;
  strided.strided = true;
  strided.threads = 3;
  LinearCase c = run_of(kind, 70);
  c.shape.value_dim = 101;
  c.fill(3);
  c.fill_states(4);
  const LinearSummary run = summarize(c, options);
  for (const bool transposed : {false, true}) {
    const auto all = fold_run(c, run.transition, transposed, c.state_in, run.state, options);
    EXPECT_EQ(all, fold_run(c, run.transition, transposed, c.state_in, run.state, strided)) << kind;
    const std::int64_t row = c.shape.heads * c.shape.dim;
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 8}, {37, 101}}) {
      const auto part = [&, from = begin, to = end](const std::vector<float>& x) {
        return std::vector<float>(x.begin() + from * row, x.begin() + to * row);
      };
      EXPECT_EQ(part(all),
                fold_run(c, run.transition, transposed, part(c.state_in), part(run.state), options))
          << kind << ", rows from " << begin;
    }
  }
}

}  // namespace longhaul::test
