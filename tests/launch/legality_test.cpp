// The table of what is legal: enumerated here from the rules in words, held against what the
// program refuses, prints and runs.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <tuple>

#include "attention/named_masks.h"
#include "launch/legality.h"
#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"
#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

using parallel::Combination;
using parallel::LayoutKind;

struct Heads {
  int q, kv;
};

/// The rules, in the words of the README.
bool legal(const std::string& scheme, LayoutKind layout, const attention::MaskRule& mask, int ranks,
           Heads heads) {
  const auto shares_heads = [&](int degree) {
    return heads.q % degree == 0 && (heads.kv % degree == 0 || degree % heads.kv == 0);
  };
  if (scheme == "balanced_ring") return layout == LayoutKind::contiguous && mask.causal;
  if (scheme == "disaggregated") {
    return layout != LayoutKind::striped &&
           (mask.name == std::string("causal") || mask.name == std::string("causal_document"));
  }
  if (scheme == "ulysses") return shares_heads(ranks);
  if (scheme == "usp") {  // one rank always shares all heads
    return true;
  }
  return true;
}

TEST(Legality, EveryCombinationIsLegalOrRefusedAsTheRulesSay) {
  int refused = 0, all = 0;
  for (const std::string& scheme : parallel::scheme_names()) {
    for (const attention::MaskRule& mask : attention::mask_rules()) {
      for (const LayoutKind layout : parallel::layout_kinds()) {
        for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 16, 32}) {
          for (const Heads heads : {Heads{8, 8}, Heads{8, 2}, Heads{8, 1}, Heads{6, 3}}) {
            const Combination combination{scheme,
                                          ranks,
                                          heads.q,
                                          heads.kv,
                                          layout,
                                          mask.causal,
                                          parallel::Family::softmax,
                                          mask.sees_whole_past()};
            const auto refusal = parallel::refuse(combination);
            EXPECT_EQ(!refusal, legal(scheme, layout, mask, ranks, heads))
                << scheme << " " << mask.name << " " << name(layout) << " P=" << ranks << " heads "
                << heads.q << "/" << heads.kv;
            ++all;
            if (!refusal) continue;
            ++refused;
            EXPECT_FALSE(refusal->reason.empty());
            ASSERT_FALSE(refusal->nearest.empty());
            for (const Combination& nearest : refusal->nearest)
              EXPECT_FALSE(parallel::refuse(nearest)) << parallel::advice(combination, *refusal);
            EXPECT_FALSE(parallel::advice(combination, *refusal).empty());
            test::expect_error(runtime::ExitCode::config, refusal->reason,
                               [&] { parallel::check_legal(combination); });
          }
        }
      }
    }
  }
  std::printf("%d combinations, %d refused\n", all, refused);
  EXPECT_GT(refused, 0);
}

/// The refusal, with what to use instead, all of which is legal; empty where it is legal itself.
std::string refusal(const std::string& scheme, int ranks, Heads heads) {
  const Combination combination{parallel::parse_scheme(scheme), ranks, heads.q, heads.kv};
  const auto refused = parallel::refuse(combination);
  if (!refused) return "";
  EXPECT_FALSE(refused->nearest.empty()) << scheme;
  for (const Combination& nearest : refused->nearest)
    EXPECT_FALSE(parallel::refuse(nearest)) << nearest.scheme.text();
  return refused->reason + "; use " + parallel::advice(combination, *refused);
}

TEST(Legality, DegreesThatDoNotFitAreRefusedWithThoseThatDo) {
  EXPECT_EQ(refusal("double_ring", 7, {4, 4}), "");
  EXPECT_EQ(refusal("double_ring(outer=2, inner=4)", 8, {4, 4}), "");
  EXPECT_EQ(refusal("double_ring(inner=4)", 8, {4, 4}), "");
  EXPECT_EQ(refusal("double_ring(outer=3, inner=2, backward=burst)", 8, {4, 4}),
            "outer x inner does not make up 8 ranks; use "
            "scheme double_ring(outer=8, inner=1, backward=burst), "
            "scheme double_ring(outer=4, inner=2, backward=burst), "
            "scheme double_ring(outer=2, inner=4, backward=burst) or "
            "scheme double_ring(outer=1, inner=8, backward=burst)");
  EXPECT_NE(refusal("double_ring(inner=3)", 8, {4, 4}), "");
  EXPECT_EQ(refusal("usp(heads=4)", 8, {4, 2}), "");
  EXPECT_EQ(refusal("usp(heads=8)", 8, {4, 2}),
            "heads=8: so many ranks cannot share 4 query heads and 2 key/value heads; use "
            "scheme usp(heads=1), scheme usp(heads=2) or scheme usp(heads=4)");
  EXPECT_EQ(refusal("usp(heads=3, nesting=ring_inside)", 8, {4, 2}),
            "heads=3 does not divide 8 ranks; use scheme usp(heads=4, nesting=ring_inside), "
            "scheme usp(heads=2, nesting=ring_inside) or scheme usp(heads=1, nesting=ring_inside)");
  // One head each way leaves usp a ring of all ranks, whichever degree is inside.
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const char* nesting : {"heads_inside", "ring_inside"})
      EXPECT_EQ(refusal(std::string("usp(nesting=") + nesting + ")", ranks, {3, 1}), "")
          << nesting << " P=" << ranks;
  }
}

