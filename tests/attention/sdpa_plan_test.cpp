// How block calls are cut for cuDNN: host logic alone.
#include "attention/sdpa_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/support/attention_kinds.h"
#include "tests/support/expect_error.h"
#include "tests/support/random_masks.h"

namespace longhaul::attention {
namespace {

using runtime::DType;

std::vector<Slice> sorted(std::vector<Slice> bands) {
  std::erase_if(bands, [](const Slice& band) { return area(band) == 0; });
  for (Slice& band : bands) band = tightened(band);
  std::ranges::sort(bands, [](const Slice& a, const Slice& b) {
    return std::pair(a.q_begin, a.k_begin) < std::pair(b.q_begin, b.k_begin);
  });
  return bands;
}

/// Adds 1 where a piece's query sees a key, as cuDNN's documentation words it.
void add(const Piece& piece, const SdpaMask& mask, test::Bitmap& to) {
  const std::int64_t queries = piece.q_end - piece.q_begin, keys = piece.k_end - piece.k_begin;
  for (std::int64_t i = 0; i < queries; ++i) {
    for (std::int64_t j = 0; j < keys; ++j) {
      // Top left: key i is on the diagonal of query i; bottom right: of the last query, the last.
      const std::int64_t on = mask.diagonal == Diagonal::bottom_right ? i + keys - queries : i;
      const bool right = mask.right < 0 || j <= on + mask.right;
      const bool left = mask.left < 0 || j > on - mask.left;
      if (right && left) ++to.at(piece.q_begin + i, piece.k_begin + j);
    }
  }
}

void expect_pieces(const std::vector<Piece>& pieces, const std::vector<Slice>& bands,
                   std::int64_t q_rows, std::int64_t k_rows) {
  test::Bitmap got(q_rows, k_rows);
  for (const Piece& piece : pieces) {
    const std::int64_t queries = piece.q_rows(), keys = piece.k_rows();
    ASSERT_TRUE(queries > 0 && keys > 0);
    test::Bitmap own(q_rows, k_rows);
    add(piece, piece.mask, own);
    EXPECT_EQ(own.sum(), area(slice_of(piece)));
    const bool left = piece.mask.left >= 0, right = piece.mask.right >= 0;
    // What cuDNN 9.19 takes without a padding mask.
    EXPECT_EQ(piece.mask.diagonal == Diagonal::none, !left && !right);
    EXPECT_TRUE((!left && !right) || queries <= keys) << queries << " x " << keys;
    if (left && !right) {
      EXPECT_EQ(piece.mask, (SdpaMask{Diagonal::top_left, 1, -1}));
    }
    if (right && !left) {
      EXPECT_EQ(piece.mask, (SdpaMask{Diagonal::bottom_right, -1, 0}));
    }
    // Every row sees a key, every key is seen.
    for (std::int64_t i = piece.q_begin; i < piece.q_end; ++i) {
      bool any = false;
      for (std::int64_t j = piece.k_begin; j < piece.k_end; ++j) any |= own.at(i, j) > 0;
      EXPECT_TRUE(any) << "row " << i;
    }
    for (std::int64_t j = piece.k_begin; j < piece.k_end; ++j) {
      bool any = false;
      for (std::int64_t i = piece.q_begin; i < piece.q_end; ++i) any |= own.at(i, j) > 0;
      EXPECT_TRUE(any) << "key " << j;
    }
    add(piece, piece.mask, got);
  }
  EXPECT_TRUE(got == test::Bitmap(q_rows, k_rows, bands));
}

TEST(SdpaPieces, AreExactlyTheBands) {
  for (const auto& [name, bands] : test::band_kinds(130, 150)) {
    SCOPED_TRACE(name);
    expect_pieces(pieces_of(sorted(bands)), bands, 130, 150);
    expect_pieces(pieces_of(coalesced(sorted(bands))), bands, 130, 150);
    expect_pieces(divided(pieces_of(sorted(bands)), 300), bands, 130, 150);
  }
  std::mt19937 random(5);
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(round);
    const std::vector<Slice> bands = {test::random_slice(23, 31, random)};
    expect_pieces(pieces_of(sorted(bands)), bands, 23, 31);
    const auto several = test::random_disjoint_slices(31, 23, 12, random);
    const std::vector<Slice> joined = coalesced(sorted(several));
    EXPECT_LE(joined.size(), several.size());
    expect_pieces(pieces_of(joined), several, 31, 23);
    expect_pieces(divided(pieces_of(joined), 7), several, 31, 23);
  }
}

TEST(SdpaPieces, BandsThatAreOneComeAsOne) {
  const std::int64_t chunk = 10;
  const std::vector<Slice> zigzag = sorted({{0, chunk, 0, chunk, -kUnbounded, 0},
                                            {chunk, 20, 0, chunk},
                                            {chunk, 20, chunk, 20, -kUnbounded, 0}});
  EXPECT_EQ(coalesced(zigzag), sorted({{0, 20, 0, 20, -kUnbounded, 0}}));
  // A window cut at a chunk's border.
  const std::vector<Slice> window =
      sorted({{0, 10, 0, 10, -3, 0}, {10, 13, 7, 10, -3, kUnbounded}, {10, 20, 10, 20, -3, 0}});
  EXPECT_EQ(coalesced(window), sorted({{0, 20, 0, 20, -3, 0}}));
  // Two documents stay two.
  const std::vector<Slice> two =
      sorted({{0, 10, 0, 10, -kUnbounded, 0}, {10, 20, 10, 20, -kUnbounded, 0}});
  EXPECT_EQ(coalesced(two), two);
}

BlockShape shape(std::int64_t rows) { return {rows, rows, 16, 4, 128, 128, DType::bfloat16}; }
BlockPlace on(Kernels kernels, bool deterministic = false) {
  return {{runtime::DeviceKind::cuda, 0}, 1, kernels, deterministic};
}

/// Each pair once, no call with overlapping rows or keys, dense ones evenly spaced.
void expect_calls(const KernelChoice& choice, const std::vector<Slice>& bands, std::int64_t q_rows,
                  std::int64_t k_rows) {
  test::Bitmap got(q_rows, k_rows);
  for (const SdpaCall& call : choice.calls) {
    for (std::size_t i = 0; i < call.pieces.size(); ++i) {
      const Piece& piece = call.pieces[i];
      add(piece, call.mask, got);
      if (i == 0) continue;
      const Piece& before = call.pieces[i - 1];
      EXPECT_TRUE(before.q_end <= piece.q_begin && before.k_end <= piece.k_begin);
      if (call.ragged) continue;
      EXPECT_TRUE(piece.q_rows() == before.q_rows() && piece.k_rows() == before.k_rows());
      EXPECT_EQ(piece.q_begin - before.q_begin, call.pieces[1].q_begin - call.pieces[0].q_begin);
      EXPECT_EQ(piece.k_begin - before.k_begin, call.pieces[1].k_begin - call.pieces[0].k_begin);
    }
  }
  EXPECT_TRUE(got == test::Bitmap(q_rows, k_rows, bands));
}

TEST(SdpaPlan, CallsAreExactlyTheBands) {
  std::mt19937 random(6);
  for (const bool deterministic : {false, true}) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const auto choose = [&](const std::vector<Slice>& bands, BlockShape of) {
        return choose_kernels(pass, sorted(bands), of, {}, on(Kernels::cudnn, deterministic));
      };
      for (const auto& [name, bands] : test::band_kinds(130, 150)) {
        SCOPED_TRACE(name);
        BlockShape of = shape(130);
        of.k_rows = 150;
        expect_calls(choose(bands, of), bands, 130, 150);
      }
      const std::vector<Slice> windows = {{0, 9, 0, 9, -3, 0},
                                          {9, 10, 9, 10},
                                          {10, 14, 10, 14, -3, 0},
                                          {14, 19, 14, 19, -3, 0},
                                          {19, 20, 12, 16}};
      expect_calls(choose(windows, shape(20)), windows, 20, 20);
      // Equal, but over the same rows, or the same keys.
      const std::vector<Slice> beside = {{0, 10, 0, 5}, {0, 10, 7, 12}, {0, 10, 14, 19}};
      expect_calls(choose(beside, shape(20)), beside, 20, 20);
      const std::vector<Slice> below = {{0, 5, 0, 10}, {7, 12, 0, 10}, {14, 19, 0, 10}};
      expect_calls(choose(below, shape(20)), below, 20, 20);
      for (int round = 0; round < 100; ++round) {
        const auto bands = test::random_small_disjoint_slices(60, 60, 30, random);
        expect_calls(choose(bands, shape(60)), bands, 60, 60);
      }
    }
  }
}

