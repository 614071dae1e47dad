// What `longhaul attention` writes, number by number: against the dense reference, over loopback
// and MPI.
#include <gtest/gtest.h>

#include "launch/attention_case.h"
#include "parallel/schemes/scheme.h"
#include "runtime/io/hdf5.h"
#include "tests/support/attention_case.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using attention::Mask;
using attention::Slice;

constexpr std::int64_t kBatch = 2, kSeqLen = 37, kHeads = 4, kKvHeads = 2, kDim = 16, kValueDim = 8;

struct NamedMask {
  const char* name;
  Mask one;  // of one sequence
};

const std::vector<std::int64_t> kDocuments{0, 1, 20, 20, 37};

/// One slice of each type, on separate rows and keys.
const std::vector<std::int64_t> kSlices{0,  9,  0,  9,  0,  //
                                        9,  20, 3,  17, 1,  //
                                        20, 30, 15, 37, 2,  //
                                        30, 37, 10, 30, 3};

/// kSlices by the definition of the types, pair by pair, as one slice a row.
Mask slices_pair_by_pair() {
  std::vector<Slice> rows;
  for (std::size_t s = 0; s < kSlices.size(); s += 5) {
    const std::int64_t q0 = kSlices[s], q1 = kSlices[s + 1], k0 = kSlices[s + 2],
                       k1 = kSlices[s + 3], type = kSlices[s + 4];
    for (std::int64_t q = q0; q < q1; ++q) {
      // The right edge ends at the bottom right corner, the left edge starts at the top left one.
      const std::int64_t end = (type & 1) != 0 ? k1 - (q1 - 1 - q) : k1;
      const std::int64_t begin = (type & 2) != 0 ? k0 + (q - q0) : k0;
      if (std::max(begin, k0) < std::min(end, k1))
        rows.push_back({q, q + 1, std::max(begin, k0), std::min(end, k1)});
    }
  }
  return Mask::from_slices(kSeqLen, rows);
}

/// The case file and the same problem for the reference.
test::AttentionCase write_case(const std::string& path, const Mask& mask, bool with_dout,
                               double scale) {
  const Mask all = mask.repeated(kBatch);
  test::AttentionCase c{all.tokens(), all.tokens(), kHeads,      kKvHeads,
                        kDim,         kValueDim,    all.slices()};
  c.fill(21);
  if (scale != 0) c.scale = static_cast<float>(scale);
  hdf5::File file = hdf5::File::create(path);
  file.write<float>("q", {kBatch, kSeqLen, kHeads, kDim}, c.q);
  file.write<float>("k", {kBatch, kSeqLen, kKvHeads, kDim}, c.k);
  file.write<float>("v", {kBatch, kSeqLen, kKvHeads, kValueDim}, c.v);
  if (with_dout) file.write<float>("dout", {kBatch, kSeqLen, kHeads, kValueDim}, c.dout);
  file.write<std::int64_t>("documents", {static_cast<std::int64_t>(kDocuments.size())}, kDocuments);
  file.write<std::int64_t>("slices", {static_cast<std::int64_t>(kSlices.size() / 5), 5}, kSlices);
  if (scale != 0) file.set_attribute("scale", scale);
  file.close();
  return c;
}

std::vector<float> read(const hdf5::File& file, const char* name, const hdf5::Extents& sizes) {
  const hdf5::Dataset dataset =
      file.dataset(name, hdf5::Element::float32, static_cast<int>(sizes.size()));
  EXPECT_EQ(dataset.info().sizes, sizes) << name;
  return dataset.read<float>();
}

test::AttentionResult read_result(const hdf5::File& file) {
  test::AttentionResult result;
  result.out = read(file, "out", {kBatch, kSeqLen, kHeads, kValueDim});
  result.dq = read(file, "dq", {kBatch, kSeqLen, kHeads, kDim});
  result.dk = read(file, "dk", {kBatch, kSeqLen, kKvHeads, kDim});
  result.dv = read(file, "dv", {kBatch, kSeqLen, kKvHeads, kValueDim});
  const std::vector<float> lse = read(file, "lse", {kBatch, kHeads, kSeqLen});
  for (std::int64_t b = 0; b < kBatch; ++b) {
    for (std::int64_t s = 0; s < kSeqLen; ++s) {
      for (std::int64_t h = 0; h < kHeads; ++h)
        result.lse.push_back(lse[static_cast<std::size_t>((b * kHeads + h) * kSeqLen + s)]);
    }
  }
  return result;
}

