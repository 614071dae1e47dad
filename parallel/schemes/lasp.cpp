// LASP (Sun et al. 2024): a state goes from run to run. `lasp` folds it through each run's map, or
// with `replay` lets each run's own sweep carry it on, head group by head group; `all_scan` (ZeCO,
// Chou et al. 2025) folds and passes it on in blocks of value columns. (Never of key columns: under
// a delta rule a transition mixes those.)
//
// Elements received, one document, m = H D E: m by every run that a state enters, whatever the
// number of ranks. Backward mirrored. Serial: the runs one after another; in G groups or blocks a
// chain of n runs takes 1 + (n - 1) / G of that.

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "parallel/schemes/linear_runs.h"

namespace longhaul::parallel {
namespace {

/// How a state is passed on.
struct Passing {
  bool replay = false;
  int groups = 1;  ///< of key heads
  int blocks = 1;  ///< of value columns
};

class Passes {
 public:
  Passes(const SchemeInputs& inputs, const LinearRuns& runs, int rank, const Passing& passing)
      : runs_(runs),
        key_heads_(inputs.shapes.kv_heads),
        value_heads_(inputs.shapes.heads),
        passing_(passing),
        program_(inputs, runs, rank, kChannels, !passing.replay) {
    order_runs();
  }

  Program generate() && {
    if (!passing_.replay) {
      summarize();
      pass_sources();
    }
    const int pieces = passing_.groups * passing_.blocks;
    if (pipelined_) {
      for (const int run : order_) {
        for (int piece = 0; piece < pieces; ++piece) pass(run, piece);
        if (!passing_.replay) program_.sweep(run);
      }
    } else {
      for (int piece = 0; piece < pieces; ++piece) {
        for (const int run : order_) pass(run, piece);
      }
      for (const int run : passing_.replay ? std::vector<int>() : order_) program_.sweep(run);
    }
    return std::move(program_).finish();
  }

 private:
  static constexpr int kChannels = 2;

  struct Node {
    int from = -1, to = -1;  ///< the runs that a state comes from and goes to
    int chain = 0;           ///< of linked runs, whether a state comes through them or not
    int ordinal = 0;         ///< among the rank's runs of the same chain
    /// What leaves it does not depend on what enters.
    bool source = false;
  };
  Node& node(int run) { return nodes_[static_cast<std::size_t>(run)]; }

  void order_runs() {
    const int count = static_cast<int>(runs_.runs().size());
    const auto ranks = static_cast<std::size_t>(runs_.ranks());
    nodes_.resize(static_cast<std::size_t>(count));
    std::vector<int> seen(ranks, 0), chain_of_rank(ranks, -1);
    std::vector<std::vector<int>> orders(ranks);
    int chain = 0, before = -1;
    for (int place = 0; place < count; ++place) {
      const int run = program_.backward() ? count - 1 - place : place;
      const TokenRun& at = runs_[run];
      Node& own = node(run);
      const auto rank = static_cast<std::size_t>(at.rank);
      if (program_.backward() ? at.behind : at.before) {
        own.from = before;
        node(before).to = run;
      } else {
        ++chain;
      }
      if (std::exchange(chain_of_rank[rank], chain) != chain) seen[rank] = 0;
      own.ordinal = seen[rank]++;
      own.chain = chain;
      own.source = !at.starts.empty() || own.from < 0;
      orders[rank].push_back(run);
      before = run;
    }
    order_ = orders[static_cast<std::size_t>(program_.rank())];
    pipelined_ = std::ranges::all_of(orders, [&](auto& order) { return is_pipelined(order); });
    if (pipelined_) sort_by_ordinal(order_);
  }

  void sort_by_ordinal(std::vector<int>& order) {
    std::ranges::stable_sort(
        order, {}, [&](int run) { return std::pair(node(run).ordinal, node(run).chain); });
  }

