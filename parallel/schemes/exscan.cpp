// An exclusive scan of the runs' maps in rounds of doubling distance (MPI_Exscan with an operator
// that does not commute; Hillis and Steele 1986): serial depth ceil(log2 runs), and what a rank
// receives grows as slowly.
//
// Elements received by a run, one document, m = H D E, t = H |T|: at most ceil(log2 n) (m + t) + m
// with n runs; T only while what it belongs to does not reach the chain's first run.

#include <map>
#include <memory>
#include <utility>

#include "parallel/schemes/linear_runs.h"

namespace longhaul::parallel {
namespace {

class Scan {
 public:
  Scan(const SchemeInputs& inputs, const LinearRuns& runs, int rank)
      : runs_(runs), program_(inputs, runs, rank, 1, true), chains_(program_.ordered_chains()) {
    for (const RunChain& chain : chains_) longest_ = std::max(longest_, chain.size());
  }

  Program generate() && {
    summarize();
    int round = 0;
    for (std::size_t distance = 1; distance + 1 < longest_; distance *= 2, ++round) {
      exchange(distance);
      if (round == 0) program_.builder().set_phase(1);
      compose(distance, round);
    }
    shift();
    if (round == 0) program_.builder().set_phase(1);
    for (const int run : runs_.of_rank(program_.rank())) program_.sweep(run);
    return std::move(program_).finish();
  }

 private:
  /// The map of a run and of those before it in its chain, as far as the rounds have come.
  struct Map {
    View state;
    std::optional<View> transition;
    std::int64_t tokens = 0;
  };
  using Place = std::pair<std::size_t, std::size_t>;  // chain, and which of its runs

  bool is_mine(const RunChain& chain, std::size_t i) const {
    return runs_[chain[i]].rank == program_.rank();
  }
  /// Whether a run's map, `distance` runs long by now, is not yet that of all before it.
  bool goes_on(std::size_t i, std::size_t distance) const {
    return i >= distance && program_.records().has_transition();
  }
  template <class Visit>
  void for_own_givers(const Visit& visit) {
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      for (std::size_t i = 0; i + 1 < chains_[c].size(); ++i) {
        if (is_mine(chains_[c], i)) visit(chains_[c], Place{c, i});
      }
    }
  }
  /// Part `number` of a scratch slot that is made when first used, with a part for each own run.
  View part(const char* name, const Record& record, std::int64_t rows, std::int64_t number) {
    auto& slot = slots_[name];
    if (!slot)
      slot = program_.builder().scratch(
          name, record, std::ssize(runs_.of_rank(program_.rank())) * rows, program_.heads());
    return rows_of(*slot, number * rows, (number + 1) * rows);
  }
  View state_part(const char* name, std::int64_t number) {
    return part(name, program_.records().state, program_.state_rows(), number);
  }
  View transition_part(const char* name, std::int64_t number) {
    return part(name, program_.records().transition, program_.records().transition_rows, number);
  }

  void summarize() {
    for_own_givers([&](const RunChain& chain, Place at) {
      const int run = chain[at.second];
      Map& map = maps_[at];
      map.state = state_part("summaries", runs_[run].ordinal);
      map.tokens = runs_[run].tokens();
      program_.summarize(run, map.state);
      if (at.second == 0) {
        if (program_.enters(chain))
          program_.fold({program_.link(run, map.state)}, program_.outside(run), map.state);
      } else {
        map.transition = program_.transition(run);
      }
    });
  }

