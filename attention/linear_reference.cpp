#include "attention/linear_reference.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

/// One head's walk over the tokens. S, dS are [E,D].
template <class T>
class HeadWalk {
 public:
  HeadWalk(const LinearReferenceInputs<T>& inputs, const Recurrence& recurrence, std::int64_t head,
           LinearReferenceResult<T>& result)
      : in_(inputs), how_(recurrence), head_(head), to_(result) {}

  void run() {
    State state = initial_state();
    std::vector<State> kept;  // before each 64th token
    for (std::int64_t t = 0; t < in_.rows; ++t) {
      if (t % kKeep == 0 && in_.backward()) kept.push_back(state);
      state = decayed(state, t);
      add_token(state, t);
      if (how_.causal) read(state, t);
    }
    for (std::int64_t t = 0; !how_.causal && t < in_.rows; ++t) read(state, t);
    store(state, to_.final_state);
    if (in_.backward()) how_.causal ? backward(kept) : backward_of_all(state);
  }

 private:
  using State = std::vector<T>;
  static constexpr std::int64_t kKeep = 64;

  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  std::int64_t key_head() const { return head_ * in_.key_heads / in_.heads; }
  std::size_t key(std::int64_t t) const { return at((t * in_.key_heads + key_head()) * in_.dim); }
  std::size_t value(std::int64_t t) const { return at((t * in_.heads + head_) * in_.value_dim); }
  std::size_t gate(std::int64_t t) const { return at(t * in_.heads + head_); }
  std::size_t decay_at(std::int64_t t, std::int64_t d) const {
    if (how_.decay == Decay::head) return at(head_);
    return how_.decay == Decay::scalar ? gate(t) : gate(t) * at(in_.dim) + at(d);
  }
  T decay(std::int64_t t, std::int64_t d) const {
    return how_.decay == Decay::none ? T(1) : std::exp(in_.log_decay[decay_at(t, d)]);
  }
  bool delta() const { return how_.rule == StateRule::delta; }
  bool starts(std::int64_t t) const {
    return std::binary_search(in_.starts.begin(), in_.starts.end(), t);
  }
  State zero() const { return State(at(in_.value_dim * in_.dim), T(0)); }
  std::size_t of_state(std::int64_t e, std::int64_t d) const {
    return at((e * in_.heads + head_) * in_.dim + d);
  }
  State load(std::span<const T> states) const {
    State state = zero();
    if (states.empty()) return state;
    for (std::int64_t e = 0; e < in_.value_dim; ++e) {
      for (std::int64_t d = 0; d < in_.dim; ++d)
        state[at(e * in_.dim + d)] = states[of_state(e, d)];
    }
    return state;
  }
  State initial_state() const { return load(in_.initial_state); }
  void store(const State& state, std::vector<T>& states) const {
    for (std::int64_t e = 0; e < in_.value_dim; ++e) {
      for (std::int64_t d = 0; d < in_.dim; ++d)
        states[of_state(e, d)] = state[at(e * in_.dim + d)];
    }
  }