  /// Whether a rank may let each of its runs pass all its pieces on before the next begins, what
  /// comes for the second run of a chain having a channel of its own. All ranks must then do what
  /// they do in one order, or somebody waits for somebody who waits for him: of runs by ordinal and
  /// chain; of what a channel carries by chain, and of a chain what one run of the rank takes and
  /// gives. So it is where chains go through the ranks once, and perhaps once more, all alike:
  /// contiguous and zigzag layouts of long documents. Else the first pieces of all runs, in order
  /// of their places, come before the second ones.
  bool is_pipelined(std::vector<int>& order) {
    sort_by_ordinal(order);
    std::array<std::pair<int, int>, kChannels> last{};  // chain, and which of the rank's runs
    const auto in_order = [&](int run, int into) {
      auto& [chain, of] = last.at(static_cast<std::size_t>(node(into).ordinal));
      const bool good = chain < node(into).chain || (chain == node(into).chain && of == run);
      chain = node(into).chain, of = run;
      return good;
    };
    for (const int run : order) {
      const Node& own = node(run);
      if (own.ordinal >= kChannels || (own.to >= 0 && node(own.to).ordinal >= kChannels))
        return false;
      if (own.from >= 0 && (node(own.from).ordinal > own.ordinal || !in_order(run, run)))
        return false;
      if (own.to >= 0 && !in_order(run, own.to)) return false;
    }
    return true;
  }

  int channel_into(int run) { return pipelined_ ? node(run).ordinal : 0; }

  /// The maps of this rank's runs that a state leaves.
  void summarize() {
    std::int64_t count = 0;
    for (const int run : order_) count += node(run).to >= 0 ? 1 : 0;
    if (count == 0) return;
    leaving_ = program_.builder().scratch("summaries", program_.records().state,
                                          count * program_.state_rows(), program_.heads());
    for (const int run : order_) {
      if (node(run).to < 0) continue;
      const View state = leaving(run);
      program_.summarize(run, state);
      const std::optional<View> outside = program_.outside(run);
      if (outside && runs_[run].starts.empty())
        program_.fold({program_.link(run, state)}, outside, state);
    }
  }

  /// Where the state that leaves a run lies.
  View leaving(int run) {
    std::int64_t number = 0;
    for (const int other : runs_.of_rank(program_.rank())) {
      if (other == run) break;
      number += node(other).to >= 0 ? 1 : 0;
    }
    return rows_of(*leaving_, number * program_.state_rows(), (number + 1) * program_.state_rows());
  }

  /// States that depend on no other run go to the next ones, all at once.
  void pass_sources() {
    std::vector<Message> sends, receives;
    const auto add = [&](int from, int to) {
      if (from < 0 || to < 0 || !node(from).source) return;
      const int giver = runs_[from].rank, taker = runs_[to].rank, rank = program_.rank();
      if (giver == taker) {
        if (giver == rank) copies_.emplace_back(from, to);
      } else if (giver == rank) {
        sends.push_back({taker, {leaving(from)}});
      } else {
        receives.push_back({giver, {program_.incoming(to)}});
      }
    };
    for (const int run : runs_.of_rank(program_.rank())) {
      add(node(run).from, run);
      if (node(run).to >= 0 && runs_[node(run).to].rank != program_.rank()) add(run, node(run).to);
    }
    for (const auto& [from, to] : copies_)
      program_.builder().copy(leaving(from), program_.incoming(to));
    // Messages between two ranks meet in order: that of the runs, which may be falling.
    const auto by_run = program_.backward();
    if (by_run) {
      std::ranges::reverse(sends);
      std::ranges::reverse(receives);
    }
    program_.builder().transfer(0, std::move(sends), std::move(receives));
    program_.builder().set_phase(1);
  }

  View piece_of(const View& state, int piece) const {
    const int group = piece / passing_.blocks, block = piece % passing_.blocks;
    const auto cut = [](std::int64_t all, int parts, int part) { return all * part / parts; };
    const int ratio = value_heads_ / key_heads_;
    return heads_of(rows_of(state, cut(state.rows(), passing_.blocks, block),
                            cut(state.rows(), passing_.blocks, block + 1)),
                    static_cast<int>(cut(key_heads_, passing_.groups, group)) * ratio,
                    static_cast<int>(cut(key_heads_, passing_.groups, group + 1)) * ratio);
  }

  /// A piece of the state that enters a run comes, goes through, and leaves it.
  void pass(int run, int piece) {
    const Node& own = node(run);
    const bool entered = own.from >= 0 && (passing_.replay || !node(own.from).source);
    if (entered && runs_[own.from].rank != program_.rank()) {
      program_.builder().transfer(
          channel_into(run), {},
          {{runs_[own.from].rank, {piece_of(program_.incoming(run), piece)}}});
    }
    if (passing_.replay) {
      replay(run, piece);
    } else if (own.to >= 0 && !own.source) {
      const View state = piece_of(leaving(run), piece);
      program_.fold({program_.link(run, state)}, piece_of(program_.incoming(run), piece), state);
    }
    if (own.to < 0 || (own.source && !passing_.replay)) return;
    const View state = piece_of(leaving(run), piece);
    if (runs_[own.to].rank == program_.rank()) {
      program_.builder().copy(state, piece_of(program_.incoming(own.to), piece));
    } else {
      program_.builder().transfer(channel_into(own.to), {{runs_[own.to].rank, {state}}}, {});
    }
    program_.builder().set_phase(1);
  }