  /// Every run's map goes `distance` runs on.
  void exchange(std::size_t distance) {
    std::map<int, std::vector<View>> sends, receives;
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      const RunChain& chain = chains_[c];
      for (std::size_t i = distance; i + 1 < chain.size(); ++i) {
        const int from = runs_[chain[i - distance]].rank, to = runs_[chain[i]].rank;
        if (from == to) continue;
        const bool open = goes_on(i - distance, distance);
        if (from == program_.rank()) {
          const Map& map = maps_.at({c, i - distance});
          sends[to].push_back(map.state);
          if (open) sends[to].push_back(*map.transition);
        }
        if (to != program_.rank()) continue;
        const int ordinal = runs_[chain[i]].ordinal;
        Map& map = received_[{c, i}];
        map.state = state_part("received", ordinal);
        receives[from].push_back(map.state);
        map.transition.reset();
        if (!open) continue;
        map.transition = transition_part("received_transitions", ordinal);
        receives[from].push_back(*map.transition);
      }
    }
    transfer(std::move(sends), std::move(receives));
  }

  void compose(std::size_t distance, int round) {
    std::map<Place, Map> next = maps_;
    for_own_givers([&](const RunChain& chain, Place at) {
      const auto [c, i] = at;
      if (i < distance) return;
      const bool local = is_mine(chain, i - distance);
      const Map before = local ? maps_.at({c, i - distance}) : received_.at(at);
      const Map& own = maps_.at(at);
      const int ordinal = runs_[chain[i]].ordinal;
      Map& map = next[at];
      map.state = state_part(round % 2 == 0 ? "scan0" : "scan1", ordinal);
      map.tokens = own.tokens + tokens(chain, i - distance, distance);
      map.transition.reset();
      if (goes_on(i - distance, distance))
        map.transition =
            transition_part(round % 2 == 0 ? "scan_transitions0" : "scan_transitions1", ordinal);
      program_.fold({{before.state, before.transition}, {own.state, own.transition, own.tokens}},
                    {}, map.state, map.transition);
    });
    maps_ = std::move(next);
  }

  /// Of the `distance` runs up to number i, as many as there are.
  std::int64_t tokens(const RunChain& chain, std::size_t i, std::size_t distance) const {
    std::int64_t sum = 0;
    for (std::size_t k = 0; k < distance && k <= i; ++k) sum += runs_[chain[i - k]].tokens();
    return sum;
  }

  /// Every run's map, a state by now, enters the next run.
  void shift() {
    std::map<int, std::vector<View>> sends, receives;
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      const RunChain& chain = chains_[c];
      for (std::size_t i = 1; i < chain.size(); ++i) {
        const int from = runs_[chain[i - 1]].rank, to = runs_[chain[i]].rank;
        if (from == program_.rank() && to == from) {
          program_.builder().copy(maps_.at({c, i - 1}).state, program_.incoming(chain[i]));
        } else if (from == program_.rank()) {
          sends[to].push_back(maps_.at({c, i - 1}).state);
        } else if (to == program_.rank()) {
          receives[from].push_back(program_.incoming(chain[i]));
        }
      }
    }
    transfer(std::move(sends), std::move(receives));
  }

  void transfer(std::map<int, std::vector<View>> sends, std::map<int, std::vector<View>> receives) {
    std::vector<Message> out, in;
    // A message for each view: neighbours in one rank's slot need not be neighbours in another's.
    for (auto& [peer, views] : sends) {
      for (const View& view : views) out.push_back({peer, {view}});
    }
    for (auto& [peer, views] : receives) {
      for (const View& view : views) in.push_back({peer, {view}});
    }
    program_.builder().transfer(0, std::move(out), std::move(in));
  }

  const LinearRuns& runs_;
  LinearProgram program_;
  const std::vector<RunChain> chains_;
  std::size_t longest_ = 0;
  std::map<Place, Map> maps_, received_;  // of own givers; of what came for them in this round
  std::map<std::string, std::optional<View>> slots_;
};

ProgramGenerator prepare_exscan(const SchemeInputs& inputs) {
  auto runs = std::make_shared<const LinearRuns>(inputs);
  return [&inputs, runs](int rank) { return Scan(inputs, *runs, rank).generate(); };
}

}  // namespace

const Scheme exscan_scheme{.name = "exscan",
                           .prepare = prepare_exscan,
                           .family = Family::linear,
                           .legality = "causal; every kind, and layout of consecutive tokens"};

}  // namespace longhaul::parallel
