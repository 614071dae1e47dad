#include "tests/support/linear_case.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "tests/support/attention_case.h"
#include "tests/support/on_device.h"

namespace longhaul::test {

using attention::Decay;
using attention::LinearShape;
using attention::StateRule;
using runtime::BFloat16;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

namespace {

constexpr double kDeadlineSeconds = 120;

bool delta(const LinearCase& c) { return c.recurrence.rule == StateRule::delta; }
/// [rows, heads, dim] of the log decay.
struct GateShape {
  std::int64_t rows, heads, dim;
};
GateShape gate_shape(const LinearCase& c) {
  switch (c.recurrence.decay) {
    case Decay::none:
      return {0, 0, 0};
    case Decay::head:
      return {1, c.shape.heads, 1};
    case Decay::scalar:
      return {c.shape.rows, c.shape.heads, 1};
    default:
      return {c.shape.rows, c.shape.heads, c.shape.dim};
  }
}

float gate(Gates gates, std::int64_t head, std::int64_t heads, std::mt19937& random) {
  const auto uniform = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  switch (gates) {
    case Gates::slow:
      return uniform(-1.5e-4f, -0.5e-4f);
    case Gates::third_strong:
      if (uniform(0, 3) < 1) return uniform(-104, -40);
      [[fallthrough]];
    case Gates::mild:
      return uniform(-1, 0);
    case Gates::all_strong:
      return uniform(-12, -4);
    case Gates::bounded:
      return -5 / (1 + std::exp(-uniform(-6, 6)));
    default:
      return -std::exp2(-8 * static_cast<float>(head + 1) / static_cast<float>(heads));
  }
}

/// Elements [begin, end) of the middle dim of [outer, size, inner].
std::vector<float> part(const std::vector<float>& values, std::int64_t outer, std::int64_t size,
                        std::int64_t inner, std::int64_t begin, std::int64_t end) {
  std::vector<float> kept;
  if (values.empty()) return kept;
  for (std::int64_t i = 0; i < outer; ++i) {
    const auto from = values.begin() + (i * size + begin) * inner;
    kept.insert(kept.end(), from, from + (end - begin) * inner);
  }
  return kept;
}

}  // namespace

const char* name(Gates gates) {
  switch (gates) {
    case Gates::slow:
      return "slow gates";
    case Gates::mild:
      return "mild gates";
    case Gates::third_strong:
      return "a third strong";
    case Gates::all_strong:
      return "all strong";
    case Gates::bounded:
      return "bounded gates";
    default:
      return "slopes";
  }
}

LinearCase linear_case(const std::string& kind, const LinearShape& shape) {
  LinearCase c;
  c.recurrence = attention::recurrence_of_kind(kind);
  c.shape = shape;
  return c;
}

void LinearCase::fill(std::uint32_t seed, Gates gates, float beta_max) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const bool bf16 = shape.activation == DType::bfloat16;
  const auto rounded = [&](float x) { return bf16 ? static_cast<float>(BFloat16(x)) : x; };
  const auto make = [&](std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& x : values) x = rounded(normal(random));
    return values;
  };
  recurrence.scale =
      static_cast<float>(1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, shape.dim))));
  q = make(shape.rows * shape.key_heads * shape.dim);
  k = make(shape.rows * shape.key_heads * shape.dim);
  v = make(shape.rows * shape.heads * shape.value_dim);
  dout = make(shape.rows * shape.heads * shape.value_dim);
  const auto dim = static_cast<std::size_t>(shape.dim);
  for (std::size_t at = 0; delta(*this) && at + dim <= k.size() && dim > 0; at += dim) {
    double square = 0;
    for (std::size_t d = 0; d < dim; ++d) square += static_cast<double>(k[at + d] * k[at + d]);
    for (std::size_t d = 0; d < dim; ++d)
      k[at + d] = rounded(static_cast<float>(k[at + d] / std::sqrt(square)));
  }
  const GateShape size = gate_shape(*this);
  log_decay.clear();
  for (std::int64_t row = 0; row < size.rows; ++row) {
    for (std::int64_t head = 0; head < size.heads; ++head) {
      for (std::int64_t d = 0; d < size.dim; ++d)
        log_decay.push_back(gate(gates, head, size.heads, random));
    }
  }
  beta.clear();
  for (std::int64_t i = 0; delta(*this) && i < shape.rows * shape.heads; ++i)
    beta.push_back(std::uniform_real_distribution<float>(0, beta_max)(random));
}

void LinearCase::fill_states(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (std::vector<float>* state : {&state_in, &dstate_out}) {
    state->resize(static_cast<std::size_t>(shape.value_dim * shape.heads * shape.dim));
    for (float& x : *state) x = normal(random);
  }
}

