// How what was written before schemes were expressions is written now.
#include "launch/old_schemes.h"

#include <gtest/gtest.h>

namespace longhaul::launch {
namespace {

using Text = std::optional<std::string>;

struct Case {
  std::string scheme;
  OldSchemeOptions options;
  std::optional<std::int64_t> ranks;
  Text replaced;
};

TEST(OldSchemes, TheExpressionSaysWhatNameAndOptionsSaid) {
  const Case cases[] = {
      {"ring", {"outer=2,inner=4", "ring_inside", "burst", "burst"}, {}, "ring"},
      {"auto", {"auto", "heads_inside", "ring", "auto"}, {}, "auto"},
      {"double_ring", {"auto", "heads_inside", "ring", "auto"}, {}, "double_ring"},
      {"double_ring", {"outer=2,inner=4", {}, {}, {}}, {}, "double_ring(outer=2, inner=4)"},
      {"double_ring", {"inner=127", {}, {}, "burst"}, {}, "double_ring(inner=127, backward=burst)"},
      {"usp", {"auto", "heads_inside", "ring", "auto"}, {}, "usp"},
      // The degree inside shares heads, or outside it does.
      {"usp", {"outer=2,inner=4", {}, {}, {}}, {}, "usp(heads=4)"},
      {"usp", {"outer=2,inner=4", "ring_inside", {}, {}}, {}, "usp(heads=2, nesting=ring_inside)"},
      {"usp", {"inner=4", {}, "burst", {}}, {}, "usp(heads=4, around=burst)"},
      {"usp", {"outer=2", {}, {}, {}}, 14, "usp(heads=7)"},
      {"usp", {"outer=2", {}, {}, {}}, {}, {}},
      {"usp", {"outer=2", {}, {}, {}}, 15, {}},
      {"usp", {"inner=5", "ring_inside", {}, {}}, 15, "usp(heads=3, nesting=ring_inside)"},
      {"usp", {{}, {}, "double_ring", "burst"}, {}, "usp(around=double_ring(backward=burst))"},
      {"usp", {{}, {}, "ring", "burst"}, {}, "usp"},
      {"usp(heads=2)", {"inner=4", {}, {}, {}}, {}, "usp(heads=2)"},
      {"double_ring", {"outer=two", {}, {}, {}}, {}, {}},
      {"double_ring", {"inner=0", {}, {}, {}}, {}, {}},
      {"double_ring", {"inner=2,inner=2", {}, {}, {}}, {}, {}},
      {"double_ring", {"", {}, {}, {}}, {}, {}},
      {"double_ring", {{}, {}, {}, "both"}, {}, {}},
      {"usp", {{}, {}, "ulysses", {}}, {}, {}},
      {"usp", {{}, "beside", {}, {}}, {}, {}}};
  for (const Case& one : cases) {
    const Text replaced = replace_old_options(one.scheme, one.options, one.ranks);
    EXPECT_EQ(replaced, one.replaced) << one.scheme << " " << one.options.degrees.value_or("-")
                                      << " got " << replaced.value_or("nothing");
  }
}

TEST(OldSchemes, EverySchemeOfASwitchIsReplaced) {
  const OldSchemeOptions options{"outer=2,inner=3", {}, "double_ring", "burst"};
  EXPECT_EQ(replace_old_options_in_switch("5:burst,10:double_ring,12:usp", options, {}),
            "5:burst,10:double_ring(outer=2, inner=3, backward=burst),12:usp(heads=3, "
            "around=double_ring(backward=burst))");
  EXPECT_EQ(replace_old_options_in_switch("none", options, {}), "none");
}

TEST(OldSchemes, AStoredConfigurationIsTranslated) {
  const std::string old =
      "[model]\nhidden_size = 8\n\n[parallelism]\ncontext_parallel_degree = 6\n"
      "context_parallel_scheme = \"usp\"\ncontext_parallel_degrees = \"outer=2\"\n"
      "context_parallel_nesting = \"heads_inside\"\ncontext_parallel_around = \"burst\"\n"
      "context_parallel_backward = \"auto\"\ncontext_parallel_switch = \"3:double_ring\"\n"
      "context_parallel_layout = \"zigzag\"\n\n[debug]\nseed = 1\n";
  const std::string translated =
      "[model]\nhidden_size = 8\n\n[parallelism]\ncontext_parallel_degree = 6\n"
      "context_parallel_scheme = \"usp(heads=3, around=burst)\"\n"
      "context_parallel_switch = \"3:double_ring(outer=2)\"\n"
      "context_parallel_layout = \"zigzag\"\n\n[debug]\nseed = 1\n";
  EXPECT_EQ(translate_config(old), translated);
  EXPECT_EQ(translate_config(translated), translated);
  EXPECT_EQ(translate_config("[parallelism\n"), "[parallelism\n");
  EXPECT_EQ(translate_config(""), "");
}

}  // namespace
}  // namespace longhaul::launch
