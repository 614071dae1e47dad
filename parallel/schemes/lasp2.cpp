// LASP-2 (Sun et al. 2025): every rank gathers the maps of the runs before its own, at once, and
// folds them. Serial depth is one exchange; what a rank receives grows with its place.
//
// Elements received, one document, m = H D E, t = H |T|: contiguous, rank r: r m + (r-1) t; zigzag:
// (2P-3-r) m + (2P-3-r-[r>0]) t, the last rank, whose halves are one run, as contiguous. Backward
// mirrored. Not causal: every state to everybody.

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "parallel/schemes/linear_runs.h"

namespace longhaul::parallel {
namespace {

/// A chain in the order in which states go, and who needs how much of it.
struct Chain {
  RunChain runs;
  /// By rank, rising: how many of the first runs it needs, all before its last one; not causal,
  /// all.
  std::vector<std::pair<int, std::size_t>> needed;
};

class Gather {
 public:
  Gather(const SchemeInputs& inputs, const LinearRuns& runs, int rank)
      : runs_(runs),
        causal_(inputs.shapes.linear->recurrence.causal),
        program_(inputs, runs, rank, 1, true) {
    for (RunChain& chain : program_.ordered_chains()) {
      const auto mine = [&](int run) { return runs[run].rank == rank; };
      if (std::ranges::none_of(chain, mine)) continue;
      std::map<int, std::size_t> needed;
      for (std::size_t i = 0; i < chain.size(); ++i)
        needed[runs[chain[i]].rank] = causal_ ? i : chain.size();
      chains_.push_back({std::move(chain), {needed.begin(), needed.end()}});
    }
  }

  Program generate() && {
    summarize();
    exchange();
    program_.builder().set_phase(1);
    for (const int run : runs_.of_rank(program_.rank())) {  // those that wait for nobody
      if (!incoming_.contains(run)) program_.sweep(run);
    }
    for (const Chain& chain : chains_) fold(chain);
    return std::move(program_).finish();
  }

 private:
  bool is_mine(int run) const { return runs_[run].rank == program_.rank(); }
  /// How many of a chain's first runs this rank needs.
  std::size_t needed(const Chain& chain) const {
    return std::ranges::lower_bound(chain.needed, program_.rank(), {},
                                    &std::pair<int, std::size_t>::first)
        ->second;
  }
  /// Whether a chain's transition travels with the state of its run number i.
  bool has_transition(const Chain& chain, std::size_t i) const {
    return program_.records().has_transition() && i > 0 && runs_[chain.runs[i]].starts.empty();
  }

  /// The maps of this rank's runs that somebody folds.
  void summarize() {
    std::vector<std::pair<int, bool>> wanted;  // run, and whether a state enters its chain there
    for (const Chain& chain : chains_) {
      const RunChain& runs = chain.runs;
      const std::size_t givers = causal_ ? runs.size() - 1 : runs.size();
      for (std::size_t i = 0; i < runs.size(); ++i) {
        if (!is_mine(runs[i])) continue;
        if (i < givers) wanted.emplace_back(runs[i], i == 0 && program_.enters(runs));
        if (i > 0 || !causal_) incoming_.insert(runs[i]);
      }
    }
    if (wanted.empty()) return;
    const std::int64_t rows = program_.state_rows();
    const View all = program_.builder().scratch("summaries", program_.records().state,
                                                std::ssize(wanted) * rows, program_.heads());
    std::int64_t at = 0;
    for (const auto& [run, enters] : wanted) {
      const View state = rows_of(all, at, at + rows);
      at += rows;
      program_.summarize(run, state);
      if (enters) program_.fold({program_.link(run, state)}, program_.outside(run), state);
      states_[run] = state;
    }
  }

