#include "parallel/schemes/linear_runs.h"

#include <algorithm>
#include <memory>

#include "runtime/error.h"

namespace longhaul::parallel {

using attention::Mask;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// Where documents begin: tokens, rising. Throws Error(config) for another mask.
std::vector<std::int64_t> document_starts(const SchemeInputs& inputs) {
  const LinearCall& call = *inputs.shapes.linear;
  const std::int64_t tokens = inputs.masks.tokens(), seq_len = inputs.layout.seq_len();
  const auto refuse = [](const char* expected) {
    fail(ExitCode::config, "a recurrence cannot follow this mask; expected ", expected,
         " for all heads");
  };
  if (tokens == 0) return {};
  if (!inputs.masks.shared()) refuse("one mask");
  const Mask& mask = inputs.masks.of(0);
  if (!call.recurrence.causal) {
    if (!(mask == Mask::full(seq_len).repeated(inputs.layout.batch())))
      refuse("all tokens of each sequence, of a recurrence that is not causal,");
    return {};
  }
  std::vector<std::int64_t> offsets = attention::independent_parts(inputs.masks);
  if (!(mask == Mask::documents(offsets))) refuse("all earlier tokens of a document (causal)");
  offsets.pop_back();
  if (call.initial_state)
    std::erase_if(offsets, [&](std::int64_t token) { return token % seq_len == 0; });
  return offsets;
}

}  // namespace

LinearRuns::LinearRuns(const SchemeInputs& inputs) {
  const LinearCall& call = *inputs.shapes.linear;
  const Layout& layout = inputs.layout;
  const std::int64_t seq_len = layout.seq_len();
  const std::vector<std::int64_t> starts = document_starts(inputs);
  const bool by_sequence = call.initial_state || call.final_state || !call.recurrence.causal;
  of_rank_.resize(static_cast<std::size_t>(layout.ranks()));
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    std::int64_t row = 0;
    for (const Run& whole : layout.runs(rank)) {
      if (whole.stride != 1 && whole.count > 1) {
        fail(ExitCode::config, "layout ", name(layout.kind()),
             " holds tokens that do not follow one another; linear layers need contiguous, zigzag, "
             "document_zigzag or balanced");
      }
      const std::int64_t whole_end = whole.first + whole.count;
      for (std::int64_t first = whole.first; first < whole_end;) {
        const std::int64_t end =
            by_sequence ? std::min(whole_end, (first / seq_len + 1) * seq_len) : whole_end;
        TokenRun& run = runs_.emplace_back();
        run.rank = rank;
        run.first = first;
        run.row_begin = row;
        run.row_end = row += end - first;
        for (auto at = std::ranges::lower_bound(starts, first); at != starts.end() && *at < end;
             ++at)
          run.starts.push_back(*at - first);
        first = end;
      }
    }
  }
  std::ranges::sort(runs_, {}, &TokenRun::first);
  struct Counts {
    std::int64_t entering = 0, through = 0, beginning = 0, ending = 0;
  };
  std::vector<Counts> counts(of_rank_.size());
  for (int number = 0; number < static_cast<int>(runs_.size()); ++number) {
    TokenRun& run = runs_[static_cast<std::size_t>(number)];
    const auto rank = static_cast<std::size_t>(run.rank);
    Counts& count = counts[rank];
    run.ordinal = static_cast<int>(of_rank_[rank].size());
    const std::int64_t end = run.first + run.tokens();
    const bool begins = run.first % seq_len == 0, ends = end % seq_len == 0;
    if (call.recurrence.causal) {
      const auto starts_at = [&](std::int64_t token) {
        return std::ranges::binary_search(starts, token);
      };
      run.before = !begins && !starts_at(run.first);
      run.behind = !ends && !starts_at(end);
      if (run.before) run.entering = count.entering++;
      const bool initial = begins && call.initial_state, final = ends && call.final_state;
      if (initial) run.beginning = count.beginning++;
      if (final) run.ending = count.ending++;
      if (run.starts.empty() && (run.before || initial) && (run.behind || final) &&
          (run.before || run.behind))
        run.through = count.through++;
      if (run.before && (chains_.empty() || chains_.back().back() != number - 1 ||
                         !runs_[static_cast<std::size_t>(number) - 1].starts.empty()))
        chains_.push_back({number - 1});
      if (run.before) chains_.back().push_back(number);
    } else {
      run.before = !begins;
      run.behind = !ends;
      const std::int64_t sequence = run.first / seq_len;
      const bool again =
          !of_rank_[rank].empty() && (*this)[of_rank_[rank].back()].first / seq_len == sequence;
      run.entering = again ? count.entering - 1 : count.entering++;
      if (begins) {
        chains_.push_back({number});
      } else {
        chains_.back().push_back(number);
      }
    }
    of_rank_[rank].push_back(number);
  }
}

