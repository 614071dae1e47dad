// What `longhaul attention --kind` says to malformed cases and illegal combinations.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>

#include "attention/linear.h"
#include "runtime/io/hdf5.h"
#include "tests/support/linear_file.h"
#include "tests/support/refusal.h"

namespace longhaul::test {
namespace {

namespace hdf5 = runtime::hdf5;

class BadLinearAttention : public RefusalTest {
 protected:
  static LinearFile good(const std::string& kind) {
    LinearFile file{.kind = kind, .seq_len = 12};
    file.fill(5);
    return file;
  }
  static std::vector<std::string> replay(const std::string& kind,
                                         const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"attention", "case.h5", "--output", "result.h5", "--kind",
                                          kind,        "--ranks", "3",        "--force"};
    if (std::ranges::find(more, "--communicator") == more.end())
      arguments.insert(arguments.end(), {"--communicator", "loopback"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  /// A dataset more.
  void add(const char* name, const hdf5::Extents& sizes, float value = 0) const {
    std::int64_t elements = 1;
    for (const std::int64_t size : sizes) elements *= size;
    const hdf5::File old = hdf5::File::open(path("case.h5"));
    hdf5::File file = hdf5::File::create(path("more.h5"));
    for (const std::string& kept : old.names()) {
      const hdf5::Dataset dataset = old.dataset(kept);
      if (kept != name) file.write<float>(kept, dataset.info().sizes, dataset.read<float>());
    }
    if (elements > 0) {
      file.write<float>(name, sizes, std::vector<float>(static_cast<std::size_t>(elements), value));
    }
    file.close();
    std::filesystem::rename(path("more.h5"), path("case.h5"));
  }
};

TEST_F(BadLinearAttention, MalformedCasesAreDataErrors) {
  struct Malformed {
    const char* kind;
    const char* dataset;
    hdf5::Extents sizes;  ///< of the dataset instead; {0}: it is missing
    std::vector<std::string> parts;
  };
  const std::vector<Malformed> cases = {
      {"linear", "q", {0}, {"'q'"}},
      {"linear", "k", {2, 12, 4, 8}, {"'k' is [2, 12, 4, 8]", "[2, 12, 2, 8]"}},
      {"linear", "v", {2, 11, 4, 5}, {"'v'", "11"}},
      {"linear", "v", {2, 12, 3, 5}, {"3 value heads over 2 heads of 'q' and 'k'"}},
      {"linear", "dout", {2, 12, 4, 6}, {"'dout'", "[2, 12, 4, 5]"}},
      {"decay", "log_decay", {0}, {"'log_decay'", "--kind decay needs", "[4]"}},
      {"decay", "log_decay", {3}, {"'log_decay' is [3]", "[4]"}},
      {"scalar", "log_decay", {2, 12, 4, 8}, {"'log_decay'", "4 dims", "expected 3"}},
      {"vector", "log_decay", {2, 12, 4}, {"'log_decay'", "3 dims", "expected 4"}},
      {"gated_delta", "log_decay", {2, 12, 2}, {"'log_decay'", "[2, 12, 4]"}},
      {"kda", "beta", {0}, {"'beta'", "--kind kda needs", "[2, 12, 4]"}},
      {"delta", "beta", {2, 12, 2}, {"'beta' is [2, 12, 2]", "[2, 12, 4]"}},
      {"delta", "initial_state", {2, 4, 5, 8}, {"'initial_state'", "[2, 4, 8, 5]"}},
      {"delta", "dfinal_state", {1, 4, 8, 5}, {"'dfinal_state'", "[2, 4, 8, 5]"}},
  };
  for (const Malformed& malformed : cases) {
    SCOPED_TRACE(std::string(malformed.kind) + ", " + malformed.dataset);
    good(malformed.kind).write(path("case.h5"));
    add(malformed.dataset, malformed.sizes, -0.5f);
    std::vector<std::string> parts = malformed.parts;
    parts.push_back("case.h5");
    expect_refused(65, parts, replay(malformed.kind));
  }
  good("delta").write(path("case.h5"));  // with --normalize states have a column more
  add("initial_state", {2, 4, 8, 5});
  expect_refused(65, {"'initial_state'", "[2, 4, 8, 6]"}, replay("delta", {"--normalize"}));
  good("delta").write(path("case.h5"));
  expect_refused(65, {"documents"}, replay("delta", {"--mask", "documents"}));
}

TEST_F(BadLinearAttention, ADecayThatGrowsIsNamed) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"decay", "log_decay[3]"},
      {"scalar", "log_decay[0, 7, 3]"},
      {"gated_delta", "log_decay[0, 7, 3]"},
      {"vector", "log_decay[0, 0, 3, 7]"},
      {"kda", "log_decay[0, 0, 3, 7]"}};
  for (const auto& [kind, element] : cases) {
    LinearFile file = good(kind);
    file.rows.log_decay[kind == "decay" ? 3 : 31] = 0.25f;
    file.write(path("case.h5"));
    expect_refused(65, {element + " is 0.25", "expected at most 0", "case.h5"}, replay(kind));
  }
}

TEST_F(BadLinearAttention, NumbersThatBfloat16DoesNotHold) {
  LinearFile file = good("linear");
  file.rows.v[5] = std::numeric_limits<float>::max();
  file.write(path("case.h5"));
  expect_refused(65, {"v[0, 0, 1, 0]", "bfloat16"}, replay("linear", {"--dtype", "bfloat16"}));
  file = good("linear");
  for (float& x : file.rows.v) x = 3e38f;
  file.write(path("case.h5"));
  expect_refused(70, {"every number of the case is finite", "Nothing was written"},
                 replay("linear"));
}

TEST_F(BadLinearAttention, IllegalCombinationsAreConfigurationErrors) {
  struct Illegal {
    const char* kind;
    std::vector<std::string> options;
    std::string part;
  };
  const std::vector<Illegal> illegal = {
      {"retnet", {}, "unknown kind 'retnet'; expected one of softmax, linear, decay"},
      {"delta", {"--scheme", "ring"}, "spreads softmax attention"},
      {"softmax", {"--scheme", "lasp2"}, "spreads recurrences"},
      {"delta", {"--scheme", "lasp3"}, "lasp2"},
      {"delta", {"--scheme", "lasp(replay=true, groups=3)"}, "groups=3 of 2 key heads"},
      {"delta", {"--layout", "striped"}, "layout zigzag"},
      {"linear", {"--layout", "striped", "--scheme", "lasp"}, "layout zigzag"},
      {"decay", {"--mask", "full"}, "--mask full with --kind decay"},
      {"kda", {"--mask", "full"}, "--mask full with --kind kda"},
      {"linear", {"--mask", "full", "--scheme", "lasp"}, "use scheme lasp2"},
      {"linear", {"--mask", "causal_window", "--window", "4"}, "--mask causal_window"},
      {"linear", {"--mask", "prefix_causal", "--prefix", "4"}, "--mask prefix_causal"},
      {"linear", {"--mask", "documents", "--window", "4"}, "--window 4"},
      {"linear", {"--softcap", "30"}, "--softcap with --kind linear"},
      {"linear", {"--bias", "1"}, "--bias with --kind linear"},
      {"linear", {"--weighting", "softmax"}, "--weighting with --kind linear"},
      {"linear", {"--wire-dtype", "bfloat16"}, "--wire-dtype with --kind linear"},
      {"linear", {"--feature-map", "gelu"}, "'gelu'; take one of identity, relu, silu, elu1"},
      {"softmax", {"--feature-map", "relu"}, "--feature-map: softmax"},
      {"softmax", {"--normalize"}, "--normalize: softmax"},
      {"linear", {"--dtype", "float16"}, "--dtype float16"},
  };
  for (const Illegal& one : illegal) {
    SCOPED_TRACE(one.part);
    const bool exists =
        std::ranges::count(attention::recurrence_kinds(), std::string(one.kind)) != 0;
    good(exists ? one.kind : "linear").write(path("case.h5"));
    expect_refused(78, {one.part}, replay(one.kind, one.options));
  }
  good("linear").write(path("case.h5"));
  add("sinks", {4});
  expect_refused(78, {"'sinks'"}, replay("linear"));
  good("gated_delta").write(path("case.h5"));
  expect_refused(78, {"kind delta has no use for", "'log_decay'"}, replay("delta"));
  expect_refused(78, {"kind scalar has no use for", "'beta'"}, replay("scalar"));
  for (const char* state : {"initial_state", "dfinal_state"}) {
    good("linear").write(path("case.h5"));
    add(state, {2, 4, 8, 5});
    expect_refused(78, {state, "--mask full"}, replay("linear", {"--mask", "full"}));
  }
}

}  // namespace
}  // namespace longhaul::test
