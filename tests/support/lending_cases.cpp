// What a communicator promises of lent views; part of the suite that runs over every backend.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/comm_suite.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;
using Values = std::vector<float>;
using Lent = std::shared_ptr<const ConstTensorView>;
using Borrowed = std::shared_ptr<ConstTensorView>;

constexpr double kHostDeadlineSeconds = 100;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// Element `index` of what `rank` holds: exact, and of that rank and index only.
float value(int rank, std::int64_t index) { return static_cast<float>(rank * 100003 + index); }

Tensor tensor_of(std::initializer_list<std::int64_t> sizes, int rank, const Stream& stream) {
  Tensor tensor(sizes, DType::float32, stream);
  stream.cpu_task([to = tensor.as<float>(), elements = tensor.elements(), rank] {
    for (std::int64_t i = 0; i < elements; ++i) to[i] = value(rank, i);
  });
  return tensor;
}

Lent lend(const ConstTensorView& view) { return std::make_shared<const ConstTensorView>(view); }
Borrowed borrow(std::initializer_list<std::int64_t> sizes, DType dtype = DType::float32) {
  return std::make_shared<ConstTensorView>(nullptr, dtype, Device{}, sizes);
}

/// What a borrowed view shows now, by way of the stream; [rows, columns].
Values read(const Borrowed& view, const Stream& stream) {
  Values values;
  stream.cpu_task([&] {
    const auto* data = reinterpret_cast<const float*>(view->data());
    for (std::int64_t row = 0; row < view->size(0); ++row) {
      for (std::int64_t column = 0; column < view->size(1); ++column)
        values.push_back(data[row * view->stride(0) + column * view->stride(1)]);
    }
  });
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
  return values;
}

Values expected_of(int rank, std::int64_t elements) {
  Values values;
  for (std::int64_t i = 0; i < elements; ++i) values.push_back(value(rank, i));
  return values;
}

/// Neighbours on the ring of all ranks.
struct Ring {
  explicit Ring(const Communicator& world)
      : next((world.rank() + 1) % world.size()),
        previous((world.rank() + world.size() - 1) % world.size()) {}
  int next, previous;
};

SendMessage lending(int peer, std::vector<Lent> views) {
  return {.peer = peer, .parts = {}, .lent = std::move(views)};
}
ReceiveMessage borrowing(int peer, std::vector<Borrowed> views) {
  return {.peer = peer, .parts = {}, .borrowed = std::move(views)};
}

/// Says to the lender that the borrower is done, and hears the same.
void give_back(Communicator& world, const Ring& ring, const Stream& stream) {
  world.exchange({lending(ring.previous, {Lent(borrow({0}))})},
                 {borrowing(ring.next, {borrow({0})})}, "done", stream);
}

