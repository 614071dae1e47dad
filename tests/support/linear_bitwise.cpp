// The properties of linear_contract.h that hold bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/linear_contract.h"

namespace longhaul::test {

using attention::Decay;
using attention::StateRule;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The tensors that have a row a token, their width, of a case's result.
struct Tokenwise {
  const char* name;
  const std::vector<float>* values;
  std::int64_t width;
};
std::vector<Tokenwise> tokenwise(const LinearCase& c, const LinearResult& r) {
  const std::int64_t keys = c.shape.key_heads * c.shape.dim,
                     values = c.shape.heads * c.shape.value_dim;
  std::vector<Tokenwise> all{
      {"out", &r.out, values}, {"dq", &r.dq, keys}, {"dk", &r.dk, keys}, {"dv", &r.dv, values}};
  if (!r.dbeta.empty()) all.push_back({"dbeta", &r.dbeta, c.shape.heads});
  if (c.recurrence.decay == Decay::scalar)
    all.push_back({"dlog_decay", &r.dlog_decay, c.shape.heads});
  if (c.recurrence.decay == Decay::vector)
    all.push_back({"dlog_decay", &r.dlog_decay, c.shape.heads * c.shape.dim});
  return all;
}

bool same_bits(const float* a, const float* b, std::int64_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}

/// Rows [begin, end) of every tensor of `all` are those of `part`, bit for bit.
void expect_rows(const LinearCase& c, const LinearResult& all, std::int64_t begin, std::int64_t end,
                 const LinearResult& part, const std::string& what) {
  const auto whole = tokenwise(c, all), own = tokenwise(c, part);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_TRUE(same_bits(whole[i].values->data() + begin * whole[i].width, own[i].values->data(),
                          (end - begin) * whole[i].width))
        << what << ": " << whole[i].name << " of rows " << begin << " to " << end;
  }
}

LinearCase problem(const std::string& kind, std::int64_t rows) {
  LinearCase c = linear_case(kind, {rows, 4, 2, 24, 20});
  c.fill(31);
  return c;
}

/// Another value for everything that token `row` has.
void change(LinearCase& c, std::int64_t row) {
  const auto put = [&](std::vector<float>& values, std::int64_t width, float by) {
    for (std::int64_t i = row * width; i < (row + 1) * width; ++i)
      values[static_cast<std::size_t>(i)] *= by;
  };
  put(c.q, c.shape.key_heads * c.shape.dim, -3);
  put(c.k, c.shape.key_heads * c.shape.dim, -0.5f);
  put(c.v, c.shape.heads * c.shape.value_dim, 7);
  put(c.dout, c.shape.heads * c.shape.value_dim, -2);
  if (!c.beta.empty()) put(c.beta, c.shape.heads, 0.3f);
  if (c.recurrence.decay == Decay::scalar) put(c.log_decay, c.shape.heads, 50);
  if (c.recurrence.decay == Decay::vector) put(c.log_decay, c.shape.heads * c.shape.dim, 50);
}

/// The run cut at `cuts`, states and their gradients passed from part to part.
LinearResult in_parts(const LinearCase& c, const std::vector<std::int64_t>& cuts,
                      const LinearOptions& options) {
  std::vector<std::int64_t> borders{0};
  borders.insert(borders.end(), cuts.begin(), cuts.end());
  borders.push_back(c.shape.rows);
  std::vector<LinearCase> parts;
  for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
    parts.push_back(c.rows(borders[i], borders[i + 1]));
    parts[i].state_in = i == 0 ? c.state_in : run_linear(parts[i - 1], options).state_out;
  }
  std::vector<LinearResult> results(parts.size());
  for (std::size_t i = parts.size(); i-- > 0;) {
    parts[i].dstate_out = i + 1 == parts.size() ? c.dstate_out : results[i + 1].dstate_in;
    results[i] = run_linear(parts[i], options);
  }
  LinearResult joined;
  const auto append = [](std::vector<float>& to, const std::vector<float>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  for (const LinearResult& r : results) {
    append(joined.out, r.out);
    append(joined.dq, r.dq);
    append(joined.dk, r.dk);
    append(joined.dv, r.dv);
    append(joined.dbeta, r.dbeta);
    append(joined.dlog_decay, r.dlog_decay);
  }
  if (c.recurrence.decay == Decay::head) {
    joined.dlog_decay.assign(c.log_decay.size(), 0);
    for (const LinearResult& r : results) {
      for (std::size_t i = 0; i < r.dlog_decay.size(); ++i) joined.dlog_decay[i] += r.dlog_decay[i];
    }
  }
  joined.state_out = results.back().state_out;
  joined.dstate_in = results.front().dstate_in;
  return joined;
}

}  // namespace