TEST(Legality, WhatIsInsideAnExpressionMustSuitTheRanksThatItGets) {
  EXPECT_EQ(refusal("usp(heads=2, around=double_ring(outer=2, inner=2))", 8, {4, 4}), "");
  EXPECT_EQ(refusal("usp(around=double_ring(outer=2, inner=2))", 8, {4, 4}), "");
  // Two heads leave six ranks: three nodes of two will do, and so will three heads.
  const std::string told = refusal("usp(heads=2, around=double_ring(outer=4))", 12, {6, 6});
  for (const char* part : {"around double_ring(outer=4): outer x inner does not make up 6 ranks",
                           "scheme usp(heads=3, around=double_ring(outer=4))",
                           "scheme usp(heads=2, around=double_ring(outer=3, inner=2))"}) {
    EXPECT_NE(told.find(part), std::string::npos) << told;
  }
  // No number of heads leaves what is asked for.
  EXPECT_NE(refusal("usp(around=double_ring(outer=5))", 12, {6, 6})
                .find("scheme usp(heads=2, around=double_ring(outer=3, inner=2))"),
            std::string::npos);
}

/// `ulysses`: H divisible by P, and one of H_kv and P divides the other; `usp` likewise for its
/// number of `heads`; the inner degree is the largest legal divisor of P up to its square root,
/// else the least.
std::string heads_cell(const std::string& scheme, bool ring_inside, int ranks, Heads heads) {
  const auto shares = [&](int degree) {
    for (int a = 1; a * degree <= heads.q; ++a) {
      if (a * degree != heads.q) continue;
      for (int b = 1; b <= std::max(heads.kv, degree); ++b) {
        if (b * degree == heads.kv || b * heads.kv == degree) return true;
      }
    }
    return false;
  };
  if (scheme == "ulysses") return shares(ranks) ? "yes" : "no";
  int best = 0;
  for (int inner = 1; inner <= ranks; ++inner) {
    const int outer = ranks / inner;
    if (outer * inner != ranks) continue;
    if (scheme == "usp" && !shares(ring_inside ? outer : inner)) continue;
    if (best == 0 || inner * inner <= ranks) best = inner;
  }
  if (best == 0) return "no";
  const std::string inner = std::to_string(best), outer = std::to_string(ranks / best);
  return scheme == "usp" ? "heads=" + (ring_inside ? outer : inner)
                         : "outer=" + outer + ", inner=" + inner;
}

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream text(line);
  for (std::string cell; std::getline(text, cell, '|');) {
    const auto begin = cell.find_first_not_of(' ');
    cells.push_back(begin == std::string::npos
                        ? ""
                        : cell.substr(begin, cell.find_last_not_of(' ') - begin + 1));
  }
  cells.erase(cells.begin());
  return cells;
}

/// The part of the printed tables under the heading that begins so: its columns and its rows'
/// cells.
struct PrintedTable {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};
PrintedTable printed_table(const std::string& heading) {
  std::istringstream text(legality_table());
  PrintedTable table;
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with(heading)) {
      table.columns = cells_of(line);
      std::getline(text, line);  // the rule
    } else if (!table.columns.empty()) {
      if (!line.starts_with("|")) break;
      table.rows.push_back(cells_of(line));
      if (table.rows.back().size() != table.columns.size()) {
        ADD_FAILURE() << "another number of cells: " << line;
        return {};
      }
    }
  }
  return table;
}
/// Whether a cell of labels, "all" or "a, b", names this one.
bool names(const std::string& labels, const std::string& label) {
  return labels == "all" || (", " + labels + ",").find(" " + label + ",") != std::string::npos;
}