  /// S' of token t.
  State decayed(const State& before, std::int64_t t) const {
    if (starts(t)) return zero();
    State state = before;
    for (std::int64_t d = 0; d < in_.dim; ++d) {
      const T by = decay(t, d);
      for (std::int64_t e = 0; e < in_.value_dim; ++e) state[at(e * in_.dim + d)] *= by;
    }
    return state;
  }
  /// v, or v - S' k under the delta rule: [E].
  std::vector<T> error(const State& decayed_state, std::int64_t t) const {
    std::vector<T> e(in_.v.begin() + static_cast<std::ptrdiff_t>(value(t)),
                     in_.v.begin() + static_cast<std::ptrdiff_t>(value(t)) + in_.value_dim);
    if (!delta()) return e;
    for (std::int64_t i = 0; i < in_.value_dim; ++i) {
      T sum = 0;
      for (std::int64_t d = 0; d < in_.dim; ++d)
        sum += decayed_state[at(i * in_.dim + d)] * in_.k[key(t) + at(d)];
      e[at(i)] -= sum;
    }
    return e;
  }
  /// S' -> S.
  void add_token(State& state, std::int64_t t) const {
    const std::vector<T> e = error(state, t);
    const T by = delta() ? in_.beta[gate(t)] : T(1);
    for (std::int64_t i = 0; i < in_.value_dim; ++i) {
      for (std::int64_t d = 0; d < in_.dim; ++d)
        state[at(i * in_.dim + d)] += by * e[at(i)] * in_.k[key(t) + at(d)];
    }
  }
  void read(const State& state, std::int64_t t) {
    for (std::int64_t e = 0; e < in_.value_dim; ++e) {
      T sum = 0;
      for (std::int64_t d = 0; d < in_.dim; ++d)
        sum += state[at(e * in_.dim + d)] * in_.q[key(t) + at(d)];
      to_.out[value(t) + at(e)] = static_cast<T>(how_.scale) * sum;
    }
  }
  /// dS += the read of token t; dq of it.
  void read_backward(const State& state, State& dstate, std::int64_t t) {
    const T scale = static_cast<T>(how_.scale);
    for (std::int64_t e = 0; e < in_.value_dim; ++e) {
      const T dout = scale * in_.dout[value(t) + at(e)];
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        dstate[at(e * in_.dim + d)] += dout * in_.q[key(t) + at(d)];
        to_.dq[key(t) + at(d)] += dout * state[at(e * in_.dim + d)];
      }
    }
  }
  /// dS of token t -> dS' of it; dk, dv, dbeta.
  void add_backward(const State& decayed_state, State& dstate, std::int64_t t) {
    const std::vector<T> e = error(decayed_state, t);
    const T by = delta() ? in_.beta[gate(t)] : T(1);
    T dbeta = 0;
    std::vector<T> dv(e.size());
    for (std::int64_t i = 0; i < in_.value_dim; ++i) {
      T du = 0;
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        du += dstate[at(i * in_.dim + d)] * in_.k[key(t) + at(d)];
        to_.dk[key(t) + at(d)] += dstate[at(i * in_.dim + d)] * by * e[at(i)];
      }
      dv[at(i)] = by * du;
      dbeta += e[at(i)] * du;
    }
    std::copy(dv.begin(), dv.end(), to_.dv.begin() + static_cast<std::ptrdiff_t>(value(t)));
    if (!delta()) return;
    to_.dbeta[gate(t)] = dbeta;
    for (std::int64_t i = 0; i < in_.value_dim; ++i) {
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        to_.dk[key(t) + at(d)] -= decayed_state[at(i * in_.dim + d)] * dv[at(i)];
        dstate[at(i * in_.dim + d)] -= dv[at(i)] * in_.k[key(t) + at(d)];
      }
    }
  }
  /// dS' of token t -> dS of the token before; dlog_decay.
  void decay_backward(const State& decayed_state, State& dstate, std::int64_t t) {
    if (starts(t)) {
      dstate = zero();
      return;
    }
    if (how_.decay == Decay::none) return;
    for (std::int64_t d = 0; d < in_.dim; ++d) {
      T da = 0;
      const T by = decay(t, d);
      for (std::int64_t e = 0; e < in_.value_dim; ++e) {
        da += decayed_state[at(e * in_.dim + d)] * dstate[at(e * in_.dim + d)];
        dstate[at(e * in_.dim + d)] *= by;
      }
      to_.dlog_decay[decay_at(t, d)] += da;
    }
  }

  void backward(const std::vector<State>& kept) {
    State dstate = load(in_.dfinal_state);
    for (std::int64_t part = static_cast<std::int64_t>(kept.size()) - 1; part >= 0; --part) {
      const std::int64_t begin = part * kKeep, end = std::min(in_.rows, begin + kKeep);
      std::vector<State> before, after;  // S' and S of each token
      for (std::int64_t t = begin; t < end; ++t) {
        before.push_back(decayed(t == begin ? kept[at(part)] : after.back(), t));
        after.push_back(before.back());
        add_token(after.back(), t);
      }
      for (std::int64_t t = end - 1; t >= begin; --t) {
        read_backward(after[at(t - begin)], dstate, t);
        add_backward(before[at(t - begin)], dstate, t);
        decay_backward(before[at(t - begin)], dstate, t);
      }
    }
    store(dstate, to_.dinitial_state);
  }
  /// Every token reads the sum over all of them.
  void backward_of_all(const State& state) {
    State dstate = load(in_.dfinal_state);
    for (std::int64_t t = 0; t < in_.rows; ++t) read_backward(state, dstate, t);
    for (std::int64_t t = 0; t < in_.rows; ++t) add_backward(state, dstate, t);
    store(dstate, to_.dinitial_state);
  }

  const LinearReferenceInputs<T>& in_;
  const Recurrence& how_;
  const std::int64_t head_;
  LinearReferenceResult<T>& to_;
};

}  // namespace

template <class T>
LinearReferenceResult<T> reference_linear(const LinearReferenceInputs<T>& in,
                                          const Recurrence& recurrence) {
  const auto check = [](const char* what, std::span<const T> values, std::int64_t expected) {
    LONGHAUL_CHECK(static_cast<std::int64_t>(values.size()) == expected, what, " has ",
                   values.size(), " elements; expected ", expected);
  };
  const std::int64_t keys = in.rows * in.key_heads * in.dim, gates = in.rows * in.heads,
                     state = in.value_dim * in.heads * in.dim;
  check("q", in.q, keys);
  check("k", in.k, keys);
  check("v", in.v, gates * in.value_dim);
  check("log_decay", in.log_decay,
        recurrence.decay == Decay::none     ? 0
        : recurrence.decay == Decay::head   ? in.heads
        : recurrence.decay == Decay::scalar ? gates
                                            : gates * in.dim);
  check("beta", in.beta, recurrence.rule == StateRule::delta ? gates : 0);
  if (!in.initial_state.empty()) check("initial_state", in.initial_state, state);
  if (in.backward()) check("dout", in.dout, gates * in.value_dim);
  if (!in.dfinal_state.empty()) check("dfinal_state", in.dfinal_state, state);

  LinearReferenceResult<T> result;
  const auto zeros = [](std::size_t count) { return std::vector<T>(count, T(0)); };
  result.out = zeros(in.v.size());
  result.final_state = zeros(static_cast<std::size_t>(state));
  if (in.backward()) {
    result.dq = zeros(in.q.size());
    result.dk = zeros(in.k.size());
    result.dv = zeros(in.v.size());
    result.dlog_decay = zeros(in.log_decay.size());
    result.dbeta = zeros(in.beta.size());
    result.dinitial_state = zeros(static_cast<std::size_t>(state));
  }
  for (std::int64_t head = 0; head < in.heads; ++head)
    HeadWalk<T>(in, recurrence, head, result).run();
  return result;
}

template LinearReferenceResult<double> reference_linear(const LinearReferenceInputs<double>&,
                                                        const Recurrence&);
template LinearReferenceResult<float> reference_linear(const LinearReferenceInputs<float>&,
                                                       const Recurrence&);

}  // namespace longhaul::attention