LinearCase LinearCase::rows(std::int64_t begin, std::int64_t end) const {
  LinearCase c = *this;
  c.shape.rows = end - begin;
  c.state_in.clear();
  c.dstate_out.clear();
  c.starts.clear();
  for (const std::int64_t start : starts) {
    if (start >= begin && start < end) c.starts.push_back(start - begin);
  }
  const auto cut = [&](const std::vector<float>& values, std::int64_t width) {
    return part(values, 1, shape.rows, width, begin, end);
  };
  c.q = cut(q, shape.key_heads * shape.dim);
  c.k = cut(k, shape.key_heads * shape.dim);
  c.v = cut(v, shape.heads * shape.value_dim);
  c.dout = cut(dout, shape.heads * shape.value_dim);
  c.beta = cut(beta, shape.heads);
  if (recurrence.decay != Decay::head) {
    const GateShape gates = gate_shape(*this);
    c.log_decay = cut(log_decay, gates.heads * gates.dim);
  }
  return c;
}

LinearCase LinearCase::heads(std::int64_t begin, std::int64_t end) const {
  LinearCase c = *this;
  const std::int64_t group = shape.heads / shape.key_heads, first = begin * group,
                     last = end * group;
  c.shape.key_heads = end - begin;
  c.shape.heads = last - first;
  c.q = part(q, shape.rows, shape.key_heads, shape.dim, begin, end);
  c.k = part(k, shape.rows, shape.key_heads, shape.dim, begin, end);
  c.v = part(v, shape.rows, shape.heads, shape.value_dim, first, last);
  c.dout = part(dout, shape.rows, shape.heads, shape.value_dim, first, last);
  c.beta = part(beta, shape.rows, shape.heads, 1, first, last);
  const GateShape gates = gate_shape(*this);
  c.log_decay = part(log_decay, gates.rows, gates.heads, gates.dim, first, last);
  c.state_in = part(state_in, shape.value_dim, shape.heads, shape.dim, first, last);
  c.dstate_out = part(dstate_out, shape.value_dim, shape.heads, shape.dim, first, last);
  return c;
}

bool LinearResult::operator==(const LinearResult& other) const {
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  };
  return same(out, other.out) && same(state_out, other.state_out) && same(dq, other.dq) &&
         same(dk, other.dk) && same(dv, other.dv) && same(dlog_decay, other.dlog_decay) &&
         same(dbeta, other.dbeta) && same(dstate_in, other.dstate_in);
}

namespace {

LinearDevice device_of(const LinearOptions& options) {
  if (options.device != nullptr) return *options.device;
  return {Stream::cpu("linear", options.threads)};
}

/// The case's tensors on the device.
class Run {
 public:
  Run(const LinearCase& which, const LinearOptions& options)
      : device(device_of(options)),
        c(which),
        strided(options.strided),
        q(inputs(c.shape.key_heads, c.shape.dim, c.q)),
        k(inputs(c.shape.key_heads, c.shape.dim, c.k)),
        v(inputs(c.shape.heads, c.shape.value_dim, c.v)),
        dout(inputs(c.shape.heads, c.shape.value_dim, c.dout)),
        log_decay(gates()),
        beta(held(delta(c) ? c.shape.rows : 0, c.shape.heads, 1)),
        state_in(state()),
        dstate_out(state()) {
    log_decay.set(c.log_decay, device.stream);
    beta.set(c.beta, device.stream);
    if (!c.state_in.empty()) state_in.set(c.state_in, device.stream);
    if (!c.dstate_out.empty()) dstate_out.set(c.dstate_out, device.stream);
    before_ = all_inputs();
  }

  OnDevice held(std::int64_t rows, std::int64_t heads, std::int64_t dim,
                DType dtype = DType::float32) const {
    return OnDevice(rows, heads, dim, dtype, strided, device.stream);
  }
  OnDevice inputs(std::int64_t heads, std::int64_t dim, const std::vector<float>& values) const {
    OnDevice tensor = held(c.shape.rows, heads, dim, c.shape.activation);
    tensor.set(values, device.stream);
    return tensor;
  }
  OnDevice state() const { return held(c.shape.value_dim, c.shape.heads, c.shape.dim); }
  OnDevice gates() const {
    const GateShape size = gate_shape(c);
    return held(size.rows, size.heads, size.dim);
  }
  /// As the contract wants a gate's view; empty where there is none.
  TensorView gate_view(const OnDevice& tensor) const {
    if (c.recurrence.decay == Decay::none) return {};
    return c.recurrence.decay == Decay::vector ? tensor.view() : tensor.flat();
  }
  TensorView beta_view(const OnDevice& tensor) const {
    return delta(c) ? tensor.flat() : TensorView{};
  }

