// What `longhaul attention` writes, number by number: against the dense reference, over loopback
// and MPI.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <set>
#include <span>
#include <tuple>

#include "launch/attention_case.h"
#include "parallel/schemes/scheme.h"
#include "runtime/io/hdf5.h"
#include "tests/support/attention_case.h"
#include "tests/support/mask_words.h"
#include "tests/support/process.h"
#include "tests/support/without_tiles.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using attention::Mask;
using attention::Slice;

constexpr std::int64_t kBatch = 2, kSeqLen = 37, kHeads = 4, kKvHeads = 2, kDim = 16, kValueDim = 8;

const std::vector<std::int64_t> kDocuments{0, 1, 20, 20, 37}, kPrefixes{0, 7, 0, 17},
    kBlockOffsets{0, 9, 14, 14, 25, 37};
/// 0 and 1 for 5 x 5 blocks, uint8.
const std::vector<std::uint8_t> kBlocks{1, 0, 0, 0, 1,  //
                                        1, 1, 0, 1, 0,  //
                                        0, 1, 1, 1, 1,  //
                                        0, 0, 0, 0, 0,  //
                                        1, 1, 0, 1, 1};

/// A mask as it is asked for.
struct NamedMask {
  std::string name;
  std::vector<std::string> options = {};
  bool over_mpi = false;

  std::vector<std::string> arguments() const {
    std::vector<std::string> all{"--mask", name};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }
  /// Of one sequence, pair by pair.
  Mask mask() const;
};

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

Mask NamedMask::mask() const {
  if (name == "slices") return slices_pair_by_pair();
  attention::MaskParameters p;
  for (std::size_t i = 0; i < options.size(); i += 2) {
    const std::int64_t value = std::stoll(options[i + 1]);
    auto& n = p.numbers;
    (options[i] == "--window"   ? n.window
     : options[i] == "--prefix" ? n.prefix
     : options[i] == "--global" ? n.global
                                : n.block) = value;
  }
  p.documents = kDocuments;
  p.prefixes = kPrefixes;
  p.block_offsets = kBlockOffsets;
  p.blocks = attention::IntegerArray{{5, 5}, {kBlocks.begin(), kBlocks.end()}};
  return test::MaskWords(name, p, kSeqLen).mask();
}

/// The case file and the same problem for the reference.
test::AttentionCase write_case(const std::string& path, const Mask& mask, bool with_dout,
                               double scale) {
  const Mask all = mask.repeated(kBatch);
  test::AttentionCase c{all.tokens(), all.tokens(), kHeads,      kKvHeads,
                        kDim,         kValueDim,    all.slices()};
  c.fill(21);
  if (scale != 0) c.scoring.scale = static_cast<float>(scale);
  hdf5::File file = hdf5::File::create(path);
  file.write<float>("q", {kBatch, kSeqLen, kHeads, kDim}, c.q);
  file.write<float>("k", {kBatch, kSeqLen, kKvHeads, kDim}, c.k);
  file.write<float>("v", {kBatch, kSeqLen, kKvHeads, kValueDim}, c.v);
  if (with_dout) file.write<float>("dout", {kBatch, kSeqLen, kHeads, kValueDim}, c.dout);
  file.write<std::int64_t>("documents", {static_cast<std::int64_t>(kDocuments.size())}, kDocuments);
  file.write<std::int64_t>("prefixes", {4}, kPrefixes);
  file.write<std::int64_t>("block_offsets", {6}, kBlockOffsets);
  file.write<std::uint8_t>("blocks", {5, 5}, kBlocks);
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
  if (!file.has("lse")) return result;  // a sigmoid
  const std::vector<float> lse = read(file, "lse", {kBatch, kHeads, kSeqLen});
  for (std::int64_t b = 0; b < kBatch; ++b) {
    for (std::int64_t s = 0; s < kSeqLen; ++s) {
      for (std::int64_t h = 0; h < kHeads; ++h)
        result.lse.push_back(lse[static_cast<std::size_t>((b * kHeads + h) * kSeqLen + s)]);
    }
  }
  result.lse_low.assign(result.lse.size(), 0);  // a file holds the high part
  return result;
}

