#include "tests/support/sdpa_cases.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/attention_kinds.h"

namespace longhaul::test {
namespace {

using attention::kUnbounded;
using attention::Slice;

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t dim, std::int64_t value_dim,
                   std::vector<Slice> bands) {
  AttentionCase c{q_rows, k_rows, heads, kv_heads, dim, value_dim, std::move(bands)};
  c.bf16 = true;
  c.fill(11);
  return c;
}

/// Causal documents; with a window, its last keys alone.
std::vector<Slice> documents(const std::vector<std::int64_t>& lengths,
                             std::int64_t lo = -kUnbounded) {
  std::vector<Slice> bands;
  std::int64_t at = 0;
  for (const std::int64_t length : lengths) {
    if (length > 0) bands.push_back({at, at + length, at, at + length, lo, 0});
    at += length;
  }
  return bands;
}

/// Of a zigzag ring over equal chunks: the rank's own block, as cut() gives it.
std::vector<Slice> zigzag_own(std::int64_t chunk) {
  return {{0, chunk, 0, chunk, -kUnbounded, 0},
          {chunk, 2 * chunk, 0, chunk},
          {chunk, 2 * chunk, chunk, 2 * chunk, -kUnbounded, 0}};
}

}  // namespace

std::vector<NamedCase> sdpa_bound_otherwise() {
  std::vector<NamedCase> cases;
  for (const auto& [name, bands] : band_kinds(130, 150)) {
    cases.push_back({name + ", merged",
                     make(130, 150, 2, 1, 128, 128, bands),
                     {.key_cuts = {1, 64}, .merged = true}});
    cases.push_back({name + ", strided", make(130, 150, 4, 2, 128, 128, bands), {.strided = true}});
  }
  return cases;
}

std::vector<NamedCase> sdpa_cases() {
  std::vector<NamedCase> cases;
  for (const auto& [name, bands] : band_kinds(130, 150)) {
    cases.push_back({name, make(130, 150, 4, 2, 64, 64, bands)});
    cases.push_back(
        {name + ", in parts", make(130, 150, 2, 1, 32, 32, bands), {.key_cuts = {50, 50, 149}}});
  }
  const std::vector<Slice> behind = {{0, 90, 0, 70, -kUnbounded, -61}};
  cases.push_back({"more queries than keys", make(90, 30, 2, 2, 16, 16, {{0, 90, 0, 30, -8, 6}})});
  cases.push_back({"most rows see nothing", make(90, 70, 2, 1, 16, 16, behind)});
  cases.push_back({"one pair", make(1, 1, 2, 1, 16, 16, {{0, 1, 0, 1}})});
  cases.push_back({"one query", make(1, 99, 2, 1, 16, 16, {{0, 1, 0, 99}})});
  cases.push_back({"one key", make(99, 1, 2, 1, 16, 16, {{0, 99, 0, 1}})});
  cases.push_back({"zigzag", make(66, 66, 4, 2, 64, 64, zigzag_own(33))});
  const auto uneven = documents({7, 1, 64, 0, 19, 37, 2});
  cases.push_back({"uneven documents", make(130, 130, 4, 1, 64, 64, uneven)});
  cases.push_back(
      {"uneven documents, strided", make(130, 130, 4, 2, 80, 48, uneven), {.strided = true}});
  cases.push_back({"windows of documents",
                   make(130, 130, 4, 2, 64, 64, documents({7, 1, 64, 0, 19, 37, 2}, -16))});
  cases.push_back({"equal documents", make(120, 120, 4, 2, 64, 64, documents({40, 40, 40}))});
  cases.push_back({"equal documents, in parts",
                   make(120, 120, 2, 2, 64, 64, documents({40, 40, 40})),
                   {.key_cuts = {40, 90}}});
  // Rows of one call see keys of several, and keys are seen by several.
  cases.push_back({"block sparse", make(64, 80, 2, 1, 32, 32,
                                        {{0, 20, 0, 16},
                                         {0, 20, 48, 80},
                                         {20, 50, 16, 32},
                                         {24, 64, 40, 80},
                                         {50, 64, 0, 32}})});
  for (const auto& [dim, value_dim] :
       {std::pair{16, 16}, {80, 80}, {128, 128}, {128, 64}, {64, 128}, {192, 128}, {256, 256}}) {
    cases.push_back({runtime::concat("dims ", dim, " and ", value_dim),
                     make(67, 90, 2, 1, dim, value_dim, {{0, 67, 0, 90, -kUnbounded, 23}})});
  }
  for (const std::int64_t heads : {1, 3, 8}) {
    cases.push_back({runtime::concat(heads, " heads on one"),
                     make(67, 67, heads, 1, 64, 64, {{0, 67, 0, 67, -kUnbounded, 0}})});
  }
  AttentionCase by_head = make(130, 130, 4, 2, 64, 64, {});
  by_head.head_bands = {uneven, uneven, documents({40, 90}), documents({40, 90})};
  cases.push_back({"documents of each head", by_head, {.key_cuts = {70}}});
  AttentionCase sinks = make(67, 90, 4, 2, 64, 64, {{0, 67, 0, 90, -40, 23}});
  sinks.sinks = {0.5f, 3, -1, -std::numeric_limits<float>::infinity()};
  cases.push_back({"sinks", sinks, {.key_cuts = {30}}});
  AttentionCase tiny = make(67, 67, 2, 1, 64, 64, {{0, 67, 0, 67, -kUnbounded, 0}});
  for (float& g : tiny.dout) g *= 0x1p-60f;
  std::fill_n(tiny.dout.begin(), 64 * 2 * 5, 0.0f);
  cases.push_back({"tiny and zero gradients of out", tiny});
  return cases;
}

void expect_sdpa_contract(const BlockDevice& device, const std::vector<NamedCase>& cases) {
  for (const NamedCase& each : cases) {
    SCOPED_TRACE(each.name);
    const AttentionResult got = run_block(device, each.which, each.options);
    expect_matches_in_bfloat16(each.which, got);
    EXPECT_TRUE(run_block(device, each.which, each.options) == got) << "another run differs";
  }
}

}  // namespace longhaul::test
