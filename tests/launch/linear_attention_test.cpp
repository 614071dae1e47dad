// What `longhaul attention --kind` writes, number by number: against the token recurrence in
// double, over loopback and MPI.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "attention/linear.h"
#include "launch/attention.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"
#include "runtime/io/hdf5.h"
#include "tests/support/linear_file.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using attention::Mask;
using test::Gates;
using test::LinearFile;
using test::LinearValues;

const std::vector<std::int64_t> kDocuments{0, 1, 20, 20, 37};

class LinearAttention : public testing::Test {
 protected:
  LinearAttention() {
    options_.case_path = folder_.file("case.h5");
    options_.output_path = folder_.file("result.h5");
    options_.force = true;
    options_.communicator = "loopback";
  }

  static LinearFile file_of(const std::string& kind, bool with_states = true) {
    LinearFile file{.kind = kind};
    file.fill(7);
    if (with_states) file.fill_states(8);
    return file;
  }
  /// Runs a case in this process, over loopback; the results.
  LinearValues replay(const LinearFile& file, int ranks) {
    file.write(options_.case_path);
    options_.kind = file.kind;
    options_.normalize = file.normalize;
    options_.ranks = ranks;
    options_.mask.name = file.full ? "full" : file.documents.empty() ? "causal" : "documents";
    run();
    return test::read_linear_results(options_.output_path);
  }
  /// As the options are; what it printed.
  void run() {
    testing::internal::CaptureStdout();
    try {
      EXPECT_EQ(run_attention(options_), 0);
    } catch (const runtime::Error& error) {
      ADD_FAILURE() << error.what();
    }
    printed_ = testing::internal::GetCapturedStdout();
  }
  void expect_counted(const LinearFile& file) const;

  test::TempDirectory folder_;
  AttentionOptions options_;
  std::string printed_;
};

/// What the file says was sent is what its scheme's schedules count.
void LinearAttention::expect_counted(const LinearFile& file) const {
  const hdf5::File results = hdf5::File::open(options_.output_path);
  const Mask one = file.full                ? Mask::full(file.seq_len)
                   : file.documents.empty() ? Mask::causal(file.seq_len)
                                            : Mask::documents(file.documents);
  const attention::HeadMasks mask = one.repeated(file.batch);
  const auto layout = parallel::Layout::make(parallel::layout_from_name(options_.layout), mask,
                                             file.batch, options_.ranks);
  parallel::Shapes shapes{static_cast<int>(file.heads), static_cast<int>(file.key_heads), file.dim,
                          file.columns()};
  shapes.linear =
      parallel::LinearCall{.recurrence = file.rows.recurrence,
                           .initial_state = !file.initial_state.empty(),
                           .final_state = !file.full,
                           .slopes_gradient = file.rows.recurrence.decay == attention::Decay::head};
  const auto scheme =
      parallel::parse_scheme(results.string_attribute("scheme"), {}, parallel::Family::linear);
  std::vector<std::int64_t> sent(static_cast<std::size_t>(options_.ranks), 0);
  for (const auto direction : {parallel::Direction::forward, parallel::Direction::backward}) {
    const auto schedule = parallel::build_schedule({mask, layout, shapes, direction, {}, scheme});
    for (std::size_t rank = 0; rank < sent.size(); ++rank)
      sent[rank] += parallel::count(schedule.programs[rank]).sent_bytes;
  }
  EXPECT_EQ(results.dataset("sent_bytes", hdf5::Element::int64, 1).read<std::int64_t>(), sent);
  EXPECT_EQ(results.string_attribute("kind"), file.kind);
  EXPECT_EQ(results.string_attribute("layout"), options_.layout);
  EXPECT_EQ(results.int64_attribute("ranks"), options_.ranks);
}

