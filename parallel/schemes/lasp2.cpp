// LASP-2 (Sun et al. 2025): every rank gathers the maps of the runs before its own, at once, and
// folds them. Serial depth is one exchange; what a rank receives grows with its place.
//
// Elements received, one document, m = H D E, t = H |T|: contiguous, rank r: r m + (r-1) t; zigzag:
// (2P-2-r) m + (2P-2-r-[r>0]) t. Backward mirrored. Not causal: every state to everybody.

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "parallel/schemes/linear_runs.h"

namespace longhaul::parallel {
namespace {

class Gather {
 public:
  Gather(const SchemeInputs& inputs, const LinearRuns& runs, int rank)
      : runs_(runs),
        causal_(inputs.shapes.linear->recurrence.causal),
        program_(inputs, runs, rank, 1, true),
        chains_(program_.ordered_chains()) {}

  Program generate() && {
    summarize();
    exchange();
    program_.builder().set_phase(1);
    for (const int run : runs_.of_rank(program_.rank())) {  // those that wait for nobody
      if (!incoming_.contains(run)) program_.sweep(run);
    }
    for (const RunChain& chain : chains_) fold(chain);
    return std::move(program_).finish();
  }

 private:
  bool is_mine(int run) const { return runs_[run].rank == program_.rank(); }
  /// How many of a chain's first runs a rank needs: all before its last one.
  std::size_t needed(const RunChain& chain, int rank) const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < chain.size(); ++i) {
      if (runs_[chain[i]].rank == rank) count = causal_ ? i : chain.size();
    }
    return count;
  }
  /// Whether a chain's transition travels with the state of its run number i.
  bool has_transition(const RunChain& chain, std::size_t i) const {
    return program_.records().has_transition() && i > 0 && runs_[chain[i]].starts.empty();
  }

  /// The maps of this rank's runs that somebody folds.
  void summarize() {
    std::vector<std::pair<int, bool>> wanted;  // run, and whether a state enters its chain there
    for (const RunChain& chain : chains_) {
      const std::size_t givers = causal_ ? chain.size() - 1 : chain.size();
      for (std::size_t i = 0; i < chain.size(); ++i) {
        if (!is_mine(chain[i])) continue;
        if (i < givers) wanted.emplace_back(chain[i], i == 0 && program_.enters(chain));
        if (i > 0 || !causal_) incoming_.insert(chain[i]);
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
    const int ranks = static_cast<int>(runs_.ranks());
    std::map<int, std::vector<View>> sends, receives, sent_transitions, received_transitions;
    std::vector<int> states, transitions;  // runs whose parts arrive
    for (const RunChain& chain : chains_) {
      std::set<int> members;
      for (const int run : chain) members.insert(runs_[run].rank);
      if (!members.contains(program_.rank())) continue;
      for (const int peer : members) {
        if (peer == program_.rank()) continue;
        for (std::size_t i = 0; i < needed(chain, peer); ++i) {
          if (!is_mine(chain[i])) continue;
          sends[peer].push_back(states_.at(chain[i]));
          if (has_transition(chain, i))
            sent_transitions[peer].push_back(*program_.transition(chain[i]));
        }
      }
      for (std::size_t i = 0; i < needed(chain, program_.rank()); ++i) {
        if (is_mine(chain[i])) continue;
        states.push_back(chain[i]);
        if (has_transition(chain, i)) transitions.push_back(chain[i]);
      }
    }
    place(states, "received", program_.records().state, program_.state_rows(), states_);
    place(transitions, "received_transitions", program_.records().transition,
          program_.records().transition_rows, transitions_);
    for (const int run : states) receives[runs_[run].rank].push_back(states_.at(run));
    for (const int run : transitions)
      received_transitions[runs_[run].rank].push_back(transitions_.at(run));
    std::vector<Message> out, in;
    for (int peer = 0; peer < ranks; ++peer) {
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

  FoldLink link(const RunChain& chain, std::size_t i) const {
    const int run = chain[i];
    const View& state = states_.at(run);
    if (causal_ && i == 0) return LinearProgram::reset(state);
    FoldLink link = program_.link(run, state);
    if (!is_mine(run) && has_transition(chain, i)) link.transition = transitions_.at(run);
    return link;
  }

  /// The states that enter this rank's runs of a chain, and the runs.
  void fold(const RunChain& chain) {
    std::vector<FoldLink> links;
    if (!causal_) {
      if (needed(chain, program_.rank()) == 0) return;
      for (std::size_t i = 0; i < chain.size(); ++i) links.push_back(link(chain, i));
    }
    std::optional<View> in;
    for (std::size_t i = 0; i < chain.size(); ++i) {
      const int run = chain[i];
      if (is_mine(run) && (i > 0 || !causal_)) {
        if (!links.empty()) {  // not causal: the same state for all
          const View into = program_.incoming(run);
          program_.fold(std::move(links), in, into);
          in = into;
          links = {};
        }
        program_.sweep(run);
      }
      if (causal_ && i + 1 < chain.size()) {
        if (i < needed(chain, program_.rank())) links.push_back(link(chain, i));
      }
    }
  }

  const LinearRuns& runs_;
  const bool causal_;
  LinearProgram program_;
  const std::vector<RunChain> chains_;
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
