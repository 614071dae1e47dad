// The table of what is legal: enumerated here from the rules in words, held against what the
// program refuses, prints and runs.
#include <gtest/gtest.h>

#include "attention/named_masks.h"
#include "launch/schemes.h"
#include "parallel/layout.h"
#include "parallel/verifier.h"
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
        for (int ranks = 1; ranks <= 8; ++ranks) {
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
            EXPECT_FALSE(refusal->nearest.empty());
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
    return refused ? refused->reason + "; use " + refused->nearest : "";
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
