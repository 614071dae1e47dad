// A layout may change from batch to batch, under one mask and with other numbers of rows.
#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "runtime/comm/loopback.h"

namespace longhaul::parallel {
namespace {

using runtime::DType;
using runtime::Tensor;

TEST(Attention, FollowsALayoutThatChangesUnderOneMask) {
  const std::int64_t tokens = 43, dim = 8;
  const attention::Mask mask = attention::Mask::causal(tokens);
  runtime::run_loopback(3, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    const runtime::Stream compute = runtime::Stream::cpu("compute");
    const int rank = world->rank();
    Attention attention({}, world->split(0, rank, "context"), compute);
    for (int round = 0; round < 2; ++round) {
      for (const LayoutKind kind : layout_kinds()) {
        const Layout layout = Layout::make(kind, mask, 1, world->size());
        const std::vector<std::int64_t> mine = layout.tokens_of(rank);
        const std::int64_t n = layout.rows(rank);
        const Tensor q({n, 1, dim}, DType::float32, compute),
            k({n, 1, dim}, DType::float32, compute), v({n, 1, dim}, DType::float32, compute),
            out({n, 1, dim}, DType::float32, compute), lse({n, 1, 2}, DType::float32, compute);
        runtime::fill(q, 0, compute);
        runtime::fill(k, 0, compute);
        compute.synchronize(runtime::deadline_in(60));
        for (std::int64_t i = 0; i < n * dim; ++i)
          v.as<float>()[i] = static_cast<float>(mine[static_cast<std::size_t>(i / dim)]);
        attention.forward(*attention.batch(mask, layout), q, k, v, {}, out, lse)->finish();
        compute.synchronize(runtime::deadline_in(60));
        // Token t sees 0..t alike; their mean is t / 2.
        for (std::int64_t i = 0; i < n * dim; ++i) {
          EXPECT_NEAR(out.as<float>()[i],
                      static_cast<float>(mine[static_cast<std::size_t>(i / dim)]) / 2, 1e-5)
              << name(kind) << ", rank " << rank << ", row " << i / dim;
        }
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::parallel