void expect_counts(const hdf5::File& file, const test::AttentionCase& c, const std::string& layout,
                   int ranks, bool lends = false) {
  const Mask mask = Mask::from_slices(c.q_rows, c.bands);
  const auto tokens =
      parallel::Layout::make(parallel::layout_from_name(layout), mask, kBatch, ranks);
  std::vector<std::int64_t> sent(static_cast<std::size_t>(ranks), 0),
      area(static_cast<std::size_t>(ranks), 0);
  for (const auto direction : {parallel::Direction::forward, parallel::Direction::backward}) {
    parallel::SchemeInputs inputs{
        mask, tokens, {kHeads, kKvHeads, kDim, kValueDim, runtime::DType::float32}, direction};
    inputs.lends = lends;
    const auto schedule = parallel::build_schedule(inputs);
    for (std::size_t rank = 0; rank < sent.size(); ++rank) {
      const parallel::Count count = parallel::count(schedule.programs[rank]);
      sent[rank] += count.sent_bytes;
      area[rank] = count.pairs / kHeads;
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
  const NamedMask masks[] = {
      {"full", {}, true},
      {"causal", {}, true},
      {"full_document"},
      {"causal_document"},
      {"documents", {}, true},
      {"documents", {"--window", "3"}},
      {"full_document", {"--window", "5"}},
      {"full_window", {"--window", "6"}},
      {"causal_window", {"--window", "99"}},
      {"shared_question", {"--prefix", "3", "--block", "4"}},
      {"shared_question", {"--prefix", "3", "--block", "4", "--window", "3"}},
      {"shared_question", {}, true},
      {"global_window", {"--window", "4", "--global", "3"}},
      {"causal_blockwise"},
      {"causal_blockwise", {"--block", "10"}},
      {"prefix_causal", {"--prefix", "9"}},
      {"prefix_document"},
      {"prefix_document", {"--prefix", "2"}},
      {"block_causal_document", {"--block", "8"}},
      {"block_sparse", {"--block", "8"}, true},
      {"block_sparse_variable"},
      {"slices", {}, true},
  };
  std::set<std::string> tried;
  for (const NamedMask& mask : masks) tried.insert(mask.name);
  EXPECT_EQ(tried.size(), attention::mask_names().size());
  const std::span<const parallel::LayoutKind> layouts = parallel::layout_kinds();
  std::set<std::string> tried_layouts;
  std::size_t turn = 0;
  for (const NamedMask& mask : masks) {
    const std::string path = folder.file("case.h5");
    std::filesystem::remove(path);
    const test::AttentionCase c = write_case(path, mask.mask(), true, 0);
    // Every mask over zigzag and another layout in turn: parallel/product_test.cpp has all pairs.
    std::vector<std::string> over{"zigzag"};
    while (over.size() < 2) {
      const std::string next = parallel::name(layouts[turn++ % layouts.size()]);
      if (next != "zigzag") over.push_back(next);
    }
    for (const std::string& layout : over) {
      tried_layouts.insert(layout);
      SCOPED_TRACE(mask.name + " over " + layout);
      std::vector<std::string> options{"attention", path, "--scheme", "ring", "--layout", layout};
      const std::vector<std::string> arguments = mask.arguments();
      options.insert(options.end(), arguments.begin(), arguments.end());
      const auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> all = options;
        all.insert(all.end(), more.begin(), more.end());
        return all;
      };
      const std::string threads = folder.file("threads.h5"),
                        processes = folder.file("processes.h5");
      std::vector<std::string> command =
          with({"--force", "--output", threads, "--communicator", "loopback", "--ranks", "3"});
      command.insert(command.begin(), test::longhaul_program());
      run(command);
      const hdf5::File file = hdf5::File::open(threads);
      const test::AttentionResult result = read_result(file);
      test::expect_matches_reference(c, result);
      expect_counts(file, c, layout, 3);
      if (layout != "zigzag" || !mask.over_mpi) continue;
      run(test::mpirun_command(3, with({"--force", "--output", processes})));
      const hdf5::File other = hdf5::File::open(processes);
      EXPECT_TRUE(read_result(other) == result);  // bit for bit
      expect_counts(other, c, layout, 3);
      command.insert(command.end(), {"--shared-memory", "auto"});
      run(command);  // threads can always lend; processes where the system lets them
      const hdf5::File lent = hdf5::File::open(threads);
      EXPECT_TRUE(read_result(lent) == result);
      expect_counts(lent, c, layout, 3, true);
      run(test::mpirun_command(
          3, with({"--force", "--output", processes, "--shared-memory", "auto"})));
      EXPECT_TRUE(read_result(hdf5::File::open(processes)) == result);
    }
  }
  EXPECT_EQ(tried_layouts.size(), layouts.size());
}

TEST(AttentionVerb, EverySchemeGivesTheSameAnswer) {
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  const test::AttentionCase c = write_case(path, Mask::documents(kDocuments), true, 0);
  // What is asked for, and the name of what runs on four ranks.
  struct Variant {
    std::string asked, runs, layout = "zigzag";
  };
  const std::vector<Variant> variants{
      {"ring", "ring"},
      {"burst", "burst"},
      {"auto", "ring"},
      {"double_ring", "double_ring(outer=2, inner=2)"},
      {"double_ring(backward=burst,outer=4)", "double_ring(outer=4, inner=1, backward=burst)"},
      {"ring_self_attention", "ring_self_attention"},
      {"balanced_ring", "balanced_ring", "contiguous"},
      {"all_gather", "all_gather"},
      {"ulysses", "ulysses"},
      {"usp(heads=2, around=burst)", "usp(heads=2, around=burst)"},
      {"usp(nesting=ring_inside, around=double_ring)",
       "usp(heads=2, nesting=ring_inside, around=double_ring(outer=2, inner=1))"},
      {"group_cast", "group_cast", "balanced"},
      {"disaggregated", "disaggregated", "packed"},
      {"disaggregated(resend=false)", "disaggregated(resend=false)", "document_zigzag"},
  };
  std::set<std::string> tried;
  for (const Variant& variant : variants) {
    SCOPED_TRACE(variant.asked);
    tried.insert(variant.runs.substr(0, variant.runs.find('(')));
    for (const char* communicator : {"loopback", "mpi"}) {
      std::vector<std::string> arguments{"attention",   path,       "--force",     "--mask",
                                         "documents",   "--output", output,        "--scheme",
                                         variant.asked, "--layout", variant.layout};
      if (communicator == std::string("mpi")) {
        run(test::mpirun_command(4, arguments));
      } else {
        arguments.insert(arguments.begin(), test::longhaul_program());
        arguments.insert(arguments.end(), {"--communicator", "loopback", "--ranks", "4"});
        run(arguments);
      }
      const hdf5::File file = hdf5::File::open(output);
      test::expect_matches_reference(c, read_result(file));
      EXPECT_EQ(file.string_attribute("scheme"), variant.runs);
    }
  }
  EXPECT_EQ(tried.size(), parallel::scheme_names().size());
}

TEST(AttentionVerb, SentBytesByLinkClassAreTheFormulaOfTheDoubleRing) {
  // Per rank, I nodes of L ranks: I - 1 blocks between nodes and I (L - 1) within, forward of K, V
  // and backward of K, V, dK, dV or of q, dout, LSE (two floats), delta, dq; n rows a rank,
  // float32.
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  const std::int64_t S = 48, H = 4, H_kv = 2, D = 16, D_v = 8, P = 6, n = S / P;
  hdf5::File made = hdf5::File::create(path);
  const auto zeros = [&](const char* name, std::int64_t heads, std::int64_t dim) {
    made.write<float>(name, {1, S, heads, dim},
                      std::vector<float>(static_cast<std::size_t>(S * heads * dim)));
  };
  zeros("q", H, D);
  zeros("k", H_kv, D);
  zeros("v", H_kv, D_v);
  zeros("dout", H, D_v);
  made.close();
  const std::int64_t keys = n * H_kv * (D + D_v) * 4,
                     queries = n * H * ((D + D_v) * 4 + 12 + D * 4);
  const auto expect = [&](std::vector<std::string> command, std::int64_t within,
                          std::int64_t between, const std::vector<std::int64_t>& nodes,
                          const std::string& told) {
    SCOPED_TRACE(told);
    const test::ProcessResult result = test::run_process(command, {});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(result.out.starts_with(told)) << result.out;
    const hdf5::File file = hdf5::File::open(output);
    const auto read = [&](const char* name) {
      return file.dataset(name, hdf5::Element::int64, 1).read<std::int64_t>();
    };
    EXPECT_EQ(read("sent_bytes_within_nodes"), std::vector<std::int64_t>(P, within));
    EXPECT_EQ(read("sent_bytes_between_nodes"), std::vector<std::int64_t>(P, between));
    EXPECT_EQ(read("sent_bytes"), std::vector<std::int64_t>(P, within + between));
    EXPECT_EQ(read("node"), nodes);
  };
  for (const auto& [degrees, I, L, nodes] :
       {std::tuple("outer=2, inner=3", 2, 3, std::vector<std::int64_t>{0, 0, 0, 1, 1, 1}),
        std::tuple("outer=3, inner=2", 3, 2, std::vector<std::int64_t>{0, 0, 1, 1, 2, 2})}) {
    for (const std::string backward : {"ring", "burst"}) {
      const std::string scheme =
          std::string("double_ring(") + degrees + ", backward=" + backward + ")";
      std::vector<std::string> arguments{
          "attention",      path,       "--force", "--output", output,       "--mask",
          "full",           "--scheme", scheme,    "--layout", "contiguous", "--ranks-per-node",
          std::to_string(L)};
      const std::int64_t block = keys + (backward == "ring" ? 2 * keys : queries);
      const std::string told =
          scheme + " over contiguous, mask full, 6 ranks on " + std::to_string(I) + " nodes: ";
      std::vector<std::string> loopback = arguments;
      loopback.insert(loopback.begin(), test::longhaul_program());
      loopback.insert(loopback.end(), {"--communicator", "loopback", "--ranks", "6"});
      expect(loopback, I * (L - 1) * block, (I - 1) * block, nodes, told);
      if (backward == "ring" || L == 2) continue;
      expect(test::mpirun_command(6, arguments), I * (L - 1) * block, (I - 1) * block, nodes, told);
      arguments.resize(arguments.size() - 2);  // MPI sees one host
      expect(test::mpirun_command(6, arguments), (I * L - 1) * block, 0,
             std::vector<std::int64_t>(P, 0),
             scheme + " over contiguous, mask full, 6 ranks on 1 node: ");
    }
  }
}

TEST(AttentionVerb, MasksByHeadSoftcapSinksAndSigmoid) {
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  // Heads 0 and 3 see the slices, heads 1 and 2 a window; the shorter list is padded.
  const std::vector<std::int64_t> window{0, kSeqLen - 5, 0, kSeqLen, 3};
  std::vector<std::int64_t> by_head;
  std::vector<std::vector<Slice>> bands;
  for (const bool sliced : {true, false, false, true}) {
    std::vector<std::int64_t> rows = sliced ? kSlices : window;
    rows.resize(kSlices.size(), 0);
    by_head.insert(by_head.end(), rows.begin(), rows.end());
    std::vector<Slice> of_window;
    for (std::int64_t q = 0; q < kSeqLen - 5; ++q)  // both edges follow the row, 6 keys wide
      of_window.push_back({q, q + 1, q, q + 6});
    const Mask one = sliced ? slices_pair_by_pair() : Mask::from_slices(kSeqLen, of_window);
    bands.push_back(one.repeated(kBatch).slices());
  }
  test::AttentionCase c = write_case(path, Mask::full(kSeqLen), true, 0);
  c.head_bands = bands;
  c.sinks = {0.5f, -1, 2, 0};
  std::filesystem::remove(path);
  const auto write = [&](bool with_sinks) {
    std::filesystem::remove(path);
    hdf5::File file = hdf5::File::create(path);
    file.write<float>("q", {kBatch, kSeqLen, kHeads, kDim}, c.q);
    file.write<float>("k", {kBatch, kSeqLen, kKvHeads, kDim}, c.k);
    file.write<float>("v", {kBatch, kSeqLen, kKvHeads, kValueDim}, c.v);
    file.write<float>("dout", {kBatch, kSeqLen, kHeads, kValueDim}, c.dout);
    file.write<std::int64_t>("slices", {kHeads, static_cast<std::int64_t>(kSlices.size() / 5), 5},
                             by_head);
    if (with_sinks) file.write<float>("sinks", {kHeads}, c.sinks);
    file.close();
  };
  const auto replay = [&](std::vector<std::string> more) {
    std::vector<std::string> command{test::longhaul_program(),
                                     "attention",
                                     path,
                                     "--force",
                                     "--output",
                                     output,
                                     "--mask",
                                     "slices",
                                     "--communicator",
                                     "loopback",
                                     "--ranks",
                                     "4"};
    command.insert(command.end(), more.begin(), more.end());
    run(command);
    return hdf5::File::open(output);
  };
  write(true);
  for (const char* scheme : {"ring", "group_cast", "usp"}) {
    SCOPED_TRACE(scheme);
    c.scoring.softcap = 0.7f;
    const hdf5::File file = replay({"--scheme", scheme, "--softcap", "0.7"});
    test::AttentionResult result = read_result(file);
    result.dsinks = read(file, "dsinks", {kHeads});
    test::expect_matches_reference(c, result);
  }
  write(false);
  c.sinks.clear();
  c.scoring.softcap = 0;
  c.scoring.weighting = attention::Weighting::sigmoid;
  c.scoring.bias = -2;
  for (const char* scheme : {"burst", "all_gather", "ulysses"}) {
    SCOPED_TRACE(scheme);
    const hdf5::File file = replay({"--scheme", scheme, "--weighting", "sigmoid", "--bias", "-2"});
    EXPECT_FALSE(file.has("lse"));
    test::expect_matches_reference(c, read_result(file));
  }
}

TEST(AttentionVerb, ScaleBfloat16AndForwardOnly) {
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  test::AttentionCase c = write_case(path, Mask::causal(kSeqLen), false, 0.7);
  const std::vector<std::string> command{test::longhaul_program(),
                                         "attention",
                                         path,
                                         "--force",
                                         "--output",
                                         output,
                                         "--mask",
                                         "causal",
                                         "--communicator",
                                         "loopback",
                                         "--ranks",
                                         "2"};
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

/// dq of attention whose delta = rowsum(dout out) is taken from the output rounded to bfloat16, in
/// double, on inputs rounded likewise; or from the exact output.
std::vector<double> dq_by_hand(const test::AttentionCase& c, bool rounded_delta) {
  const auto at = [](const std::vector<float>& x, std::int64_t i) {
    return static_cast<double>(
        static_cast<float>(runtime::BFloat16(x[static_cast<std::size_t>(i)])));
  };
  const auto scale = static_cast<double>(c.scoring.scale);
  std::vector<double> dq(c.q.size());
  for (std::int64_t row = 0; row < c.q_rows; ++row) {
    for (std::int64_t head = 0; head < c.heads; ++head) {
      const std::int64_t kv_head = head * c.kv_heads / c.heads, first = row / kSeqLen * kSeqLen,
                         q_at = (row * c.heads + head) * c.dim,
                         out_at = (row * c.heads + head) * c.value_dim;
      std::vector<double> p;
      double sum = 0;
      for (std::int64_t key = first; key <= row; ++key) {
        double score = 0;
        for (std::int64_t d = 0; d < c.dim; ++d)
          score += at(c.q, q_at + d) * at(c.k, (key * c.kv_heads + kv_head) * c.dim + d);
        sum += p.emplace_back(std::exp(scale * score));
      }
      const auto value = [&](std::int64_t key, std::int64_t d) {
        return at(c.v, (key * c.kv_heads + kv_head) * c.value_dim + d);
      };
      double delta = 0;
      for (std::int64_t d = 0; d < c.value_dim; ++d) {
        double out = 0;
        for (std::int64_t key = first; key <= row; ++key)
          out += p[static_cast<std::size_t>(key - first)] / sum * value(key, d);
        if (rounded_delta)
          out = static_cast<double>(static_cast<float>(runtime::BFloat16(static_cast<float>(out))));
        delta += at(c.dout, out_at + d) * out;
      }
      for (std::int64_t key = first; key <= row; ++key) {
        double dp = 0;
        for (std::int64_t d = 0; d < c.value_dim; ++d) dp += at(c.dout, out_at + d) * value(key, d);
        const double ds = scale * p[static_cast<std::size_t>(key - first)] / sum * (dp - delta);
        for (std::int64_t d = 0; d < c.dim; ++d)
          dq[static_cast<std::size_t>(q_at + d)] +=
              ds * at(c.k, (key * c.kv_heads + kv_head) * c.dim + d);
      }
    }
  }
  return dq;
}

TEST(AttentionVerb, DeltaInBfloat16IsThatOfTraining) {
  // Training keeps the output in bfloat16 and takes delta from it. Keys that share a direction
  // multiply what that costs dq.
  const test::WithoutTiles exact_kernels;
  const test::TempDirectory folder;
  const std::string path = folder.file("case.h5"), output = folder.file("result.h5");
  test::AttentionCase c = write_case(path, Mask::causal(kSeqLen), true, 0);
  for (std::size_t i = 0; i < c.k.size(); i += kDim) c.k[i] += 30;
  std::filesystem::remove(path);
  hdf5::File file = hdf5::File::create(path);
  file.write<float>("q", {kBatch, kSeqLen, kHeads, kDim}, c.q);
  file.write<float>("k", {kBatch, kSeqLen, kKvHeads, kDim}, c.k);
  file.write<float>("v", {kBatch, kSeqLen, kKvHeads, kValueDim}, c.v);
  file.write<float>("dout", {kBatch, kSeqLen, kHeads, kValueDim}, c.dout);
  file.close();
  const std::vector<double> training = dq_by_hand(c, true), exact = dq_by_hand(c, false);
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    apart += (training[i] - exact[i]) * (training[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  EXPECT_GT(std::sqrt(apart / size), 1e-3);  // there is something to tell apart
  for (const char* ranks : {"1", "3"}) {
    run({test::longhaul_program(), "attention", path, "--output", output, "--force", "--mask",
         "causal", "--communicator", "loopback", "--ranks", ranks, "--dtype", "bfloat16"});
    const auto dq = read(hdf5::File::open(output), "dq", {kBatch, kSeqLen, kHeads, kDim});
    // An output on the border of two bfloat16 may round to the other one.
    EXPECT_LE(test::relative_error(dq, training), 1e-4) << ranks << " ranks";
  }
}

TEST(AttentionVerb, ReplacesOnlyFilesAndOnlyWhenForced) {
  const test::TempDirectory folder;
  write_case(folder.file("case.h5"), Mask::full(kSeqLen), false, 0);
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  test::write_text(folder.file("result.h5"), "keep");
  const auto exit_code = [&](const std::string& output, bool force) {
    std::vector<std::string> arguments{
        "attention", folder.file("case.h5"), "--output", folder.file(output), "--mask",
        "full",      "--communicator",       "loopback"};
    if (force) arguments.push_back("--force");
    return test::run_longhaul(arguments).exit_code;
  };
  EXPECT_EQ(exit_code("pipe", true), 64);
  EXPECT_TRUE(std::filesystem::is_fifo(folder.file("pipe")));
  EXPECT_EQ(exit_code("result.h5", false), 64);
  EXPECT_EQ(test::read_text(folder.file("result.h5")), "keep");
  EXPECT_EQ(exit_code("result.h5", true), 0);
  EXPECT_TRUE(hdf5::File::open(folder.file("result.h5")).has("out"));
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
