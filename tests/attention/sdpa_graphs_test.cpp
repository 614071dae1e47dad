// cuDNN builds the graphs that block calls need, for an H200 that is not there: from its
// description and a driver that only loads (support/fake_driver, by LD_LIBRARY_PATH).
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "attention/sdpa_cudnn_impl.h"
#include "tests/support/expect_error.h"

namespace longhaul::attention {
namespace {

std::string h200() {
  std::ifstream file(LONGHAUL_SOURCE_DIR "/tests/support/fake_driver/h200.json");
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Dims {
  std::int64_t dim, value_dim;
};
struct Heads {
  std::int64_t heads, kv_heads;
};
struct NamedBands {
  const char* name;
  std::int64_t q_rows, k_rows;
  std::vector<Slice> bands;
};

std::vector<Slice> documents(std::vector<std::int64_t> lengths, std::int64_t lo = -kUnbounded) {
  std::vector<Slice> bands;
  std::int64_t at = 0;
  for (const std::int64_t length : lengths) {
    bands.push_back(tightened({at, at + length, at, at + length, lo, 0}));
    at += length;
  }
  return bands;
}

const std::vector<NamedBands>& common() {
  static const std::vector<NamedBands> all = {
      {"full", 4096, 2048, {{0, 4096, 0, 2048}}},
      {"causal", 4096, 4096, documents({4096})},
      {"window", 4096, 4096, documents({4096}, -511)},
      {"documents", 4096, 4096, documents({700, 1, 1800, 1595})}};
  return all;
}
const std::vector<NamedBands>& others() {
  static const std::vector<NamedBands> all = {
      {"causal behind earlier keys", 2048, 4099, {{0, 2048, 0, 4099, -kUnbounded, 2051}}},
      {"left bound alone", 1023, 1023, {{0, 1023, 0, 1023, 0, kUnbounded}}},
      {"window on both sides", 2000, 2100, {{0, 2000, 0, 2100, -99, 200}}},
      {"window behind earlier keys", 2000, 2511, {{0, 2000, 0, 2511, 0, 511}}},
      {"equal sequences", 4096, 4096, documents({2048, 2048})},
      {"windows of documents", 4096, 4096, documents({700, 80, 1800, 1516}, -99)},
      {"one query", 1, 4096, {{0, 1, 0, 4096}}},
      {"one pair", 1, 1, {{0, 1, 0, 1}}}};
  return all;
}

void expect_built(const NamedBands& what, Heads heads, Dims dims, bool deterministic = false,
                  std::int64_t wider = 1) {
  std::vector<Slice> bands;
  for (const Slice& band : what.bands) bands.push_back(tightened(band));
  BlockShape shape{what.q_rows,
                   what.k_rows,
                   heads.heads,
                   heads.kv_heads,
                   dims.dim,
                   dims.value_dim,
                   runtime::DType::bfloat16};
  shape.q_row_heads = wider * heads.heads;
  shape.kv_row_heads = wider * heads.kv_heads;
  const BlockPlace place{{runtime::DeviceKind::cuda, 0}, 1, Kernels::cudnn, deterministic};
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const auto choice = choose_kernels(pass, bands, shape, {}, place);
    ASSERT_FALSE(choice.exact());
    for (const SdpaCall& call : choice.calls) {
      const detail::SdpaForm form = detail::form_of(call, pass, shape, 0.125f, deterministic);
      SCOPED_TRACE(std::string(what.name) + ": " + to_string(form));
      std::int64_t bytes = -1;
      EXPECT_NO_THROW(bytes = detail::sdpa_workspace_bytes(form, h200(), 90));
      EXPECT_LE(bytes, std::int64_t{3} << 29);
      const std::int64_t expected = detail::expected_workspace_bytes(form);
      EXPECT_LE(bytes, expected);
      EXPECT_LE(expected, bytes + bytes / 20 + 131072) << bytes;
    }
  }
}

TEST(SdpaGraphs, EveryMaskAndForm) {
  for (const auto& list : {common(), others()})
    for (const NamedBands& bands : list) expect_built(bands, {16, 4}, {128, 128});
}

TEST(SdpaGraphs, EveryHeadDim) {
  for (const Dims dims : {Dims{64, 64}, {256, 256}, {192, 128}})
    for (const NamedBands& bands : common()) expect_built(bands, {8, dims.dim == 64 ? 8 : 1}, dims);
  for (const Dims dims : {Dims{16, 16}, {80, 48}, {64, 128}})
    expect_built(common()[3], {8, 8}, dims);
}

TEST(SdpaGraphs, HeadsOfWiderRows) {
  expect_built(common()[1], {4, 4}, {128, 128}, false, 4);
  expect_built(common()[3], {4, 2}, {128, 128}, false, 4);
}

TEST(SdpaGraphs, DeterministicBackward) {
  for (const NamedBands& bands : common()) expect_built(bands, {16, 4}, {128, 128}, true);
  expect_built(common()[1], {4, 1}, {256, 256}, true);
  expect_built(common()[3], {4, 4}, {64, 64}, true);
}

TEST(SdpaGraphs, ARefusalNamesTheGraph) {
  detail::SdpaForm form;
  form.dim = form.value_dim = 12;
  form.q_rows = form.q_step = form.k_rows = form.k_step = 64;
  form.q_row_heads = form.kv_row_heads = 1;
  test::expect_error(runtime::ExitCode::config, "1 x 64 queries x 64 keys, 1:1 heads of 12 and 12",
                     [&] { detail::sdpa_workspace_bytes(form, h200(), 90); });
}

}  // namespace
}  // namespace longhaul::attention