TEST_F(LinearAttention, EveryKindMaskLayoutAndScheme) {
  std::set<std::string> cases;
  std::size_t turn = 0;
  for (const std::string kind : attention::recurrence_kinds()) {
    for (const std::string mask : {"causal", "documents", "full"}) {
      if (mask == "full" && kind != "linear") continue;
      LinearFile file = file_of(kind, false);
      file.full = mask == "full";
      if (file.full) file.fill(7);
      if (mask == "documents") file.documents = kDocuments;
      for (const std::string layout : {"contiguous", "zigzag", "document_zigzag", "balanced"}) {
        for (const std::string scheme :
             {"lasp", "lasp(replay=true)", "lasp2", "all_scan", "exscan"}) {
          if (file.full && scheme != "lasp2") continue;
          // A number of ranks in turn: parallel/linear_schemes_test.cpp has all.
          int ranks = std::array{1, 3, 8}[turn++ % 3];
          if (layout == "balanced") ranks = std::min(ranks, 3);
          if (!file.full && ranks % 2 != 0) {
            file.fill_states(9);
          } else {
            file.initial_state.clear();
            file.dfinal_state.clear();
          }
          SCOPED_TRACE(kind + ", " + mask + " over " + layout + " by " + scheme + " on " +
                       std::to_string(ranks));
          options_.layout = layout;
          options_.scheme = scheme;
          expect_near_reference(file, replay(file, ranks));
          expect_counted(file);
          if (HasFailure()) return;
          cases.insert(layout + scheme + std::to_string(ranks));
        }
      }
    }
  }
  EXPECT_EQ(cases.size(), 55u)
      << "pairs of a layout and a scheme on 1, 3 and 8 ranks, balanced on 1 and 3";
}

TEST_F(LinearAttention, GatesOfEveryStrength) {
  for (const std::string kind : {"decay", "scalar", "vector", "gated_delta", "kda"}) {
    for (const Gates gates : test::kAllGates) {
      SCOPED_TRACE(kind + ", " + test::name(gates));
      LinearFile file{.kind = kind, .batch = 1, .seq_len = 127};
      file.fill(3, gates);
      file.fill_states(4);
      expect_near_reference(file, replay(file, 3));
    }
  }
}

TEST_F(LinearAttention, ProcessesGiveTheSameBits) {
  for (const std::string kind : {"decay", "gated_delta"}) {
    LinearFile file = file_of(kind);
    file.documents = kDocuments;
    const LinearValues threads = replay(file, 3);
    const std::string output = folder_.file("processes.h5");
    const test::ProcessResult result = test::run_process(
        test::mpirun_command(3, {"attention", options_.case_path, "--kind", kind, "--mask",
                                 "documents", "--force", "--output", output}));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(test::read_linear_results(output) == threads);
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 2) << result.out;
  }
}

TEST_F(LinearAttention, Bfloat16) {
  for (const std::string kind : attention::recurrence_kinds()) {
    SCOPED_TRACE(kind);
    const LinearFile file = file_of(kind);
    options_.dtype = "bfloat16";
    expect_near_reference(file, replay(file, 3), 5e-3);
  }
}

TEST_F(LinearAttention, WithoutDout) {
  LinearFile file = file_of("kda");
  const LinearValues whole = replay(file, 3);
  LinearFile forward = file;
  forward.rows.dout.clear();
  const LinearValues of_state = replay(forward, 3);  // the gradient of the final state alone
  forward.dfinal_state.clear();
  const LinearValues results = replay(forward, 3);
  EXPECT_EQ(results.size(), 2u);
  for (const char* name : {"out", "final_state"}) {
    EXPECT_EQ(results.at(name), whole.at(name)) << name;
    EXPECT_EQ(of_state.at(name), whole.at(name)) << name;
  }
  std::ranges::fill(file.rows.dout, 0.0f);
  expect_near_reference(file, of_state);
}