void expect_documents_as_alone(const std::string& kind, const LinearOptions& options) {
  LinearCase c = problem(kind, 37 + 51 + 1 + 64 + 40);
  const std::vector<std::int64_t> borders{0, 37, 88, 89, 153, c.shape.rows};
  c.starts.assign(borders.begin(), borders.end() - 1);
  const LinearResult all = run_linear(c, options);
  expect_matches_reference(c, all, kind);
  for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
    LinearCase alone = c.rows(borders[i], borders[i + 1]);
    expect_rows(c, all, borders[i], borders[i + 1], run_linear(alone, options), kind);
    alone.starts.clear();  // no state enters
    expect_rows(c, all, borders[i], borders[i + 1], run_linear(alone, options), kind);
  }
  // Of the documents that go on from before and to after the run.
  c.starts.erase(c.starts.begin());
  c.fill_states(4);
  const LinearResult inside = run_linear(c, options);
  expect_matches_reference(c, inside, kind + " with states");
  expect_rows(c, inside, 37, 153, run_linear(c.rows(37, 153), options), kind);
  for (const float x : run_linear(c.rows(37, 153), options).dstate_in) EXPECT_EQ(x, 0) << kind;
}

void expect_nan_stays_in_document(const std::string& kind, const LinearOptions& options) {
  LinearCase c = problem(kind, 150);
  c.starts = {0, 30, 110};
  const LinearResult clean = run_linear(c, options);
  const auto spoil = [&](std::vector<float>& values, std::int64_t width) {
    std::fill(values.begin() + 30 * width, values.begin() + 110 * width, kNan);
  };
  spoil(c.q, c.shape.key_heads * c.shape.dim);
  spoil(c.k, c.shape.key_heads * c.shape.dim);
  spoil(c.v, c.shape.heads * c.shape.value_dim);
  spoil(c.dout, c.shape.heads * c.shape.value_dim);
  if (!c.beta.empty()) spoil(c.beta, c.shape.heads);
  if (c.recurrence.decay == Decay::scalar) spoil(c.log_decay, c.shape.heads);
  if (c.recurrence.decay == Decay::vector) spoil(c.log_decay, c.shape.heads * c.shape.dim);
  const LinearResult got = run_linear(c, options);
  expect_rows(c, got, 0, 30, clean, kind);
  EXPECT_TRUE(std::isnan(got.out[static_cast<std::size_t>(40 * c.shape.heads * 20)])) << kind;
  if (c.recurrence.decay == Decay::scalar || c.recurrence.decay == Decay::vector) {
    const auto width = static_cast<std::int64_t>(got.dlog_decay.size()) / c.shape.rows;
    for (std::int64_t i = 0; i < width; ++i)  // it spans nothing, not even its own NaN
      EXPECT_EQ(got.dlog_decay[static_cast<std::size_t>(30 * width + i)], 0) << kind;
  }
  LinearResult tail = clean;
  const auto shift = [&](std::vector<float>& values, std::int64_t rows) {
    const auto width = static_cast<std::ptrdiff_t>(values.size()) / rows;
    values.erase(values.begin(), values.begin() + 110 * width);
  };
  for (auto* values : {&tail.out, &tail.dq, &tail.dk, &tail.dv, &tail.dbeta}) shift(*values, 150);
  if (c.recurrence.decay != Decay::head) shift(tail.dlog_decay, 150);
  expect_rows(c, got, 110, 150, tail, kind);
  EXPECT_TRUE(same_bits(got.state_out.data(), clean.state_out.data(),
                        static_cast<std::int64_t>(clean.state_out.size())))
      << kind;
}

void expect_no_gate_gradient_at_starts(const std::string& kind, const LinearOptions& options) {
  LinearCase c = problem(kind, 150);
  c.starts = {0, 30, 94, 110};
  const LinearResult got = run_linear(c, options);
  const auto width = static_cast<std::int64_t>(got.dlog_decay.size()) / c.shape.rows;
  for (const std::int64_t start : c.starts) {
    for (std::int64_t i = 0; i < width; ++i)
      EXPECT_EQ(got.dlog_decay[static_cast<std::size_t>(start * width + i)], 0) << kind;
  }
  EXPECT_NE(got.dlog_decay[static_cast<std::size_t>(31 * width)], 0) << kind;
}