  /// In a summary q and dout, or v, may be missing.
  attention::LinearInputs linear_inputs(bool with_q = true, bool with_v = true) const {
    return {with_q ? q.view() : TensorView{}, k.view(), with_v ? v.view() : TensorView{},
            gate_view(log_decay), beta_view(beta)};
  }
  static TensorView given(const std::vector<float>& values, const OnDevice& tensor) {
    return values.empty() ? TensorView{} : tensor.view();
  }
  template <class Tensors>
  void operator()(attention::LinearPass pass, const Tensors& tensors) {
    if (device.stream.device().kind == runtime::DeviceKind::cpu)
      device.stream.poison_new_memory();  // what kernels read of scratch they have written
    // Kernels that run on the host read a plan's own table.
    plans_.push_back(
        device.plan(pass, c.shape, c.recurrence, c.starts, attention::place_of(device.stream)));
    run_once(plans_.back(), tensors, device.stream);
  }
  std::vector<float> get(const OnDevice& tensor) const { return tensor.get(device.stream); }
  void wait() const {
    device.stream.synchronize(runtime::deadline_in(kDeadlineSeconds));
    EXPECT_TRUE(all_inputs() == before_) << "a kernel wrote into its inputs";
  }

  const LinearDevice device;
  const LinearCase& c;
  const bool strided;
  OnDevice q, k, v, dout, log_decay, beta, state_in, dstate_out;

 private:
  std::vector<std::vector<std::byte>> all_inputs() const {
    std::vector<std::vector<std::byte>> all;
    for (const OnDevice* x : {&q, &k, &v, &dout, &log_decay, &beta, &state_in, &dstate_out})
      all.push_back(x->bytes(device.stream));
    return all;
  }
  std::vector<std::vector<std::byte>> before_;
  std::vector<std::shared_ptr<const attention::LinearPlan>> plans_;
};

std::vector<float> zeros_where_none(const LinearCase& c, const std::vector<float>& state) {
  if (!state.empty()) return state;
  return std::vector<float>(
      static_cast<std::size_t>(c.shape.value_dim * c.shape.heads * c.shape.dim), 0);
}

}  // namespace

LinearResult run_linear(const LinearCase& which, const LinearOptions& options) {
  LinearCase c = which;
  if (!c.recurrence.causal) {  // the whole sums enter
    c.state_in = fold_run(which, {}, false, zeros_where_none(which, which.state_in),
                          summarize(which, options).state, options);
    c.dstate_out = fold_run(which, {}, true, zeros_where_none(which, which.dstate_out),
                            summarize_backward(which, options).state, options);
  }
  Run run(c, options);
  const OnDevice out = run.held(c.shape.rows, c.shape.heads, c.shape.value_dim),
                 state_out = run.state();
  const OnDevice dq = run.held(c.shape.rows, c.shape.key_heads, c.shape.dim),
                 dk = run.held(c.shape.rows, c.shape.key_heads, c.shape.dim),
                 dv = run.held(c.shape.rows, c.shape.heads, c.shape.value_dim),
                 dstate_in = run.state();
  const OnDevice dlog_decay = run.gates();
  const OnDevice dbeta = run.held(delta(c) ? c.shape.rows : 0, c.shape.heads, 1);
  if (c.recurrence.decay == Decay::head) {
    dlog_decay.set(
        options.dslopes.empty() ? std::vector<float>(c.log_decay.size()) : options.dslopes,
        run.device.stream);
  }
  const bool gates_wanted = options.extras || c.recurrence.decay != Decay::head;
  const auto extra = [&](const OnDevice& tensor) {
    return options.extras ? tensor.view() : TensorView{};
  };
  const auto values = [&](bool wanted, const OnDevice& tensor) {
    return wanted ? run.get(tensor) : std::vector<float>();
  };
  run(attention::LinearPass::sweep,
      attention::SweepTensors{run.linear_inputs(), Run::given(c.state_in, run.state_in), out.view(),
                              extra(state_out)});
  run(attention::LinearPass::sweep_backward,
      attention::SweepBackwardTensors{
          run.linear_inputs(), run.dout.view(), Run::given(c.state_in, run.state_in),
          Run::given(c.dstate_out, run.dstate_out), dq.view(), dk.view(), dv.view(),
          gates_wanted ? run.gate_view(dlog_decay) : TensorView{}, run.beta_view(dbeta),
          extra(dstate_in)});
  run.wait();
  return {run.get(out),   values(options.extras, state_out),
          run.get(dq),    run.get(dk),
          run.get(dv),    values(gates_wanted, dlog_decay),
          run.get(dbeta), values(options.extras, dstate_in)};
}