void expect_counts(const hdf5::File& file, const test::AttentionCase& c, const std::string& layout,
                   int ranks) {
  const Mask mask = Mask::from_slices(c.q_rows, c.bands);
  const auto tokens =
      parallel::Layout::make(parallel::layout_from_name(layout), mask, kBatch, ranks);
  std::vector<std::int64_t> sent(static_cast<std::size_t>(ranks), 0),
      area(static_cast<std::size_t>(ranks), 0);
  for (const auto direction : {parallel::Direction::forward, parallel::Direction::backward}) {
    const parallel::SchemeInputs inputs{
        mask, tokens, {kHeads, kKvHeads, kDim, kValueDim, runtime::DType::float32}, direction};
    const auto schedule = parallel::build_schedule(parallel::scheme_from_name("ring"), inputs);
    for (std::size_t rank = 0; rank < sent.size(); ++rank) {
      const parallel::Count count = parallel::count(schedule.programs[rank], schedule.shapes);
      sent[rank] += count.sent_bytes;
      area[rank] = count.area;
    }
  }
  EXPECT_EQ(file.dataset("sent_bytes", hdf5::Element::int64, 1).read<std::int64_t>(), sent);
  EXPECT_EQ(file.dataset("area", hdf5::Element::int64, 1).read<std::int64_t>(), area);
  EXPECT_EQ(file.string_attribute("scheme"), "ring");
  EXPECT_EQ(file.string_attribute("layout"), layout);
  EXPECT_EQ(file.int64_attribute("ranks"), ranks);
  EXPECT_GT(file.float64_attribute("seconds"), 0);
}

void run(const std::vector<std::string>& command) {
  const test::ProcessResult result = test::run_process(command, {});
  ASSERT_EQ(result.exit_code, 0) << result.err;
}

TEST(AttentionVerb, EveryMaskAndLayoutOverLoopbackAndMpi) {
  const test::TempDirectory folder;
  const NamedMask masks[] = {{"full", Mask::full(kSeqLen)},
                             {"causal", Mask::causal(kSeqLen)},
                             {"documents", Mask::documents(kDocuments)},
                             {"slices", slices_pair_by_pair()}};
  for (const NamedMask& mask : masks) {
    const std::string path = folder.file(std::string(mask.name) + ".h5");
    const test::AttentionCase c = write_case(path, mask.one, true, 0);
    for (const parallel::LayoutKind kind : parallel::layout_kinds()) {
      const std::string layout = parallel::name(kind);
      SCOPED_TRACE(std::string(mask.name) + " over " + layout);
      const std::vector<std::string> options{"attention", path,   "--scheme", "ring",
                                             "--layout",  layout, "--mask",   mask.name};
      const auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> all = options;
        all.insert(all.end(), more.begin(), more.end());
        return all;
      };
      const std::string threads = folder.file("threads.h5"),
                        processes = folder.file("processes.h5");
      std::vector<std::string> command =
          with({"--output", threads, "--communicator", "loopback", "--ranks", "3"});
      command.insert(command.begin(), test::longhaul_program());
      run(command);
      const hdf5::File file = hdf5::File::open(threads);
      const test::AttentionResult result = read_result(file);
      test::expect_matches_reference(c, result);
      expect_counts(file, c, layout, 3);
      if (layout != "zigzag") continue;
      run(test::mpirun_command(3, with({"--output", processes})));
      const hdf5::File other = hdf5::File::open(processes);
      EXPECT_TRUE(read_result(other) == result);  // bit for bit
      expect_counts(other, c, layout, 3);
    }
  }
}

TEST(AttentionVerb, ScaleBfloat16AndForwardOnly) {
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  test::AttentionCase c = write_case(path, Mask::causal(kSeqLen), false, 0.7);
  const std::vector<std::string> command{
      test::longhaul_program(), "attention", path,      "--output", output, "--mask", "causal",
      "--communicator",         "loopback",  "--ranks", "2"};
  run(command);
  const hdf5::File file = hdf5::File::open(output);
  EXPECT_FALSE(file.has("dq"));
  const auto exact = test::run_reference<double>(c);
  EXPECT_LE(
      test::relative_error(read(file, "out", {kBatch, kSeqLen, kHeads, kValueDim}), exact.out),
      3e-6);
  std::vector<std::string> rounded = command;
  rounded.insert(rounded.end(), {"--dtype", "bfloat16"});
  run(rounded);
  const auto out = read(hdf5::File::open(output), "out", {kBatch, kSeqLen, kHeads, kValueDim});
  const double error = test::relative_error(out, exact.out);
  EXPECT_GT(error, 1e-4);  // it did round
  EXPECT_LE(error, 3e-2);  // inputs of 8 bits, logits of a few units
}

TEST(AttentionVerb, NeverDestroysItsInput) {
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5");
  write_case(path, Mask::full(kSeqLen), true, 0);
  const std::string before = test::read_text(path);
  for (const std::string& output :
       {path, folder.path().string(), folder.file("no/such/folder.h5")}) {
    const test::ProcessResult result = test::run_longhaul(
        {"attention", path, "--output", output, "--mask", "full", "--communicator", "loopback"});
    EXPECT_TRUE(result.exit_code == 64 || result.exit_code == 74) << result.exit_code;
    EXPECT_NE(result.err.find(output), std::string::npos) << result.err;
  }
  EXPECT_EQ(test::read_text(path), before);
  EXPECT_TRUE(std::filesystem::is_directory(folder.path()));
}

}  // namespace
}  // namespace longhaul::launch
