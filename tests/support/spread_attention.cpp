#include "tests/support/spread_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attention/block.h"

namespace longhaul::test {

using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

runtime::Deadline deadline() { return runtime::deadline_in(120); }

/// Rows `tokens` of a global [rows, heads, width] array.
Tensor take(const std::vector<float>& global, const std::vector<std::int64_t>& tokens,
            std::int64_t heads, std::int64_t width, DType dtype, const Stream& stream) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  Tensor rows({n, heads, width}, DType::float32, stream);
  const auto row = static_cast<std::size_t>(heads * width);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::memcpy(rows.as<float>() + i * row,
                global.data() + static_cast<std::size_t>(tokens[i]) * row, row * sizeof(float));
  }
  Tensor rounded({n, heads, width}, dtype, stream);
  runtime::copy(rows, rounded, stream);
  stream.synchronize(deadline());
  return rounded;
}

std::vector<std::byte> bytes_of(const Tensor& tensor) {
  return {tensor.view().data(), tensor.view().data() + tensor.bytes()};
}

std::vector<float> floats_of(const Tensor& tensor) {
  return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

Tensor poisoned(std::initializer_list<std::int64_t> sizes, const Stream& stream) {
  Tensor tensor(sizes, DType::float32, stream);
  runtime::fill(tensor, NAN, stream);
  return tensor;
}

void put(const std::vector<float>& rows, const std::vector<std::int64_t>& tokens, std::int64_t row,
         std::vector<float>& global) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::copy_n(rows.begin() + static_cast<std::int64_t>(i) * row, row,
                global.begin() + tokens[i] * row);
  }
}

}  // namespace

SpreadRank run_spread_rank(const AttentionCase& which, const SpreadOptions& options,
                           runtime::Communicator& world) {
  const DType dtype = which.bf16 ? DType::bfloat16 : DType::float32;
  const auto mask = attention::Mask::from_slices(which.q_rows, which.bands);
  const auto layout = parallel::Layout::make(options.layout, mask, options.batch, world.size());
  const Stream compute = Stream::cpu("compute", options.threads);
  SpreadRank rank;
  rank.tokens = layout.tokens_of(world.rank());
  const auto n = static_cast<std::int64_t>(rank.tokens.size());
  const Tensor q = take(which.q, rank.tokens, which.heads, which.dim, dtype, compute);
  const Tensor k = take(which.k, rank.tokens, which.kv_heads, which.dim, dtype, compute);
  const Tensor v = take(which.v, rank.tokens, which.kv_heads, which.value_dim, dtype, compute);
  const Tensor dout = take(which.dout, rank.tokens, which.heads, which.value_dim, dtype, compute);
  const std::vector<std::vector<std::byte>> before{bytes_of(q), bytes_of(k), bytes_of(v),
                                                   bytes_of(dout)};

  parallel::Attention attention({options.scheme, options.wire_dtype},
                                world.split(0, world.rank(), "context"), compute);
  attention.set_batch(mask, layout);
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    const Tensor out = poisoned({n, which.heads, which.value_dim}, compute),
                 lse = poisoned({n, which.heads}, compute);
    const Tensor delta = poisoned({n, which.heads}, compute),
                 dq = poisoned({n, which.heads, which.dim}, compute);
    const Tensor dk = poisoned({n, which.kv_heads, which.dim}, compute),
                 dv = poisoned({n, which.kv_heads, which.value_dim}, compute);
    world.barrier(compute);
    compute.synchronize(deadline());
    const std::int64_t sent_before = attention.sent_bytes();
    const double waited_before = compute.waited_seconds();
    const auto begin = runtime::Clock::now();
    auto forward = attention.forward(q, k, v, which.scoring, out, lse);
    forward->start();
    forward->advance();
    forward->finish();
    attention::block_delta(out, dout, delta, compute);
    auto backward =
        attention.backward({q, k, v, dout, lse, delta}, which.scoring, dq, dk, dv);
    backward->finish();
    compute.synchronize(deadline());
    rank.seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
    rank.waited_seconds = compute.waited_seconds() - waited_before;
    rank.sent_bytes = attention.sent_bytes() - sent_before;
    if (repeat == 0) rank.sent_to = attention.sent_to();
    rank.rows = {floats_of(out), floats_of(lse), floats_of(dq), floats_of(dk), floats_of(dv)};
  }
  EXPECT_TRUE((before == std::vector<std::vector<std::byte>>{bytes_of(q), bytes_of(k), bytes_of(v),
                                                             bytes_of(dout)}))
      << "an input was modified";
  return rank;
}

Spread run_spread(const AttentionCase& which, const SpreadOptions& options, int ranks,
                  const runtime::LoopbackOptions& loopback) {
  Spread spread;
  spread.ranks.resize(static_cast<std::size_t>(ranks));
  runtime::run_loopback(ranks, loopback, [&](std::unique_ptr<runtime::Communicator> world) {
    spread.ranks[static_cast<std::size_t>(world->rank())] = run_spread_rank(which, options, *world);
  });
  const auto global = [&](std::int64_t row, std::vector<float> AttentionResult::*field) {
    std::vector<float> all(static_cast<std::size_t>(which.q_rows * row), NAN);
    for (const SpreadRank& rank : spread.ranks) put(rank.rows.*field, rank.tokens, row, all);
    return all;
  };
  spread.result.out = global(which.heads * which.value_dim, &AttentionResult::out);
  spread.result.lse = global(which.heads, &AttentionResult::lse);
  spread.result.dq = global(which.heads * which.dim, &AttentionResult::dq);
  spread.result.dk = global(which.kv_heads * which.dim, &AttentionResult::dk);
  spread.result.dv = global(which.kv_heads * which.value_dim, &AttentionResult::dv);
  return spread;
}

}  // namespace longhaul::test