LinearSummary summarize(const LinearCase& c, const LinearOptions& options) {
  Run run(c, options);
  const OnDevice state = run.state();
  const std::int64_t width = attention::transition_width(c.recurrence, c.shape.dim);
  const bool wanted = width > 0 && c.starts.empty();
  const OnDevice transition = run.held(
      wanted ? attention::transition_rows(c.recurrence, c.shape.dim) : 0, c.shape.heads, width);
  run(attention::LinearPass::summarize,
      attention::SummarizeTensors{run.linear_inputs(false, true),
                                  {},
                                  state.view(),
                                  wanted ? transition.view() : TensorView{}});
  run.wait();
  return {run.get(state), run.get(transition)};
}

LinearSummary summarize_backward(const LinearCase& c, const LinearOptions& options) {
  Run run(c, options);
  const OnDevice state = run.state();
  run(attention::LinearPass::summarize_backward,
      attention::SummarizeTensors{
          run.linear_inputs(true, false), run.dout.view(), state.view(), {}});
  run.wait();
  return {run.get(state), {}};
}

std::vector<float> fold_run(const LinearCase& c, const std::vector<float>& transition,
                            bool transposed, const std::vector<float>& in,
                            const std::vector<float>& addend, const LinearOptions& options) {
  const LinearDevice device = device_of(options);
  const std::int64_t heads = c.shape.heads, dim = c.shape.dim,
                     rows = static_cast<std::int64_t>(in.size()) /
                            std::max<std::int64_t>(1, heads * dim);
  const auto held = [&](std::int64_t n, std::int64_t width, const std::vector<float>& values) {
    OnDevice tensor(n, heads, width, DType::float32, options.strided, device.stream);
    if (!values.empty()) tensor.set(values, device.stream);
    return tensor;
  };
  const OnDevice from = held(rows, dim, in), plus = held(rows, dim, addend),
                 to = held(rows, dim, {});
  const std::int64_t width = attention::transition_width(c.recurrence, dim);
  const OnDevice map = held(attention::transition_rows(c.recurrence, dim), width, transition);
  const bool constant = c.recurrence.decay == Decay::head;
  const OnDevice slopes = held(constant ? 1 : 0, 1, constant ? c.log_decay : std::vector<float>{});
  attention::StateMap how{c.recurrence, transposed, {}, {}, c.shape.rows};
  if (width > 0) how.transition = map.view();
  if (constant) how.slopes = slopes.flat();
  device.fold(how, from.view(), addend.empty() ? TensorView{} : plus.view(), to.view(),
              device.stream);
  return to.get(device.stream);
}

template <class T>
attention::LinearReferenceResult<T> run_linear_reference(const LinearCase& c) {
  const auto as = [](const std::vector<float>& x) { return std::vector<T>(x.begin(), x.end()); };
  const std::vector<T> q = as(c.q), k = as(c.k), v = as(c.v), dout = as(c.dout),
                       log_decay = as(c.log_decay), beta = as(c.beta), state_in = as(c.state_in),
                       dstate_out = as(c.dstate_out);
  attention::LinearReferenceInputs<T> in{c.shape.rows, c.shape.heads, c.shape.key_heads,
                                         c.shape.dim, c.shape.value_dim};
  in.q = q;
  in.k = k;
  in.v = v;
  in.log_decay = log_decay;
  in.beta = beta;
  in.starts = c.starts;
  in.initial_state = state_in;
  in.dout = dout;
  in.dfinal_state = dstate_out;
  return attention::reference_linear<T>(in, c.recurrence);
}
template attention::LinearReferenceResult<double> run_linear_reference(const LinearCase&);
template attention::LinearReferenceResult<float> run_linear_reference(const LinearCase&);

void expect_matches_reference(const LinearCase& which, const LinearResult& got,
                              const std::string& what) {
  const auto exact = run_linear_reference<double>(which);
  const auto check = [&](const char* tensor, const std::vector<float>& a,
                         const std::vector<double>& b, double bound) {
    ASSERT_EQ(a.size(), b.size()) << what << ": " << tensor;
    EXPECT_LE(relative_error(a, b), bound) << what << ": " << tensor;  // false for NaN
  };
  check("out", got.out, exact.out, 2e-6);
  check("state_out", got.state_out, exact.final_state, 2e-6);
  if (which.dout.empty() && which.dstate_out.empty()) return;
  check("dq", got.dq, exact.dq, 2e-6);
  check("dk", got.dk, exact.dk, 2e-6);
  check("dv", got.dv, exact.dv, 2e-6);
  check("dbeta", got.dbeta, exact.dbeta, 2e-6);
  check("dlog_decay", got.dlog_decay, exact.dlog_decay, 1e-5);
  check("dstate_in", got.dstate_in, exact.dinitial_state, 2e-6);
}

}  // namespace longhaul::test