/// Rows [begin, end) of every sequence.
std::vector<float> rows_of(const std::vector<float>& values, std::int64_t batch,
                           std::int64_t seq_len, std::int64_t begin, std::int64_t end) {
  std::vector<float> rows;
  const std::int64_t width = std::ssize(values) / (batch * seq_len);
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    const auto from = values.begin() + (sequence * seq_len + begin) * width;
    rows.insert(rows.end(), from, from + (end - begin) * width);
  }
  return rows;
}

TEST_F(LinearAttention, ADocumentOfNaNsLeavesTheOthersBits) {
  for (const std::string kind : attention::recurrence_kinds()) {
    for (const std::string scheme : {"lasp", "lasp(replay=true)", "lasp2", "all_scan", "exscan"}) {
      SCOPED_TRACE(kind + " by " + scheme);
      LinearFile file = file_of(kind, false);
      file.documents = {0, 5, 29, 37};
      options_.scheme = scheme;
      const LinearValues clean = replay(file, 4);
      EXPECT_EQ(printed_.find("not finite"), std::string::npos) << printed_;
      const std::int64_t rows = file.batch * file.seq_len;
      for (std::vector<float>* values : {&file.rows.q, &file.rows.k, &file.rows.v, &file.rows.dout,
                                         &file.rows.beta, &file.rows.log_decay}) {
        const std::int64_t width = std::ssize(*values) / rows;
        for (std::int64_t at = 5 * width; at < 29 * width; ++at)
          (*values)[static_cast<std::size_t>(at)] = std::numeric_limits<float>::quiet_NaN();
      }
      const LinearValues dirty = replay(file, 4);
      EXPECT_NE(printed_.find("not finite: out[0, 5, 0, 0] is nan; in the case, q[0, 5, 0, 0] is "
                              "nan"),
                std::string::npos)
          << printed_;
      for (const auto& [name, values] : clean) {
        if (name == "final_state" || std::ssize(values) % rows != 0) continue;
        for (const auto& [begin, end] : {std::pair{0, 5}, std::pair{29, 37}}) {
          EXPECT_EQ(rows_of(dirty.at(name), file.batch, file.seq_len, begin, end),
                    rows_of(values, file.batch, file.seq_len, begin, end))
              << name;
        }
      }
      EXPECT_EQ(dirty.at("final_state"), clean.at("final_state"));
    }
  }
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

/// A call that is cut inside a document, the state of the first part entering the second and its
/// gradient coming back, is the whole call.
TEST_F(LinearAttention, TwoCallsAreOne) {
  constexpr std::int64_t kCut = 19;
  for (const std::string kind : attention::recurrence_kinds()) {
    for (const bool normalize : {false, true}) {
      if (normalize && kind != "linear") continue;
      SCOPED_TRACE(kind);
      LinearFile whole = file_of(kind, false);
      if (normalize) whole = {.kind = kind, .normalize = true};
      if (normalize) whole.fill(7);
      options_.feature_map = normalize ? "elu1" : "identity";
      whole.fill_states(11);
      const LinearValues expected = replay(whole, 3);
      LinearFile late = whole.tokens(kCut, whole.seq_len), early = whole.tokens(0, kCut);
      early.initial_state = whole.initial_state;
      late.initial_state = replay(early, 3).at("final_state");
      late.dfinal_state = whole.dfinal_state;
      const LinearValues second = replay(late, 3);
      early.dfinal_state = second.at("dinitial_state");
      const LinearValues first = replay(early, 3);
      EXPECT_LE(distance(second.at("final_state"), expected.at("final_state")), 2e-6);
      EXPECT_LE(distance(first.at("dinitial_state"), expected.at("dinitial_state")), 2e-6);
      for (const auto& [name, values] : expected) {
        const bool slopes = kind == "decay" && name == "dlog_decay";
        if (name.ends_with("_state") || slopes) continue;
        const double bound = name == "dlog_decay" ? 1e-5 : 2e-6;
        EXPECT_LE(distance(first.at(name), rows_of(values, 2, 37, 0, kCut)), bound) << name;
        EXPECT_LE(distance(second.at(name), rows_of(values, 2, 37, kCut, 37)), bound) << name;
      }
    }
  }
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double silu_slope(double x) {
  const double s = 1 / (1 + std::exp(-x));
  return s * (1 + x * (1 - s));
}
double elu1(double x) { return x > 0 ? x + 1 : std::exp(x); }
double elu1_slope(double x) { return x > 0 ? 1 : std::exp(x); }
double relu(double x) { return std::max(x, 0.0); }
double relu_slope(double x) { return x > 0 ? 1 : 0; }

TEST_F(LinearAttention, FeatureMapsAndTheNormaliser) {
  const std::vector<std::pair<std::string, test::Map>> maps{{"identity", {}},
                                                            {"relu", {relu, relu_slope}},
                                                            {"silu", {silu, silu_slope}},
                                                            {"elu1", {elu1, elu1_slope}}};
  for (const auto& [name, map] : maps) {
    for (const std::string kind : {"linear", "vector", "gated_delta"}) {
      for (const bool normalize : {false, true}) {
        // Weights of either sign may add up to nearly nothing, which no float32 divides by well.
        if (normalize && (name != "elu1" || kind == "gated_delta")) continue;
        for (const bool full : {false, true}) {
          if (full && kind != "linear") continue;
          if (name == "elu1" && kind == "gated_delta") continue;  // its keys are longer than 1
          SCOPED_TRACE(name + ", " + kind);
          LinearFile file{.kind = kind, .normalize = normalize, .full = full};
          file.fill(13);
          if (!full && !normalize) file.fill_states(14);
          for (float& x : file.rows.k) x *= 0.5f;  // a map may lengthen keys
          options_.feature_map = name;
          expect_near_reference(file, replay(file, 3), 2e-6, map);
          expect_counted(file);
        }
      }
    }
  }
}

TEST_F(LinearAttention, StatesThatMayGrowAreReported) {
  LinearFile file = file_of("gated_delta", false);
  replay(file, 2);
  EXPECT_EQ(printed_.find("warning"), std::string::npos) << printed_;
  file.rows.beta[static_cast<std::size_t>((1 * 37 + 3) * 4 + 1)] = 2.5f;
  for (std::size_t d = 0; d < 8; ++d) file.rows.k[8 * (2 * 5 + 1) + d] *= 1.25f;
  replay(file, 2);
  for (const char* part : {"warning: beta[1, 3, 1] is 2.5, outside [0, 2] (as 1 element)",
                           "warning: the key k[0, 5, 1] has a norm of 1.25, above 1.01 (as 1 key)"})
    EXPECT_NE(printed_.find(part), std::string::npos) << part << " is not in\n" << printed_;
  LinearFile sums = file_of("scalar", false);  // a sum rule's states only add up
  for (std::size_t d = 0; d < 8; ++d) sums.rows.k[8 * (2 * 5 + 1) + d] *= 5;
  replay(sums, 2);
  EXPECT_EQ(printed_.find("warning"), std::string::npos) << printed_;
  replay(file, 2);
  options_.feature_map = "elu1";  // keys as the recurrence reads them
  run();
  EXPECT_NE(printed_.find("(as 148 keys)"), std::string::npos) << printed_;
}

TEST_F(LinearAttention, TheSchemeIsChosenAndSaidWhy) {
  const LinearFile file = file_of("gated_delta", false);
  replay(file, 2);
  EXPECT_NE(printed_.find("lasp(replay=true, groups=2) for gated_delta: a delta rule's sweeps that "
                          "pass the state on by 2 heads of q and k wait 1/2 of a sweep"),
            std::string::npos)
      << printed_;
  options_.scheme = "lasp2";
  replay(file, 2);
  EXPECT_EQ(printed_.find(" for gated_delta"), std::string::npos) << printed_;
}

}  // namespace
}  // namespace longhaul::launch