LinearProgram::LinearProgram(const SchemeInputs& inputs, const LinearRuns& runs, int rank,
                             int channels, bool with_transitions)
    : inputs_(inputs),
      runs_(runs),
      rank_(rank),
      backward_(inputs.direction == Direction::backward),
      call_(*inputs.shapes.linear),
      records_(inputs.shapes),
      heads_(inputs.shapes.heads),
      key_heads_(inputs.shapes.kv_heads),
      builder_(rank, channels) {
  const auto tokens = [&](const char* name, const Record& record, Role role) {
    return builder_.add_slot(role == Role::input ? input_slot(name, record, inputs, rank)
                                                 : output_slot(name, record, inputs, rank));
  };
  const auto one_row = [&](const char* name, const Record& record, Role role) {
    return builder_.add_slot({name, record, 1, heads_, role, {{0, 1}}, 0});
  };
  std::vector<Run> entering, through, beginning, ending;
  const std::int64_t seq_len = inputs.layout.seq_len();
  for (const int number : runs.of_rank(rank)) {
    const TokenRun& run = runs[number];
    const std::int64_t enters = call_.recurrence.causal ? run.first : run.first / seq_len * seq_len;
    if (run.entering == std::ssize(entering)) entering.push_back({enters, 0});
    if (run.through >= 0) through.push_back({run.first, run.tokens()});
    if (run.beginning >= 0) beginning.push_back({run.first, 0});
    if (run.ending >= 0) ending.push_back({run.first + run.tokens(), 0});
  }
  const auto states = [&](const char* name, const Record& record, Role role, std::int64_t rows,
                          std::vector<Run> of) {
    const std::int64_t count = std::ssize(of);
    return builder_.add_slot({name, record, rows * count, heads_, role, std::move(of), 0});
  };
  const std::int64_t e = records_.state_rows;
  qk_ = tokens("qk", records_.qk, Role::input);
  v_ = tokens("v", records_.v, Role::input);
  if (records_.has_gate()) gate_ = tokens("gate", records_.gate, Role::input);
  if (records_.has_slopes()) slopes_ = one_row("slopes", records_.slopes, Role::input);
  if (call_.initial_state)
    initial_ = states("initial_state", records_.initial_state, Role::input, e, beginning);
  const Role kept = backward_ || call_.states_given ? Role::input : Role::output;
  states_ = states("states", records_.state, kept, e, entering);
  if (with_transitions && records_.has_transition())
    transitions_ =
        states("transitions", records_.transition, kept, records_.transition_rows, through);
  if (!backward_) {
    out_ = tokens("out", records_.out, Role::output);
    if (call_.final_state)
      final_ = states("final_state", records_.final_state, Role::output, e, ending);
    return;
  }
  dout_ = tokens("dout", records_.dout, Role::input);
  if (call_.final_state)
    final_ = states("dfinal_state", records_.dfinal_state, Role::input, e, ending);
  dqk_ = tokens("dqk", records_.dqk, Role::output);
  dv_ = tokens("dv", records_.dv, Role::output);
  if (records_.has_gate()) dgate_ = tokens("dgate", records_.dgate, Role::output);
  if (call_.slopes_gradient) dslopes_ = one_row("dslopes", records_.dslopes, Role::output);
  if (call_.initial_state)
    dinitial_ = states("dinitial_state", records_.dinitial_state, Role::output, e, beginning);
}

std::vector<RunChain> LinearProgram::ordered_chains() const {
  std::vector<RunChain> chains = runs_.chains();
  if (!backward_) return chains;
  std::ranges::reverse(chains);
  for (RunChain& chain : chains) std::ranges::reverse(chain);
  return chains;
}

bool LinearProgram::enters(const RunChain& ordered) const {
  const TokenRun& first = runs_[ordered.front()];
  return first.starts.empty() && (backward_ ? first.ending : first.beginning) >= 0;
}

View LinearProgram::rows_of_run(const View& all, const TokenRun& run, int begin, int end) const {
  return heads_of(rows_of(all, run.row_begin, run.row_end), begin, end);
}

View LinearProgram::state_of(const View& all, std::int64_t number) const {
  return rows_of(all, number * state_rows(), (number + 1) * state_rows());
}

LinearRun LinearProgram::run_of(const TokenRun& run, int begin, int end) const {
  const int group = heads_ / key_heads_;
  const auto of_values = [&](const View& all) {
    return rows_of_run(all, run, begin * group, end * group);
  };
  LinearRun views{
      rows_of_run(qk_, run, begin, end), of_values(v_), {}, {}, run.starts, call_.recurrence};
  if (gate_) views.gate = of_values(*gate_);
  views.slopes = heads_of(slopes_, begin * group, end * group);
  return views;
}

void LinearProgram::summarize(int number, const View& state) {
  const TokenRun& run = runs_[number];
  summarized_.insert(number);
  std::optional<View> dout;
  if (backward_) dout = rows_of_run(dout_, run, 0, heads_);
  builder_.summarize(run_of(run, 0, key_heads_), dout, state,
                     backward_ ? std::nullopt : transition(number));
}

std::optional<View> LinearProgram::transition(int number) const {
  const TokenRun& run = runs_[number];
  if (!transitions_ || run.through < 0) return std::nullopt;
  return rows_of(*transitions_, run.through * records_.transition_rows,
                 (run.through + 1) * records_.transition_rows);
}

