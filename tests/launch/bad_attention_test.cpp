// What `longhaul attention` says to malformed cases and illegal combinations.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "runtime/io/hdf5.h"
#include "tests/support/refusal.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;
namespace hdf5 = runtime::hdf5;

/// Cases of `longhaul attention`, damaged one way at a time.
class BadAttentionTest : public RefusalTest {
 protected:
  static constexpr std::int64_t kBatch = 2, kTokens = 12, kHeads = 2, kDim = 4;

  template <class T>
  using Data = std::pair<hdf5::Extents, std::vector<T>>;
  struct Case {
    std::map<std::string, Data<float>> floats;
    std::map<std::string, Data<std::int64_t>> integers;
    std::map<std::string, Data<double>> doubles = {};
  };

  static Data<float> zeros(const hdf5::Extents& sizes) {
    std::int64_t elements = 1;
    for (const std::int64_t size : sizes) elements *= size;
    return {sizes, std::vector<float>(static_cast<std::size_t>(elements))};
  }
  static Case good() {
    Case right;
    for (const char* name : {"q", "k", "v", "dout"})
      right.floats[name] = zeros({kBatch, kTokens, kHeads, kDim});
    right.integers["documents"] = {{3}, {0, 5, 12}};
    right.integers["prefixes"] = {{2}, {2, 7}};
    right.integers["block_offsets"] = {{4}, {0, 3, 8, 12}};
    right.integers["blocks"] = {{3, 3}, {1, 0, 0, 1, 1, 0, 0, 1, 1}};
    right.integers["slices"] = {{2, 5}, {0, 6, 0, 6, 1, 6, 12, 0, 12, 1}};
    return right;
  }
  void write(const Case& which) const {
    fs::remove(path("case.h5"));
    hdf5::File file = hdf5::File::create(path("case.h5"));
    const auto write_all = [&]<class T>(const std::map<std::string, Data<T>>& datasets) {
      for (const auto& [name, data] : datasets) file.write<T>(name, data.first, data.second);
    };
    write_all(which.floats);
    write_all(which.integers);
    write_all(which.doubles);
    file.close();
  }
  static std::vector<std::string> replay(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"attention", "case.h5", "--output", "result.h5",
                                          "--force"};
    if (std::ranges::find(more, "--communicator") == more.end())
      arguments.insert(arguments.end(), {"--communicator", "loopback"});
    if (std::ranges::find(more, "--ranks") == more.end())
      arguments.insert(arguments.end(), {"--ranks", "3"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
};

TEST_F(BadAttentionTest, MalformedCasesAreDataErrors) {
  write(good());
  for (const char* mask : {"full", "causal", "documents", "slices", "shared_question",
                           "prefix_document", "block_sparse_variable"}) {
    const ProcessResult result = longhaul(replay({"--mask", mask}));
    EXPECT_EQ(result.exit_code, 0) << mask << result.err;
  }
  fs::remove(path("result.h5"));
  struct Malformed {
    const char* what;
    const char* mask;
    std::function<void(Case&)> damage;
    std::vector<std::string> parts;
  };
  const std::vector<Malformed> cases = {
      {"no q", "full", [](Case& c) { c.floats.erase("q"); }, {"'q'"}},
      {"no v", "full", [](Case& c) { c.floats.erase("v"); }, {"'v'"}},
      {"rank 3",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kTokens, kHeads, kDim});
       },
       {"'k'"}},
      {"float64",
       "full",
       [](Case& c) {
         c.floats.erase("q");
         c.doubles["q"] = {{1, 1, 1, 1}, {0}};
       },
       {"'q'", "float64"}},
      {"k of another length",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kBatch, 11, kHeads, kDim});
       },
       {"'k'", "11", "12"}},
      {"v of another batch",
       "full",
       [](Case& c) {
         c.floats["v"] = zeros({1, kTokens, kHeads, kDim});
       },
       {"'v'"}},
      {"k of another dim",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kBatch, kTokens, kHeads, 3});
       },
       {"'k'"}},
      {"heads that do not divide",
       "full",
       [](Case& c) {
         c.floats["k"] = c.floats["v"] = zeros({kBatch, kTokens, 3, kDim});
       },
       {"2 query heads over 3"}},
      {"no sequences",
       "full",
       [](Case& c) {
         for (const char* name : {"q", "k", "v", "dout"})
           c.floats[name] = zeros({0, kTokens, kHeads, kDim});
       },
       {"'q' is [0, 12, 2, 4]", "without a single sequence"}},
      {"no tokens",
       "causal",
       [](Case& c) {
         for (const char* name : {"q", "k", "v", "dout"})
           c.floats[name] = zeros({kBatch, 0, kHeads, kDim});
       },
       {"'q' is [2, 0, 2, 4]", "without a single token", "expected at least 1"}},
      {"no heads",
       "full",
       [](Case& c) {
         c.floats["q"] = c.floats["dout"] = zeros({kBatch, kTokens, 0, kDim});
       },
       {"'q' is [2, 12, 0, 4]", "without a single head"}},
      {"no key heads",
       "full",
       [](Case& c) {
         c.floats["k"] = c.floats["v"] = zeros({kBatch, kTokens, 0, kDim});
       },
       {"'k' is [2, 12, 0, 4]", "without a single head"}},
      {"heads of dim 0",
       "full",
       [](Case& c) {
         c.floats["q"] = c.floats["k"] = zeros({kBatch, kTokens, kHeads, 0});
       },
       {"'q' is [2, 12, 2, 0]", "without a single element of a head"}},
      {"values of dim 0",
       "full",
       [](Case& c) {
         c.floats["v"] = c.floats["dout"] = zeros({kBatch, kTokens, kHeads, 0});
       },
       {"'v' is [2, 12, 2, 0]", "without a single element of a head"}},
      {"k of float64",
       "full",
       [](Case& c) {
         const auto right = c.floats.extract("k").mapped();
         c.doubles["k"] = {right.first, {right.second.begin(), right.second.end()}};
       },
       {"'k'", "holds float64", "all float32"}},
      {"dout of another size",
       "full",
       [](Case& c) {
         c.floats["dout"] = zeros({kBatch, kTokens, 1, kDim});
       },
       {"'dout'"}},
      {"no documents",
       "documents",
       [](Case& c) { c.integers.erase("documents"); },
       {"'documents'"}},
      {"documents end early",
       "documents",
       [](Case& c) {
         c.integers["documents"].second = {0, 5, 11};
       },
       {"'documents'", "11", "12"}},
      {"documents begin late",
       "documents",
       [](Case& c) {
         c.integers["documents"].second = {1, 5, 12};
       },
       {"document"}},
      {"documents decrease",
       "documents",
       [](Case& c) {
         c.integers["documents"] = {{4}, {0, 7, 5, 12}};
       },
       {"document"}},
      {"no document",
       "documents",
       [](Case& c) {
         c.integers["documents"] = {{0}, {}};
       },
       {"'documents'"}},
      {"documents of rank 2",
       "documents",
       [](Case& c) {
         c.integers["documents"].first = {3, 1};
       },
       {"'documents'"}},
      {"no slices", "slices", [](Case& c) { c.integers.erase("slices"); }, {"'slices'"}},
      {"four columns",
       "slices",
       [](Case& c) {
         c.integers["slices"] = {{1, 4}, {0, 6, 0, 6}};
       },
       {"'slices'", "5"}},
      {"type 7",
       "slices",
       [](Case& c) { c.integers["slices"].second[9] = 7; },
       {"'slices'", "row 1", "type 7"}},
      {"type -1",
       "slices",
       [](Case& c) { c.integers["slices"].second[4] = -1; },
       {"'slices'", "row 0", "type -1"}},
      {"past the end",
       "slices",
       [](Case& c) { c.integers["slices"].second[6] = 13; },
       {"'slices'", "row 1", "13"}},
      {"backwards",
       "slices",
       [](Case& c) { c.integers["slices"].second[0] = 7; },
       {"'slices'", "row 0"}},
      {"slices of three heads",
       "slices",
       [](Case& c) {
         c.integers["slices"] = {{3, 1, 5}, std::vector<std::int64_t>(15)};
       },
       {"'slices'", "3 heads", "expected 2"}},
      {"slices of rank 4",
       "slices",
       [](Case& c) {
         c.integers["slices"].first = {1, 1, 2, 5};
       },
       {"'slices'", "rank 4"}},
      {"overlapping in head 1",
       "slices",
       [](Case& c) {
         c.integers["slices"] = {{2, 2, 5}, {0, 6, 0, 6, 1, 6, 12, 0, 12, 1,  //
                                             0, 6, 0, 6, 1, 5, 12, 0, 12, 1}};
       },
       {"'slices', head 1", "overlap"}},
      {"prefix of one too many",
       "prefix_document",
       [](Case& c) { c.integers["prefixes"].second[0] = 6; },
       {"'prefixes', row 0: 6"}},
      {"no documents",
       "prefix_document",
       [](Case& c) { c.integers.erase("documents"); },
       {"'documents'"}},
      {"a prefix less",
       "shared_question",
       [](Case& c) {
         c.integers["prefixes"] = {{1}, {2}};
       },
       {"'prefixes'"}},
      {"block offsets end early",
       "shared_question",
       [](Case& c) { c.integers["block_offsets"].second[3] = 11; },
       {"'block_offsets'", "11", "12"}},
      {"no block offsets",
       "block_sparse_variable",
       [](Case& c) { c.integers.erase("block_offsets"); },
       {"'block_offsets'"}},
      {"no blocks",
       "block_sparse_variable",
       [](Case& c) { c.integers.erase("blocks"); },
       {"'blocks'"}},
      {"a block that is 2",
       "block_sparse_variable",
       [](Case& c) { c.integers["blocks"].second[5] = 2; },
       {"'blocks', row 1, column 2: 2"}},
      {"blocks of other borders",
       "block_sparse_variable",
       [](Case& c) {
         c.integers["blocks"] = {{2, 2}, {1, 1, 1, 1}};
       },
       {"'blocks' is [2, 2]", "[3, 3]"}},
      {"blocks of float",
       "block_sparse_variable",
       [](Case& c) {
         c.integers.erase("blocks");
         c.floats["blocks"] = {{3, 3}, std::vector<float>(9)};
       },
       {"'blocks'", "float32"}},
      {"overlapping", "slices", [](Case& c) { c.integers["slices"].second[5] = 3; }, {"overlap"}},
  };
  for (const Malformed& malformed : cases) {
    SCOPED_TRACE(malformed.what);
    Case which = good();
    malformed.damage(which);
    write(which);
    std::vector<std::string> parts = malformed.parts;
    parts.push_back("case.h5");
    expect_refused(65, parts, replay({"--mask", malformed.mask}));
  }
  write_text(path("case.h5"), "not an HDF5 file");
  expect_refused(65, {"case.h5"}, replay());
}