/// Over a communicator that cannot lend, lending is refused, and everything else goes on.
bool refuses(Communicator& world) {
  if (world.lends()) return false;
  const Stream stream = Stream::cpu("refused");
  const Tensor own = tensor_of({3, 5}, world.rank(), stream);
  const Ring ring(world);
  try {
    world.exchange({lending(ring.next, {lend(own.view())})}, {}, "a hop", stream);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("a hop lends over communicator 'world', whose ranks "
                        "do not share memory"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(world.exchange({}, {borrowing(ring.previous, {borrow({3, 5})})}, "a hop", stream),
               Error);
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
  return true;
}

/// A borrowed view is the lender's memory: it shows what is written there later, and nothing is
/// sent.
void lend_and_borrow(Communicator& world) {
  if (refuses(world)) return;
  const Stream stream = Stream::cpu("lend");
  const Ring ring(world);
  world.reset_sent_bytes();
  for (const std::int64_t columns : {0, 1, 7, 127, 2053, 40009}) {
    SCOPED_TRACE(columns);
    const Tensor own = tensor_of({3, columns}, world.rank(), stream);
    const Borrowed theirs = borrow({3, columns});
    world.exchange({lending(ring.next, {lend(own.view())})}, {borrowing(ring.previous, {theirs})},
                   "lend", stream);
    EXPECT_EQ(read(theirs, stream), expected_of(ring.previous, 3 * columns));
    give_back(world, ring, stream);
    fill(own, static_cast<double>(-1 - world.rank()), stream);
    world.barrier(stream);  // it is written
    EXPECT_EQ(read(theirs, stream),
              Values(at(3 * columns), static_cast<float>(-1 - ring.previous)));
    give_back(world, ring, stream);
  }
  EXPECT_EQ(world.sent_bytes(), 0);
  EXPECT_EQ(std::accumulate(world.exchanged_bytes().begin(), world.exchanged_bytes().end(),
                            std::int64_t{0}),
            0);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// Columns of a matrix keep their stride.
void lent_strides(Communicator& world) {
  if (!world.lends()) return;
  const Stream stream = Stream::cpu("strides");
  const Ring ring(world);
  const Tensor own = tensor_of({5, 7}, world.rank(), stream);
  const Borrowed columns = borrow({5, 3}), rows = borrow({2, 7}), one = borrow({5, 1});
  world.exchange(
      {lending(ring.next, {lend(own.view().slice(1, 2, 5)), lend(own.view().slice(0, 3, 5)),
                           lend(own.view().slice(1, 6, 7))})},
      {borrowing(ring.previous, {columns, rows, one})}, "strides", stream);
  Values of_columns, of_one;
  for (int row = 0; row < 5; ++row) {
    for (int column = 2; column < 5; ++column)
      of_columns.push_back(value(ring.previous, row * 7 + column));
    of_one.push_back(value(ring.previous, row * 7 + 6));
  }
  const Values all = expected_of(ring.previous, 35);
  EXPECT_EQ(read(columns, stream), of_columns);
  EXPECT_EQ(read(rows, stream), Values(all.begin() + 21, all.end()));
  EXPECT_EQ(read(one, stream), of_one);
  give_back(world, ring, stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// What has been borrowed is lent on, around the ring and back to its owner; nobody waits for the
/// host.
void lending_on(Communicator& world) {
  if (!world.lends()) return;
  const Stream stream = Stream::cpu("lend on");
  const Ring ring(world);
  const Tensor own = tensor_of({2, 131}, world.rank(), stream);
  std::vector<Borrowed> hops;
  for (int hop = 0; hop < world.size(); ++hop) {
    const Lent out = hop == 0 ? lend(own.view()) : Lent(hops.back());
    hops.push_back(borrow({2, 131}));
    world.exchange({lending(ring.next, {out})}, {borrowing(ring.previous, {hops.back()})}, "on",
                   stream);
  }
  for (int hop = 0; hop < world.size(); ++hop) {
    const int origin = (world.rank() + world.size() - 1 - hop) % world.size();
    EXPECT_EQ(read(hops[at(hop)], stream), expected_of(origin, 262)) << "hop " << hop;
  }
  EXPECT_EQ(hops.back()->data(), own.view().data()) << "its own memory came back as another";
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// Parts and lent views of one exchange, several messages a peer, oneself among them; parts match
/// parts and views match views, in order.
void lending_beside_parts(Communicator& world) {
  if (!world.lends()) return;
  const Stream stream = Stream::cpu("mixed");
  const Tensor first = tensor_of({2, 3}, world.rank(), stream),
               second = tensor_of({1, 20011}, world.rank() + 40, stream);
  std::vector<Tensor> kept;
  std::vector<Borrowed> ones, others;
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  for (int peer = 0; peer < world.size(); ++peer) {
    sends.push_back({.peer = peer, .parts = {first}, .lent = {lend(second.view())}});
    sends.push_back(lending(peer, {lend(first.view())}));
    sends.push_back({.peer = peer, .parts = {second}, .wire_dtype = DType::bfloat16});
    ones.push_back(borrow({1, 20011}));
    others.push_back(borrow({2, 3}));
    kept.emplace_back(std::initializer_list<std::int64_t>{2, 3}, DType::float32, stream);
    kept.emplace_back(std::initializer_list<std::int64_t>{1, 20011}, DType::float32, stream);
    receives.push_back(borrowing(peer, {ones.back(), others.back()}));
    receives.push_back({.peer = peer, .parts = {kept[at(2 * peer)].view()}});
    receives.push_back(
        {.peer = peer, .parts = {kept[at(2 * peer + 1)].view()}, .wire_dtype = DType::bfloat16});
  }
  world.exchange(std::move(sends), std::move(receives), "mixed", stream);
  for (int peer = 0; peer < world.size(); ++peer) {
    SCOPED_TRACE(peer);
    EXPECT_EQ(read(ones[at(peer)], stream), expected_of(peer + 40, 20011));
    EXPECT_EQ(read(others[at(peer)], stream), expected_of(peer, 6));
    const float* part = kept[at(2 * peer)].as<float>();
    EXPECT_EQ(Values(part, part + 6), expected_of(peer, 6));
    const float rounded = kept[at(2 * peer + 1)].as<float>()[20010];
    EXPECT_EQ(rounded, static_cast<float>(BFloat16(value(peer + 40, 20010))));
  }
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// Something else than what is borrowed is an error that names both, on the borrower.
void lent_mismatch(Communicator& world) {
  if (!world.lends()) return;
  struct Case {
    std::vector<std::int64_t> sizes;
    DType dtype;
    const char* text;
  };
  const Case cases[] = {{{3, 5}, DType::bfloat16, "lends bfloat16 [3, 5]"},
                        {{5, 3}, DType::float32, "lends float32 [5, 3]"},
                        {{15}, DType::float32, "lends float32 [15]"},
                        {{0, 5}, DType::float32, "lends float32 [0, 5]"}};
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.text);
    for (const bool to_itself : {false, true}) {
      const int borrower = to_itself || world.size() == 1 ? 0 : 1;
      if (world.rank() > borrower) continue;
      const Stream stream = Stream::cpu("mismatch");
      const Tensor memory({15}, DType::float32, stream);
      const Lent out = lend({memory.view().data(), wrong.dtype, Device{}, wrong.sizes});
      std::vector<SendMessage> sends;
      std::vector<ReceiveMessage> receives;
      if (world.rank() == 0) sends.push_back(lending(borrower, {out}));
      if (world.rank() == borrower) receives.push_back(borrowing(0, {borrow({3, 5})}));
      world.exchange(std::move(sends), std::move(receives), "mismatch", stream);
      try {
        stream.synchronize(deadline_in(kHostDeadlineSeconds));
        EXPECT_NE(world.rank(), borrower) << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(world.rank(), borrower);
        EXPECT_EQ(error.code(), ExitCode::internal);
        const std::string text = error.what();
        EXPECT_NE(text.find(concat("rank ", borrower,
                                   " borrows float32 [3, 5] of rank 0 in "
                                   "'mismatch', which ",
                                   wrong.text)),
                  std::string::npos)
            << text;
      }
    }
  }
  const Stream stream = Stream::cpu("after");
  const Tensor own({3}, DType::float32, stream);
  EXPECT_THROW(world.exchange({lending(world.rank(), {lend(own.view())})}, {}, "to itself", stream),
               Error);
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// Memory that its owner has given back and taken again is lent like any other: borrowers keep
/// nothing of what lay there before.
void lent_memory_is_reused(Communicator& world) {
  if (!world.lends()) return;
  const Ring ring(world);
  for (int round = 0; round < 4; ++round) {
    // A stream of its own: its pool gives everything back when it ends.
    const Stream stream = Stream::cpu(concat("round ", round));
    const Tensor own = tensor_of({round + 1, 70'001}, world.rank() + round, stream);
    const Borrowed theirs = borrow({round + 1, 70'001});
    world.exchange({lending(ring.next, {lend(own.view())})}, {borrowing(ring.previous, {theirs})},
                   "reused", stream);
    const Values values = read(theirs, stream);
    EXPECT_EQ(values.front(), value(ring.previous + round, 0));
    EXPECT_EQ(values, expected_of(ring.previous + round, (round + 1) * 70'001));
    give_back(world, ring, stream);
    stream.synchronize(deadline_in(kHostDeadlineSeconds));
  }
}

}  // namespace

const std::vector<CommCase>& lending_cases() {
  static const std::vector<CommCase> cases{
      {"lend_and_borrow", lend_and_borrow}, {"lent_strides", lent_strides},
      {"lending_on", lending_on},           {"lending_beside_parts", lending_beside_parts},
      {"lent_mismatch", lent_mismatch},     {"lent_memory_is_reused", lent_memory_is_reused},
  };
  return cases;
}

}  // namespace longhaul::test