std::vector<Slice> documents(const std::vector<std::int64_t>& lengths) {
  std::vector<Slice> bands;
  std::int64_t at = 0;
  for (const std::int64_t length : lengths) {
    bands.push_back(tightened({at, at + length, at, at + length, -kUnbounded, 0}));
    at += length;
  }
  return bands;
}

TEST(SdpaPlan, LargeDocumentsAreDenseAndTheRestRagged) {
  std::vector<std::int64_t> lengths = {9000, 130, 7000, 500, 1, 12000, 77};
  std::int64_t rows = 0;
  for (const std::int64_t length : lengths) rows += length;
  const auto choice =
      choose_kernels(Pass::forward, documents(lengths), shape(rows), {}, on(Kernels::automatic));
  ASSERT_EQ(choice.calls.size(), 4u);
  EXPECT_EQ(choice.calls[0].pieces[0].q_rows(), 12000);  // the largest first
  for (int call = 0; call < 3; ++call) {
    EXPECT_FALSE(choice.calls[static_cast<std::size_t>(call)].ragged);
    EXPECT_EQ(choice.calls[static_cast<std::size_t>(call)].mask,
              (SdpaMask{Diagonal::top_left, -1, 0}));
  }
  EXPECT_TRUE(choice.calls[3].ragged);
  EXPECT_EQ(choice.calls[3].pieces.size(), 4u);
}