TEST_F(BadAttentionTest, IllegalCombinationsAreConfigurationErrors) {
  write(good());
  const std::vector<std::pair<std::vector<std::string>, std::string>> illegal = {
      {{"--scheme", "wring"}, "ring"},
      {{"--layout", "zigzack"}, "contiguous, zigzag"},
      {{"--mask", "document"}, "full, causal, full_document, causal_document, documents"},
      {{"--mask", "causal_window"}, "mask causal_window needs --window"},
      {{"--mask", "causal_window", "--window", "0"}, "--window 0; expected at least 1"},
      {{"--mask", "full_window", "--window", "-3"}, "--window -3"},
      {{"--mask", "causal", "--window", "3"}, "mask causal: --window 3 is not used"},
      {{"--mask", "slices", "--block", "3"}, "--block 3 is not used"},
      {{"--mask", "global_window", "--window", "3"}, "needs --global"},
      {{"--mask", "global_window", "--window", "3", "--global", "13"},
       "--global 13; expected 0 to 12"},
      {{"--mask", "prefix_causal", "--prefix", "-1"}, "--prefix -1"},
      {{"--mask", "prefix_causal"}, "needs --prefix"},
      {{"--mask", "block_sparse"}, "needs --block"},
      {{"--mask", "block_causal_document"}, "needs --block"},
      {{"--dtype", "float16"}, "--dtype float16: expected float32 or bfloat16"},
      {{"--dtype", "float64"}, "--dtype float64: expected float32 or bfloat16"},
      {{"--wire-dtype", "int8"}, "--wire-dtype int8: expected float32 or bfloat16"},
      {{"--communicator", "tcp"}, "mpi, loopback or nccl"},
      {{"--communicator", "nccl"}, "--device cuda"},
      {{"--device", "tpu"}, "cpu or cuda"},
  };
  for (const auto& [arguments, part] : illegal) {
    SCOPED_TRACE(arguments[1]);
    expect_refused(78, {part}, replay(arguments));
  }
  expect_refused(64, {"--ranks"}, replay({"--ranks", "0"}));
  expect_refused(64, {"--window"}, replay({"--mask", "causal_window", "--window", "ten"}));
  expect_refused(64, {"--window"},
                 replay({"--mask", "causal_window", "--window", "99999999999999999999"}));

  Case without = good();  // neither the number nor the dataset in its place
  without.integers.erase("prefixes");
  without.integers.erase("block_offsets");
  without.integers.erase("documents");
  write(without);
  expect_refused(78, {"needs --block or dataset 'documents'"},
                 replay({"--mask", "causal_blockwise"}));
}