  /// Sends each rank what it needs of this rank's, and receives likewise: all states, then all
  /// transitions.
  void exchange() {
    std::map<int, std::vector<View>> sends, receives, sent_transitions, received_transitions;
    std::vector<int> states, transitions;  // runs whose parts arrive
    for (const Chain& chain : chains_) {
      for (std::size_t i = 0; i < chain.runs.size(); ++i) {
        const int run = chain.runs[i];
        if (!is_mine(run)) {
          if (i >= needed(chain)) continue;
          states.push_back(run);
          if (has_transition(chain, i)) transitions.push_back(run);
          continue;
        }
        for (const auto& [peer, count] : chain.needed) {
          if (peer == program_.rank() || i >= count) continue;
          sends[peer].push_back(states_.at(run));
          if (has_transition(chain, i)) sent_transitions[peer].push_back(*program_.transition(run));
        }
      }
    }
    place(states, "received", program_.records().state, program_.state_rows(), states_);
    place(transitions, "received_transitions", program_.records().transition,
          program_.records().transition_rows, transitions_);
    for (const int run : states) receives[runs_[run].rank].push_back(states_.at(run));
    for (const int run : transitions)
      received_transitions[runs_[run].rank].push_back(transitions_.at(run));
    std::vector<Message> out, in;
    for (int peer = 0; peer < runs_.ranks(); ++peer) {
      const auto message = [&](std::map<int, std::vector<View>>& first,
                               std::map<int, std::vector<View>>& second,
                               std::vector<Message>& into) {
        if (!first.contains(peer)) return;
        std::vector<View> views = std::move(first[peer]);
        views.insert(views.end(), second[peer].begin(), second[peer].end());
        into.push_back({peer, std::move(views)});
      };
      message(sends, sent_transitions, out);
      message(receives, received_transitions, in);
    }
    program_.builder().transfer(0, std::move(out), std::move(in));
  }

  /// A slot for what arrives of those runs, one behind another.
  void place(const std::vector<int>& runs, const char* name, const Record& record,
             std::int64_t rows, std::map<int, View>& views) {
    if (runs.empty()) return;
    const View all =
        program_.builder().scratch(name, record, std::ssize(runs) * rows, program_.heads());
    std::int64_t at = 0;
    for (const int run : runs) {
      views[run] = rows_of(all, at, at + rows);
      at += rows;
    }
  }

  FoldLink link(const Chain& chain, std::size_t i) const {
    const int run = chain.runs[i];
    const View& state = states_.at(run);
    if (causal_ && i == 0) return LinearProgram::reset(state);
    FoldLink link = program_.link(run, state);
    if (!is_mine(run) && has_transition(chain, i)) link.transition = transitions_.at(run);
    return link;
  }

  /// The states that enter this rank's runs of a chain, each from the one before it, and the runs.
  void fold(const Chain& chain) {
    std::vector<FoldLink> links;
    for (std::size_t i = 0; !causal_ && i < chain.runs.size(); ++i) links.push_back(link(chain, i));
    std::optional<View> in;
    for (std::size_t i = 0; i < chain.runs.size(); ++i) {
      const int run = chain.runs[i];
      if (is_mine(run) && (i > 0 || !causal_)) {
        if (!links.empty()) {  // not causal: one state for all
          const View into = program_.incoming(run);
          program_.fold(std::exchange(links, {}), in, into);
          in = into;
        }
        program_.sweep(run);
      }
      if (causal_ && i < needed(chain)) links.push_back(link(chain, i));
    }
  }

  const LinearRuns& runs_;
  const bool causal_;
  LinearProgram program_;
  std::vector<Chain> chains_;
  std::set<int> incoming_;           // runs that a state of their chain enters
  std::map<int, View> states_;       // of own and received runs
  std::map<int, View> transitions_;  // of received ones
};

ProgramGenerator prepare_lasp2(const SchemeInputs& inputs) {
  auto runs = std::make_shared<const LinearRuns>(inputs);
  return [&inputs, runs](int rank) { return Gather(inputs, *runs, rank).generate(); };
}

}  // namespace

const Scheme lasp2_scheme{.name = "lasp2",
                          .prepare = prepare_lasp2,
                          .family = Family::linear,
                          .legality = "every kind, mask and layout of consecutive tokens"};

}  // namespace longhaul::parallel