FoldLink LinearProgram::link(int number, const View& state) const {
  const TokenRun& run = runs_[number];
  return {state, heads_of(transition(number), state.head_begin, state.head_end), run.tokens(),
          !run.starts.empty()};
}

void LinearProgram::fold(std::vector<FoldLink> links, const std::optional<View>& in,
                         const View& out, const std::optional<View>& out_transition) {
  builder_.fold(std::move(links), in, out,
                {call_.recurrence, backward_, heads_of(slopes_, out.head_begin, out.head_end)},
                out_transition);
}

std::optional<View> LinearProgram::outside(int number) const {
  const TokenRun& run = runs_[number];
  const std::int64_t which = backward_ ? run.ending : run.beginning;
  const std::optional<View>& all = backward_ ? final_ : initial_;
  if (which < 0) return std::nullopt;
  return state_of(*all, which);
}

View LinearProgram::incoming(int number) {
  const TokenRun& run = runs_[number];
  if (!backward_) return state_of(states_, run.entering);
  // Gradients of states that leave a run: a scratch slot of as many as the rank has runs.
  if (!incoming_) {
    incoming_ = builder_.scratch("dstates", records_.state,
                                 std::ssize(runs_.of_rank(rank_)) * state_rows(), heads_);
  }
  return state_of(*incoming_, call_.recurrence.causal ? run.ordinal : run.entering);
}

void LinearProgram::sweep(int number, const std::optional<View>& out) {
  sweep(number, 0, key_heads_, out);
}

void LinearProgram::sweep(int number, int begin, int end, const std::optional<View>& out) {
  const TokenRun& run = runs_[number];
  const int group = heads_ / key_heads_, first = begin * group, last = end * group;
  const auto some_heads = [&](const std::optional<View>& state) {
    return heads_of(state, first, last);
  };
  const LinearRun views = run_of(run, begin, end);
  // The state before the run: its chain's, or its sequence's initial one.
  std::optional<View> before, behind;
  if (run.entering >= 0) {
    before = state_of(states_, run.entering);
  } else if (run.beginning >= 0) {
    before = state_of(*initial_, run.beginning);
  }
  if (!backward_) {
    std::optional<View> leaves = some_heads(out);
    if (run.ending >= 0) {
      LONGHAUL_CHECK(!out, "a state leaves a run both ways");
      leaves = some_heads(state_of(*final_, run.ending));
    }
    builder_.sweep(views, some_heads(before), rows_of_run(out_, run, first, last), leaves);
    return;
  }
  if (run.ending >= 0) {
    behind = state_of(*final_, run.ending);
  } else if (run.behind || !call_.recurrence.causal) {
    behind = incoming(number);
  }
  RunGradients gradients{.dout = rows_of_run(dout_, run, first, last),
                         .state_in = some_heads(before),
                         .dstate_out = some_heads(behind),
                         .dqk = rows_of_run(dqk_, run, begin, end),
                         .dv = rows_of_run(dv_, run, first, last),
                         .dgate = {},
                         .dslopes = {},
                         .dslopes_mode = Mode::write,
                         .dstate_in = some_heads(out)};
  if (dgate_) gradients.dgate = rows_of_run(*dgate_, run, first, last);
  add_slopes(begin, end, gradients);
  if (run.beginning >= 0) {
    LONGHAUL_CHECK(!out, "a gradient leaves a run both ways");
    gradients.dstate_in = some_heads(state_of(*dinitial_, run.beginning));
  }
  builder_.sweep_backward(views, gradients);
}

void LinearProgram::add_slopes(int begin, int end, RunGradients& gradients) {
  if (!dslopes_) return;
  const int group = heads_ / key_heads_;
  gradients.dslopes = heads_of(*dslopes_, begin * group, end * group);
  gradients.dslopes_mode = begin < slopes_written_ ? Mode::add : Mode::write;
  slopes_written_ = std::max(slopes_written_, end);
}

Program LinearProgram::finish() && {
  // The transition of a run that nobody behind it folds is still wanted by the gradient of a final
  // state.
  for (const int number : runs_.of_rank(rank_)) {
    if (backward_ || !transition(number) || summarized_.contains(number)) continue;
    summarize(number, builder_.scratch(runtime::concat("last", number), records_.state,
                                       state_rows(), heads_));
  }
  if (dslopes_ && runs_.of_rank(rank_).empty()) {  // zero, of no rows
    const TokenRun none;
    RunGradients gradients{
        rows_of(dout_, 0, 0), {}, {}, rows_of(dqk_, 0, 0), rows_of(dv_, 0, 0), {}, {}, {}, {}};
    add_slopes(0, key_heads_, gradients);
    builder_.sweep_backward(run_of(none, 0, key_heads_), gradients);
  }
  return std::move(builder_).finish();
}

ProgramGenerator prepare_from_states(const SchemeInputs& inputs) {
  auto runs = std::make_shared<const LinearRuns>(inputs);
  return [&inputs, runs](int rank) {
    LinearProgram program(inputs, *runs, rank, 0, false);
    for (const int run : runs->of_rank(rank)) program.sweep(run);
    return std::move(program).finish();
  };
}

}  // namespace longhaul::parallel