  void replay(int run, int piece) {
    const auto cut = [&](int part) { return key_heads_ * part / passing_.groups; };
    if (cut(piece) == cut(piece + 1)) return;
    std::optional<View> out;
    if (node(run).to >= 0) {
      if (!leaving_) {
        std::int64_t count = 0;
        for (const int other : order_) count += node(other).to >= 0 ? 1 : 0;
        leaving_ = program_.builder().scratch("leaving", program_.records().state,
                                              count * program_.state_rows(), program_.heads());
      }
      out = leaving(run);
    }
    program_.sweep(run, cut(piece), cut(piece + 1), out);
  }

  const LinearRuns& runs_;
  const int key_heads_, value_heads_;
  const Passing passing_;
  LinearProgram program_;
  std::vector<Node> nodes_;
  std::vector<int> order_;  // this rank's runs
  std::vector<std::pair<int, int>> copies_;
  bool pipelined_ = true;
  std::optional<View> leaving_;
};

constexpr std::int64_t kBlocks = 4;  // of all_scan, where none are asked for

ProgramGenerator passes(const SchemeInputs& inputs, const Passing& passing) {
  auto runs = std::make_shared<const LinearRuns>(inputs);
  return [&inputs, runs, passing](int rank) {
    return Passes(inputs, *runs, rank, passing).generate();
  };
}

ProgramGenerator prepare_lasp(const SchemeInputs& inputs) {
  const Expression scheme = resolved(combination_of(inputs));
  const bool replay = scheme.boolean("replay").value_or(false);
  const auto groups = static_cast<int>(scheme.integer("groups").value_or(1));
  return passes(inputs, {replay, groups, 1});
}

/// Without groups: each key head on its own where sweeps carry the state, since then only the first
/// group's sweep is waited for; else all together.
Expression resolve_lasp(const Combination& combination) {
  Expression scheme = combination.scheme;
  if (scheme.integer("groups")) return scheme;
  const bool replay = scheme.boolean("replay").value_or(false);
  return scheme.with("groups", std::int64_t{replay ? combination.kv_heads : 1});
}

std::optional<Refusal> refuse_lasp(const Combination& combination) {
  const std::int64_t groups = combination.scheme.integer("groups").value_or(1);
  if (groups <= combination.kv_heads) return std::nullopt;
  Combination fewer = combination;
  fewer.scheme = canonical(combination.scheme.with("groups", std::int64_t{combination.kv_heads}));
  return Refusal{runtime::concat("groups=", groups, " of ", combination.kv_heads, " key heads"),
                 {fewer}};
}

ProgramGenerator prepare_all_scan(const SchemeInputs& inputs) {
  const std::int64_t asked = inputs.scheme.integer("blocks").value_or(kBlocks);
  const std::int64_t most = std::max<std::int64_t>(inputs.shapes.value_dim, 1);
  return passes(inputs, {false, 1, static_cast<int>(std::min(asked, most))});
}

}  // namespace

const Scheme lasp_scheme{
    .name = "lasp",
    .channels = 2,
    .prepare = prepare_lasp,
    .arguments = {{.name = "replay", .type = ArgumentType::boolean, .otherwise = "false"},
                  {.name = "groups", .type = ArgumentType::integer}},
    .refuse = refuse_lasp,
    .resolve = resolve_lasp,
    .family = Family::linear,
    .legality =
        "causal; every kind, and layout of consecutive tokens; at most H_k `groups` of key "
        "heads"};

const Scheme all_scan_scheme{
    .name = "all_scan",
    .channels = 2,
    .prepare = prepare_all_scan,
    .arguments = {{.name = "blocks", .type = ArgumentType::integer, .otherwise = "4"}},
    .family = Family::linear,
    .legality = "causal; every kind, and layout of consecutive tokens"};

}  // namespace longhaul::parallel