void expect_nothing_later_shows(const std::string& kind, const LinearOptions& options,
                                std::int64_t step) {
  const LinearCase c = problem(kind, 130);
  const LinearResult before = run_linear(c, options);
  const std::int64_t width = c.shape.heads * c.shape.value_dim;
  for (std::int64_t row = 0; row < 130; row += step) {
    LinearCase other = c;
    change(other, row);
    const LinearResult after = run_linear(other, options);
    ASSERT_TRUE(same_bits(before.out.data(), after.out.data(), row * width))
        << kind << ", token " << row;
    ASSERT_FALSE(same_bits(before.out.data() + row * width, after.out.data() + row * width, width))
        << kind << ", token " << row;
    // Under the sum rule nothing earlier shows in the gradients of what a token writes.
    if (c.recurrence.rule == StateRule::delta || c.recurrence.decay == Decay::head) continue;
    const std::int64_t later = row + 1, keys = c.shape.key_heads * c.shape.dim;
    ASSERT_TRUE(same_bits(before.dv.data() + later * width, after.dv.data() + later * width,
                          (130 - later) * width))
        << kind << ", token " << row;
    ASSERT_TRUE(same_bits(before.dk.data() + later * keys, after.dk.data() + later * keys,
                          (130 - later) * keys))
        << kind << ", token " << row;
  }
}

void expect_later_nan_does_not_show(const std::string& kind, const LinearOptions& options) {
  const LinearCase c = problem(kind, 130);
  const LinearResult before = run_linear(c, options);
  const std::int64_t width = c.shape.heads * c.shape.value_dim;
  for (const std::int64_t row : {0, 1, 5, 6, 15, 16, 17, 63, 64, 65, 70, 129}) {
    LinearCase other = c;
    for (std::int64_t i = row * width; i < 130 * width; ++i)
      other.v[static_cast<std::size_t>(i)] = kNan;
    for (std::int64_t i = row * c.shape.key_heads * 24; i < 130 * c.shape.key_heads * 24; ++i)
      other.k[static_cast<std::size_t>(i)] = kNan;
    const LinearResult after = run_linear(other, options);
    ASSERT_TRUE(same_bits(before.out.data(), after.out.data(), row * width))
        << kind << ", token " << row;
    if (c.recurrence.rule == StateRule::delta) continue;
    other = c;
    const std::int64_t keys = c.shape.key_heads * 24;
    std::fill_n(other.q.begin(), row * keys, kNan);
    std::fill_n(other.dout.begin(), row * width, kNan);
    const LinearResult earlier = run_linear(other, options);
    ASSERT_TRUE(same_bits(before.dv.data() + row * width, earlier.dv.data() + row * width,
                          (130 - row) * width))
        << kind << ", before token " << row;
    ASSERT_TRUE(same_bits(before.dk.data() + row * keys, earlier.dk.data() + row * keys,
                          (130 - row) * keys))
        << kind << ", before token " << row;
  }
}

void expect_cuts_on_grid_bitwise(const std::string& kind, const LinearOptions& options) {
  LinearCase c = problem(kind, 64 * 5 + 9);
  c.fill_states(8);
  LinearResult whole = run_linear(c, options), parts = in_parts(c, {64, 192, 320}, options);
  if (c.recurrence.decay == Decay::head) parts.dlog_decay = whole.dlog_decay;  // a sum over tokens
  EXPECT_TRUE(whole == parts) << kind;
  // The grid begins where a document does.
  c.starts = {0, 30, 130};
  whole = run_linear(c, options);
  parts = in_parts(c, {94, 130, 194}, options);
  if (c.recurrence.decay == Decay::head) parts.dlog_decay = whole.dlog_decay;
  EXPECT_TRUE(whole == parts) << kind << ", documents";
}

void expect_cuts_anywhere(const std::string& kind, const LinearOptions& options) {
  LinearCase c = problem(kind, 200);
  c.fill_states(8);
  expect_matches_reference(c, in_parts(c, {1, 2, 50, 50, 51, 147}, options), kind);
  c.starts = {30, 52};
  expect_matches_reference(c, in_parts(c, {1, 50, 52, 147}, options), kind + ", documents");
}

}  // namespace longhaul::test