TEST(SdpaPlan, ManyMiddlingDocumentsShareAGraph) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 2000; length < 2064; ++length) lengths.push_back(length);
  std::int64_t rows = 0;
  for (const std::int64_t length : lengths) rows += length;
  const auto choice =
      choose_kernels(Pass::forward, documents(lengths), shape(rows), {}, on(Kernels::automatic));
  ASSERT_EQ(choice.calls.size(), 5u);
  EXPECT_EQ(choice.calls.back().pieces.size(), 60u);
  // Larger ones are worth a graph each.
  for (std::int64_t& length : lengths) length += 4000;
  rows += std::ssize(lengths) * 4000;
  const auto large =
      choose_kernels(Pass::forward, documents(lengths), shape(rows), {}, on(Kernels::automatic));
  EXPECT_EQ(large.calls.size(), 33u);
}

TEST(SdpaPlan, ShortDocumentsGoWithWindowedOnes) {
  std::vector<Slice> bands;
  for (const Slice& document : documents({700, 80, 1, 1800, 16}))
    bands.push_back(tightened(intersect(document, {0, 2597, 0, 2597, -99, kUnbounded})));
  const auto choice = choose_kernels(Pass::forward, bands, shape(2597), {}, on(Kernels::automatic));
  ASSERT_EQ(choice.calls.size(), 1u);
  EXPECT_EQ(choice.calls[0].mask, (SdpaMask{Diagonal::top_left, 100, 0}));
  EXPECT_EQ(choice.calls[0].pieces.size(), 5u);
}

