// Which exchanges of attention say that they are collectives, to a communicator that could do
// better.
#include <gtest/gtest.h>

#include <array>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "attention/block.h"
#include "parallel/attention.h"
#include "runtime/comm/loopback.h"
#include "tests/support/forwarding_communicator.h"

namespace longhaul::parallel {
namespace {

using runtime::Communicator;
using runtime::DType;
using runtime::ExchangeKind;
using runtime::Stream;
using runtime::Tensor;

using Kinds = std::set<ExchangeKind>;
constexpr auto kNone = ExchangeKind::none, kGather = ExchangeKind::all_gather,
               kToAll = ExchangeKind::all_to_all;

/// Notes the hints of its own exchanges and of those that it is split into.
class Noting final : public test::ForwardingCommunicator {
 public:
  Noting(std::unique_ptr<Communicator> inner, Kinds& kinds)
      : ForwardingCommunicator(std::move(inner)), kinds_(kinds) {}
  void exchange_as(ExchangeKind kind, std::vector<runtime::SendMessage> sends,
                   std::vector<runtime::ReceiveMessage> receives, const std::string& what,
                   const Stream& stream) override {
    kinds_.insert(kind);
    ForwardingCommunicator::exchange_as(kind, std::move(sends), std::move(receives), what, stream);
  }
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    return std::make_unique<Noting>(ForwardingCommunicator::split(color, key, name), kinds_);
  }

 private:
  Kinds& kinds_;
};

/// The hints of a rank's forward and backward; the same on all ranks.
std::array<Kinds, 2> hints(const std::string& scheme, int ranks, std::int64_t tokens,
                           LayoutKind kind = LayoutKind::contiguous) {
  std::vector<std::array<Kinds, 2>> of_rank(static_cast<std::size_t>(ranks));
  const Layout layout(kind, tokens, 1, ranks);
  const attention::HeadMasks mask = attention::Mask::causal(tokens);
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> world) {
    auto& kinds = of_rank[static_cast<std::size_t>(world->rank())];
    Kinds now;
    const std::int64_t n = layout.rows(world->rank());
    const Stream compute = Stream::cpu("compute");
    const auto tensor = [&](std::initializer_list<std::int64_t> sizes) {
      Tensor made(sizes, DType::float32, compute);
      runtime::fill(made, 0.5, compute);
      return made;
    };
    const Tensor q = tensor({n, 4, 8}), k = tensor({n, 4, 8}), v = tensor({n, 4, 8}),
                 dout = tensor({n, 4, 8}), out = tensor({n, 4, 8}), lse = tensor({n, 4, 2}),
                 delta = tensor({n, 4}), dq = tensor({n, 4, 8}), dk = tensor({n, 4, 8}),
                 dv = tensor({n, 4, 8});
    Attention attention({parse_expression(scheme), DType::float32},
                        std::make_unique<Noting>(std::move(world), now), compute);
    const auto batch = attention.batch(mask, layout);
    const attention::Scoring scoring{.scale = 0.3f};
    attention.forward(*batch, q, k, v, scoring, out, lse)->finish();
    kinds[0] = std::exchange(now, {});
    attention.backward(*batch, {q, k, v, dout, lse, delta}, scoring, dq, dk, dv)->finish();
    kinds[1] = now;
    compute.synchronize(runtime::deadline_in(60));
  });
  for (const auto& kinds : of_rank) EXPECT_EQ(kinds, of_rank.front());
  return of_rank.front();
}

TEST(Hints, AllGatherOfEqualShardsIsOne) {
  for (const int ranks : {2, 3, 4}) {
    for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      const auto even = hints("all_gather", ranks, 8 * ranks, kind);
      EXPECT_EQ(even[0], Kinds{kGather});
      EXPECT_EQ(even[1], (Kinds{kGather, kToAll}));
    }
    const auto uneven = hints("all_gather", ranks, 8 * ranks + 1);
    EXPECT_EQ(uneven[0], Kinds{kNone});
    EXPECT_EQ(uneven[1], Kinds{kNone});
  }
}

TEST(Hints, UlyssesOfEqualShardsIsAnAllToAll) {
  for (const int ranks : {2, 4}) {
    EXPECT_EQ(hints("ulysses", ranks, 8 * ranks), (std::array{Kinds{kToAll}, Kinds{kToAll}}));
    EXPECT_EQ(hints("ulysses", ranks, 8 * ranks + 1), (std::array{Kinds{kNone}, Kinds{kNone}}));
  }
}

TEST(Hints, APartOfTheRanksIsNoCollectiveOfAll) {
  EXPECT_EQ(hints("usp(heads=2)", 4, 32), (std::array{Kinds{kNone}, Kinds{kNone}}));
  EXPECT_EQ(hints("ring", 3, 24), (std::array{Kinds{kNone}, Kinds{kNone}}));
}

}  // namespace
}  // namespace longhaul::parallel