TEST(Legality, TheTableOfHeadsAndRanksAgreesWithTheRulesInEveryCell) {
  const std::map<std::string, Heads> kinds{
      {"24/24", {24, 24}}, {"24/6", {24, 6}}, {"24/1", {24, 1}}};
  const auto [columns, rows] = printed_table("| scheme | H / H_kv |");
  std::map<std::string, int> seen;  // cells by scheme
  for (const std::vector<std::string>& cells : rows) {
    const std::string scheme = cells[0].substr(1, cells[0].find_first_of("`(", 1) - 1);
    const bool ring_inside = cells[0] == "`usp(nesting=ring_inside)`";
    for (const auto& [name, heads] : kinds) {
      if (!names(cells[1], name)) continue;
      for (std::size_t i = 2; i < cells.size(); ++i) {
        const int ranks = std::stoi(columns[i].substr(columns[i].find_last_of(' ') + 1));
        EXPECT_EQ(cells[i], heads_cell(scheme, ring_inside, ranks, heads))
            << cells[0] << " heads " << name << " P=" << ranks;
        ++seen[cells[0]];
      }
    }
  }
  EXPECT_EQ(seen, (std::map<std::string, int>{{"`double_ring`", 30},
                                              {"`ulysses`", 30},
                                              {"`usp`", 30},
                                              {"`usp(nesting=ring_inside)`", 30}}));
  const std::string all = legality_table();
  EXPECT_NE(all.find("Every H, H_kv and P: `ring`, `burst`, `ring_self_attention`, "
                     "`balanced_ring`, `all_gather`, `group_cast`, `disaggregated`.\n"),
            std::string::npos);
}

/// What a schedule without degrees does is what it does with those that are written out.
TEST(Legality, ResolvedDegreesAreThoseOfTheSchedule) {
  for (const std::string name :
       {"double_ring", "usp", "usp(nesting=ring_inside)", "usp(around=double_ring)"}) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      for (const Heads heads : {Heads{24, 24}, Heads{24, 6}, Heads{24, 1}}) {
        const attention::HeadMasks mask(attention::Mask::causal(40));
        const auto layout = parallel::Layout::make(LayoutKind::contiguous, mask, 1, ranks);
        parallel::SchemeInputs inputs{
            mask, layout, {heads.q, heads.kv, 2, 2, runtime::DType::float32}};
        inputs.scheme = parallel::parse_scheme(name);
        std::string called;
        const auto counts = [&] {
          std::vector<std::map<int, std::int64_t>> sent;
          const parallel::Schedule schedule = parallel::build_schedule(inputs);
          called = schedule.scheme;
          for (const auto& program : schedule.programs)
            sent.push_back(parallel::count(program).sent_to);
          return sent;
        };
        const auto automatic = counts();
        inputs.scheme = parallel::resolved({inputs.scheme, ranks, heads.q, heads.kv});
        EXPECT_EQ(called, inputs.scheme.text());
        EXPECT_EQ(counts(), automatic) << name << " P=" << ranks;
      }
    }
  }
}

/// `balanced_ring`: contiguous, causal and documents; `disaggregated`: all but striped, and masks
/// that see the whole past; everything else is legal everywhere. Slices and blocks are what a file
/// says.
TEST(Legality, TheTableOfMasksAndLayoutsAgreesWithTheRulesInEveryCell) {
  const std::set<std::string> causal{"causal",        "causal_document", "documents",
                                     "causal_window", "shared_question", "causal_blockwise"},
      from_file{"slices", "block_sparse", "block_sparse_variable"};
  std::set<std::string> masks;
  for (const attention::MaskRule& rule : attention::mask_rules()) masks.insert(rule.name);
  const auto [columns, rows] = printed_table("| scheme | mask |");
  std::set<std::tuple<std::string, std::string, std::string>> seen;
  for (const std::vector<std::string>& cells : rows) {
    const std::string scheme = cells[0].substr(1, cells[0].size() - 2);
    for (const std::string& mask : masks) {
      if (!names(cells[1], mask)) continue;
      for (std::size_t i = 2; i < cells.size(); ++i) {
        std::string expected = "yes";
        if (scheme == "balanced_ring") {
          expected = columns[i] != "contiguous" ? "no"
                     : causal.contains(mask)    ? "yes"
                     : from_file.contains(mask) ? "if causal"
                                                : "no";
        } else if (scheme == "disaggregated") {
          const bool past = mask == "causal" || mask == "causal_document" || mask == "documents";
          expected = columns[i] == "striped"    ? "no"
                     : past                     ? "yes"
                     : from_file.contains(mask) ? "if documents"
                                                : "no";
        }
        EXPECT_EQ(cells[i], expected) << scheme << " " << mask << " " << columns[i];
        EXPECT_TRUE(seen.emplace(scheme, mask, columns[i]).second);
      }
    }
  }
  EXPECT_EQ(seen.size(), parallel::scheme_names().size() * masks.size() * 6);
}

TEST(Legality, ValidatePrintsTheTable) {
  const test::ProcessResult result =
      test::run_process({test::longhaul_program(), "validate", "--legality"}, {});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, legality_table());
  for (const std::string& scheme : parallel::scheme_names())
    EXPECT_NE(result.out.find("| `" + scheme + "` |"), std::string::npos) << scheme;
  EXPECT_NE(result.out.find("balanced_ring balances a contiguous layout itself"),
            std::string::npos);
}

}  // namespace
}  // namespace longhaul::launch