TEST(SdpaPlan, EqualSequencesAreOneBatch) {
  const auto choice = choose_kernels(Pass::backward, documents({4096, 4096, 4096, 4096}),
                                     shape(4 * 4096), {}, on(Kernels::automatic));
  ASSERT_EQ(choice.calls.size(), 1u);
  EXPECT_FALSE(choice.calls[0].ragged);
  EXPECT_EQ(choice.calls[0].pieces.size(), 4u);
}

TEST(SdpaPlan, DeterministicBackwardStaysWithinItsMemory) {
  const std::int64_t rows = 65536;
  const std::vector<Slice> causal = documents({rows});
  const auto choice =
      choose_kernels(Pass::backward, causal, shape(rows), {}, on(Kernels::automatic, true));
  ASSERT_FALSE(choice.exact());
  std::int64_t pairs = 0;
  for (const SdpaCall& call : choice.calls) {
    std::int64_t q_rows = 0, k_rows = 0, entries = call.ragged ? 1 : 0;
    if (call.ragged)
      while (entries < std::ssize(call.pieces)) entries *= 2;
    else
      entries = std::ssize(call.pieces);
    for (const Piece& piece : call.pieces) {
      pairs += area(slice_of(piece));
      q_rows = std::max(q_rows, piece.q_rows());
      k_rows = std::max(k_rows, piece.k_rows());
    }
    EXPECT_LE(2 * entries * 16 * q_rows * k_rows, std::int64_t{1} << 30);
  }
  EXPECT_EQ(pairs, area(causal));
  // Forward needs none of that.
  EXPECT_EQ(choose_kernels(Pass::forward, causal, shape(rows), {}, on(Kernels::automatic, true))
                .calls.size(),
            1u);
}

TEST(SdpaPlan, SaysWhyTheExactKernelsServe) {
  const std::vector<Slice> causal = documents({8192});
  const auto why = [&](BlockShape of, const Scoring& scoring, Kernels kernels) {
    return choose_kernels(Pass::forward, causal, of, scoring, on(kernels)).why;
  };
  EXPECT_EQ(why(shape(8192), {}, Kernels::automatic), "");
  EXPECT_EQ(why(shape(8192), {}, Kernels::exact), "the exact kernels are asked for");
  BlockShape of = shape(8192);
  of.activation = DType::float32;
  EXPECT_EQ(why(of, {}, Kernels::automatic),
            "the activation dtype is float32, cuDNN's kernels take bfloat16");
  EXPECT_EQ(why(shape(8192), {.softcap = 30}, Kernels::automatic),
            "cuDNN's kernels have no softcap");
  EXPECT_EQ(why(shape(8192), {.weighting = Weighting::sigmoid}, Kernels::automatic),
            "cuDNN has no sigmoid attention");
  of = shape(8192);
  of.dim = of.value_dim = 160;
  EXPECT_NE(why(of, {}, Kernels::automatic).find("head dims are 160 and 160"), std::string::npos);
  const auto tiny =
      choose_kernels(Pass::forward, documents({5}), shape(5), {}, on(Kernels::automatic));
  EXPECT_EQ(tiny.why, "its 15 pairs in 1 call of cuDNN's take longer than the exact kernels do");
  EXPECT_FALSE(
      choose_kernels(Pass::forward, documents({5}), shape(5), {}, on(Kernels::cudnn)).exact());
  test::expect_error(runtime::ExitCode::config,
                     "attention by cuDNN is demanded, but head dims are 160 and 160; cuDNN's "
                     "kernels take multiples of 16 up to 128, 256 and 256, 192 and 128; let the "
                     "choice be automatic, or exact",
                     [&] { why(of, {}, Kernels::cudnn); });
}

TEST(SdpaPlan, CuDnnOnACpuIsRefused) {
  EXPECT_THROW(plan_block(Pass::forward, {}, shape(8), {}, {{}, 1, Kernels::cudnn}),
               runtime::Error);
}

}  // namespace
}  // namespace longhaul::attention