TEST_F(BadAttentionTest, SchemesThatDoNotSuitAreRefusedWithTheNearestThatDo) {
  write(good());
  const std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> illegal = {
      {{"--scheme", "balanced_ring", "--layout", "zigzag"}, {"layout zigzag", "contiguous"}},
      {{"--scheme", "balanced_ring", "--layout", "contiguous", "--mask", "full"},
       {"later key", "scheme ring"}},
      {{"--scheme", "ulysses", "--ranks", "5"}, {"5 ranks cannot share", "usp"}},
      {{"--scheme", "double_ring(outer=2,inner=2)"}, {"3 ranks", "double_ring(outer=1, inner=3)"}},
      {{"--scheme", "double_ring(outer2)"}, {"character 19", "expected '='"}},
      {{"--scheme", "usp(around=ulysses)"}, {"ulysses", "double_ring"}},
      {{"--scheme", "usp(nesting=beside)"}, {"beside", "ring_inside"}},
      {{"--scheme", "double_ring(backward=both)"}, {"both", "burst"}},
      {{"--scheme", "double_ring(inner=3,)"}, {"character 21", "expected an argument"}},
      {{"--scheme", "ring(inner=3)"}, {"character 6", "ring takes no arguments"}},
      {{"--scheme", "ulysses(around=burst)"}, {"ulysses takes no arguments"}},
      {{"--scheme", "usp(backward=burst)"},
       {"usp has no argument 'backward'", "heads, nesting or around"}},
      {{"--scheme", "auto(backward=ring)"}, {"unknown scheme 'auto'", "expected ring, burst"}},
      {{"--timeout-seconds", "0"}, {"--timeout-seconds 0"}},
      {{"--softcap", "1e39"}, {"--softcap 1e+39"}},
      {{"--softcap", "1e-40"}, {"--softcap 1e-40"}},
      {{"--weighting", "sigmoid", "--bias", "1e39"}, {"--bias 1e+39"}},
      {{"--weighting", "relu"}, {"relu", "sigmoid"}},
      {{"--softcap", "-1"}, {"--softcap -1"}},
      {{"--bias", "2"}, {"--bias 2", "sigmoid"}},
  };
  for (const auto& [arguments, parts] : illegal) {
    SCOPED_TRACE(arguments[1] + " " + (arguments.size() > 3 ? arguments[3] : ""));
    expect_refused(78, parts, replay(arguments));
  }
  // Options that schemes had before they were expressions.
  const std::vector<std::pair<std::vector<std::string>, std::string>> old = {
      {{"--scheme", "double_ring", "--degrees", "outer=1,inner=3", "--backward", "burst"},
       "--degrees outer=1,inner=3: a scheme is an expression now; give --scheme "
       "'double_ring(outer=1, inner=3, backward=burst)' instead"},
      {{"--scheme", "usp", "--nesting", "ring_inside"},
       "--nesting ring_inside: a scheme is an expression now; give --scheme "
       "'usp(nesting=ring_inside)' instead"},
      {{"--scheme", "usp", "--around", "double_ring", "--backward", "ring"},
       "--scheme 'usp(around=double_ring(backward=ring))' instead"},
      // The other degree follows from the ranks of --ranks 3.
      {{"--scheme", "usp", "--degrees", "outer=3"}, "--scheme 'usp(heads=1)' instead"},
      {{"--backward", "burst"}, "give --scheme 'ring' instead"},
      {{"--scheme", "double_ring", "--degrees", "outer2"}, "give, for example, --scheme"}};
  for (const auto& [arguments, part] : old) {
    SCOPED_TRACE(part);
    expect_refused(64, {part}, replay(arguments));
  }
  Case sinks = good();
  sinks.floats["sinks"] = {{kHeads}, std::vector<float>(kHeads)};
  write(sinks);
  expect_refused(78, {"sinks", "sigmoid"}, replay({"--weighting", "sigmoid"}));
  sinks.floats["sinks"] = {{kHeads + 1}, std::vector<float>(kHeads + 1)};
  write(sinks);
  expect_refused(65, {"'sinks'"}, replay());
}

