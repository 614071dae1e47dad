// The table of what is legal: enumerated here from the rules in words, held against what the
// program refuses, prints and runs.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <tuple>

#include "attention/named_masks.h"
#include "launch/legality.h"
#include "launch/schemes.h"
#include "parallel/layout.h"
#include "parallel/schemes/degrees.h"
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
bool legal(const std::string& scheme, LayoutKind layout, bool causal, int ranks, Heads heads) {
  const auto shares_heads = [&](int degree) {
    return heads.q % degree == 0 && (heads.kv % degree == 0 || degree % heads.kv == 0);
  };
  if (scheme == "balanced_ring") return layout == LayoutKind::contiguous && causal;
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
            Combination combination{{}, ranks, heads.q, heads.kv, layout, mask.causal};
            combination.options.name = scheme;
            const auto refusal = parallel::refuse(combination);
            EXPECT_EQ(!refusal, legal(scheme, layout, mask.causal, ranks, heads))
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

TEST(Legality, DegreesThatDoNotFitAreRefusedWithThoseThatDo) {
  const auto refusal = [](const std::string& scheme, const std::string& degrees, int ranks,
                          Heads heads) {
    Combination combination{{}, ranks, heads.q, heads.kv};
    combination.options = scheme_options(scheme, degrees, "heads_inside", "ring", "auto");
    const auto refused = parallel::refuse(combination);
    if (!refused) return std::string();
    for (const Combination& nearest : refused->nearest) EXPECT_FALSE(parallel::refuse(nearest));
    return refused->reason + "; use " + parallel::advice(combination, *refused);
  };
  EXPECT_EQ(refusal("double_ring", "auto", 7, {4, 4}), "");
  EXPECT_EQ(refusal("double_ring", "outer=2,inner=4", 8, {4, 4}), "");
  EXPECT_EQ(refusal("double_ring", "inner=4", 8, {4, 4}), "");
  EXPECT_NE(refusal("double_ring", "outer=3,inner=2", 8, {4, 4}).find("outer=4,inner=2"),
            std::string::npos);
  EXPECT_NE(refusal("double_ring", "inner=3", 8, {4, 4}), "");
  EXPECT_EQ(refusal("usp", "inner=4", 8, {4, 2}), "");
  EXPECT_NE(refusal("usp", "inner=8", 8, {4, 2}).find("outer=2,inner=4"), std::string::npos);
  EXPECT_NE(refusal("ring", "inner=2", 8, {4, 2}), "");
  // One head each way leaves usp a ring of all ranks, whichever degree is inside.
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const char* nesting : {"heads_inside", "ring_inside"}) {
      Combination combination{{}, ranks, 3, 1};
      combination.options = scheme_options("usp", "auto", nesting, "ring", "auto");
      EXPECT_FALSE(parallel::refuse(combination)) << nesting << " P=" << ranks;
    }
  }
  for (const char* text : {"", "inner", "inner=", "inner=0", "inner=2,inner=2", "middle=2",
                           "inner=2;", "outer=-1", "=3", "auto,inner=2"}) {
    test::expect_error(runtime::ExitCode::config, text, [&] {
      scheme_options("double_ring", text, "heads_inside", "ring", "auto");
    });
  }
}

/// `ulysses`: H divisible by P, and one of H_kv and P divides the other; `usp` likewise for its
/// head degree, inner is the largest legal divisor of P up to its square root, else the least.
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
  return best == 0 ? "no" : std::to_string(ranks / best) + "x" + std::to_string(best);
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
    const std::string scheme = cells[0].substr(1, cells[0].find('`', 1) - 1);
    const bool ring_inside = cells[0].ends_with(" ring_inside");
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
  EXPECT_EQ(
      seen,
      (std::map<std::string, int>{
          {"`double_ring`", 30}, {"`ulysses`", 30}, {"`usp`", 30}, {"`usp` ring_inside", 30}}));
  const std::string all = legality_table();
  EXPECT_NE(all.find("Every H, H_kv and P: `ring`, `burst`, `auto`, `ring_self_attention`, "
                     "`balanced_ring`, `all_gather`, `group_cast`.\n"),
            std::string::npos);
}

/// What is shown as automatic is what a schedule without degrees does.
TEST(Legality, AutomaticDegreesAreThoseOfTheSchedule) {
  for (const std::string name : {"double_ring", "usp"}) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      for (const Heads heads : {Heads{24, 24}, Heads{24, 6}, Heads{24, 1}}) {
        const attention::HeadMasks mask(attention::Mask::causal(40));
        const auto layout = parallel::Layout::make(LayoutKind::contiguous, mask, 1, ranks);
        parallel::SchemeInputs inputs{
            mask, layout, {heads.q, heads.kv, 2, 2, runtime::DType::float32}};
        inputs.options.name = name;
        const auto counts = [&] {
          std::vector<std::map<int, std::int64_t>> sent;
          for (const auto& program : parallel::build_schedule(inputs).programs)
            sent.push_back(parallel::count(program).sent_to);
          return sent;
        };
        const auto automatic = counts();
        const auto degrees =
            parallel::automatic_degrees({inputs.options, ranks, heads.q, heads.kv});
        ASSERT_TRUE(degrees.has_value());
        inputs.options.outer = degrees->outer;
        inputs.options.inner = degrees->inner;
        EXPECT_EQ(counts(), automatic) << name << " P=" << ranks;
      }
    }
  }
  EXPECT_FALSE(parallel::automatic_degrees({}).has_value());
}

/// `balanced_ring`: contiguous, causal and documents; everything else is legal everywhere. Slices
/// and blocks are what a file says.
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
        }
        EXPECT_EQ(cells[i], expected) << scheme << " " << mask << " " << columns[i];
        EXPECT_TRUE(seen.emplace(scheme, mask, columns[i]).second);
      }
    }
  }
  EXPECT_EQ(seen.size(), parallel::scheme_names().size() * masks.size() * 5);
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