TEST_F(BadAttentionTest, Float16IsToldWhatACaseHolds) {
  // The library of the program writes no float16: the values' type in the file is replaced.
  Case which = good();
  write(which);
  const hid_t file = H5Fopen(path("case.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t half = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(half, 15, 10, 5, 0, 10);
  H5Tset_size(half, 2);
  H5Tset_ebias(half, 15);
  const std::array<hsize_t, 4> sizes{kBatch, kTokens, kHeads, kDim};
  const hid_t space = H5Screate_simple(4, sizes.data(), nullptr);
  H5Ldelete(file, "q", H5P_DEFAULT);
  const hid_t dataset = H5Dcreate2(file, "q", half, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  EXPECT_GE(dataset, 0);
  for (const auto& close : {H5Dclose(dataset), H5Sclose(space), H5Tclose(half), H5Fclose(file)})
    EXPECT_GE(close, 0);
  expect_refused(65, {"case.h5", "'q'", "a float type of 2 bytes", "all float32"}, replay());
}

TEST_F(BadAttentionTest, ScoresThatLeaveFloat32) {
  // Query 7 of the second sequence, head 1, and key 3 of it: causal, so one sees the other.
  const std::size_t query = ((kTokens + 7) * kHeads + 1) * kDim,
                    key = ((kTokens + 3) * kHeads + 1) * kDim;
  const auto with = [&](float q, float k0, float k1) {
    Case which = good();
    for (std::size_t d = 0; d < 2; ++d) which.floats["q"].second[query + d] = q;
    which.floats["k"].second[key] = k0;
    which.floats["k"].second[key + 1] = k1;
    write(which);
  };
  const std::vector<std::string> parts{"case.h5", "q[1, 7, 1]", "k[1, 3, 1]", "float32", "scale"};
  with(1e30f, -1e30f, -1e30f);  // -inf: would look masked
  expect_refused(65, parts, replay());
  expect_refused(65, parts, replay({"--scheme", "group_cast", "--dtype", "bfloat16"}));
  with(1e30f, 1e30f, 1e30f);  // +inf
  expect_refused(65, parts, replay());
  with(1e30f, -1e30f, 1e30f);  // 0, by way of infinity
  expect_refused(65, parts, replay());
  // What no query sees is nobody's score, and a cap or a sigmoid gives such a one its weight.
  const auto expect_done = [&](const std::vector<std::string>& more) {
    const ProcessResult result = longhaul(replay(more));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_FALSE(has(result.out, "not finite")) << result.out;
    fs::remove(path("result.h5"));
  };
  with(1e30f, -1e30f, -1e30f);
  expect_done({"--softcap", "30"});
  expect_done({"--weighting", "sigmoid"});
  expect_done({"--mask", "causal_window", "--window", "4"});
  with(1e18f, 1e18f, 1e18f);  // large, and held
  expect_done({});
}

TEST_F(BadAttentionTest, ResultsThatAreNotFinite) {
  const auto with = [&](const char* name, float value) {
    Case which = good();
    std::ranges::fill(which.floats[name].second, value);
    which.floats["v"].second[0] = 1;
    write(which);
  };
  // Of a finite case: 12 values of 3e38 leave float32 before they are divided by their number.
  with("v", 3e38f);
  expect_refused(70, {"out[0, 1, 0, 1] is inf", "smaller 'v' or 'dout'"}, replay());
  with("dout", 3.4e38f);
  expect_refused(65, {"dout[0, 0, 0, 0] is 3.4e+38", "infinity in bfloat16", "--dtype float32"},
                 replay({"--dtype", "bfloat16"}));
  // Of a case that holds them itself: shown, and said.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  with("k", nan);
  ProcessResult result = longhaul(replay());
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "not finite: out[0, 0, 0, 0] is nan; in the case, k[0, 0, 0, 0]"))
      << result.out;
  Case unseen = good();  // the last key of each sequence, which only the last query sees
  unseen.floats["k"].second[(kTokens - 1) * kHeads * kDim] = nan;
  write(unseen);
  result = longhaul(replay({"--mask", "causal_document"}));
  EXPECT_TRUE(has(result.out, "not finite: out[0, 11, 0, 0] is nan; in the case, k[0, 11, 0, 0]"))
      << result.out;
  // Every key of a row at -inf: (0, -inf) would say that it sees none.
  Case lost = good();
  std::ranges::fill(lost.floats["q"].second, 1.0f);
  std::ranges::fill(lost.floats["k"].second, -std::numeric_limits<float>::infinity());
  lost.floats.erase("dout");
  write(lost);
  result = longhaul(replay());
  EXPECT_TRUE(has(result.out, "which sees keys, is -inf; in the case, k[0, 0, 0, 0] is -inf"))
      << result.out;
}

TEST_F(BadAttentionTest, RanksThatMpirunDidNotStart) {
  write(good());
  const ProcessResult result =
      mpirun(3, {"attention", "case.h5", "--output", "result.h5", "--ranks", "2"});
  EXPECT_EQ(result.exit_code, 69) << result.err;
  EXPECT_TRUE(has(result.err, "mpirun -np 2")) << result.err;
  EXPECT_FALSE(fs::exists(path("result.h5")));
}

}  // namespace
}  // namespace longhaul::test
