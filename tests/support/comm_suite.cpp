// Long: one suite of all that a communicator promises, run alike over every backend.

#include "tests/support/comm_suite.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;
using Counts = std::vector<std::int64_t>;

constexpr double kHostDeadlineSeconds = 100;
constexpr std::int64_t kNastySizes[] = {0, 1, 7, 127, 0, 1000, 3, 64, 2053};

std::uint64_t mix(std::uint64_t seed, std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + a * 0xbf58476d1ce4e5b9ULL + b + 1;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// Element `index` of what `rank` holds; magnitudes span 2^-20..2^20, so that every order of a sum
/// shows.
double value(std::uint64_t seed, int rank, std::int64_t index) {
  const std::uint64_t bits =
      mix(seed, static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(index));
  const double mantissa = static_cast<double>(bits >> 12) * 0x1p-52 - 0.5;
  return std::ldexp(mantissa, static_cast<int>(bits % 41) - 20);
}

std::int64_t nasty_size(std::uint64_t seed, int a, int b) {
  return kNastySizes[mix(seed, static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b)) %
                     std::size(kNastySizes)];
}

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
std::int64_t sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}
std::int64_t offset(const Counts& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, std::int64_t{0});
}

template <class T>
Tensor tensor_of(std::int64_t elements, std::uint64_t seed, int rank, const Stream& stream) {
  Tensor tensor({elements}, DTypeOf<T>::value, stream);
  stream.cpu_task([to = tensor.as<T>(), elements, seed, rank] {
    for (std::int64_t i = 0; i < elements; ++i) to[i] = static_cast<T>(value(seed, rank, i));
  });
  return tensor;
}

template <class T>
std::vector<T> expected_of(std::int64_t elements, std::uint64_t seed, int rank) {
  std::vector<T> values(at(elements));
  for (std::int64_t i = 0; i < elements; ++i) values[at(i)] = static_cast<T>(value(seed, rank, i));
  return values;
}

template <class T>
std::vector<T> read(const Tensor& tensor, const Stream& stream) {
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
  return {tensor.as<T>(), tensor.as<T>() + tensor.elements()};
}

/// Bitwise, so that -0 and 0 or two NaN differ where they should.
template <class T>
void expect_same(const std::vector<T>& actual, const std::vector<T>& expected,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0) {
      FAIL() << what << ": element " << i << " of " << actual.size() << " is "
             << static_cast<double>(actual[i]) << ", expected " << static_cast<double>(expected[i]);
    }
  }
}

Counts uneven_counts(std::uint64_t seed, int size) {
  Counts counts;
  for (int rank = 0; rank < size; ++rank) counts.push_back(nasty_size(seed, rank, 77));
  return counts;
}

/// Two messages between every pair of ranks, oneself included, many of them empty: content and
/// order.
void exchange_between_all(Communicator& world) {
  const Stream stream = Stream::cpu("exchange");
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    std::vector<Tensor> kept;
    std::vector<SendMessage> sends;
    std::vector<ReceiveMessage> receives;
    std::vector<std::pair<std::size_t, std::vector<float>>> expected;
    for (int peer = 0; peer < world.size(); ++peer) {
      for (int part = 0; part < 2; ++part) {
        const auto pair_seed = [&](int from, int to) {
          return mix(seed, static_cast<std::uint64_t>(from),
                     static_cast<std::uint64_t>(to * 2 + part));
        };
        const std::uint64_t out = pair_seed(world.rank(), peer);
        kept.push_back(tensor_of<float>(nasty_size(out, 0, 0), out, world.rank(), stream));
        sends.push_back({peer, {kept.back()}});
        const std::uint64_t in = pair_seed(peer, world.rank());
        kept.emplace_back(std::initializer_list<std::int64_t>{nasty_size(in, 0, 0)}, DType::float32,
                          stream);
        receives.push_back({peer, {kept.back().view()}});
        expected.emplace_back(kept.size() - 1, expected_of<float>(nasty_size(in, 0, 0), in, peer));
      }
    }
    world.exchange(sends, receives, "exchange_between_all", stream);
    for (const auto& [index, values] : expected) {
      expect_same(read<float>(kept[index], stream), values, concat("seed ", seed));
    }
  }
}

/// What arrives is the same whatever a group of messages is said to be.
void hints_change_no_byte(Communicator& world) {
  const Stream stream = Stream::cpu("hints");
  for (const auto kind : {ExchangeKind::none, ExchangeKind::all_gather, ExchangeKind::all_to_all}) {
    world.reset_sent_bytes();
    const Tensor own = tensor_of<float>(127, 31, world.rank(), stream);
    std::vector<Tensor> kept;
    std::vector<SendMessage> sends;
    std::vector<ReceiveMessage> receives;
    for (int peer = 0; peer < world.size(); ++peer) {
      kept.emplace_back(std::initializer_list<std::int64_t>{127}, DType::float32, stream);
      fill(kept.back(), -1, stream);
      if (peer == world.rank()) continue;
      sends.push_back({peer, {own}});
      receives.push_back({peer, {kept.back().view()}});
    }
    world.exchange_as(kind, std::move(sends), std::move(receives), "hints", stream);
    for (int peer = 0; peer < world.size(); ++peer) {
      expect_same(
          read<float>(kept[at(peer)], stream),
          peer == world.rank() ? std::vector<float>(127, -1.0f) : expected_of<float>(127, 31, peer),
          concat("from ", peer));
    }
    EXPECT_EQ(world.sent_bytes(), (world.size() - 1) * 127 * 4);
  }
}

/// Sends columns of a matrix and a row block as one message; the receiver places them elsewhere.
void strided_views(Communicator& world) {
  const Stream stream = Stream::cpu("strided");
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  Tensor source({5, 7, 3}, DType::float32, stream);
  copy(tensor_of<float>(105, 4, world.rank(), stream).view().reshape({5, 7, 3}), source, stream);
  Tensor target({10, 9}, DType::float32, stream);
  fill(target, -1, stream);
  // Parts of 5x2x3, of nothing, and of 1x7x3 elements go into 6x5, nothing, and 3x7.
  const std::vector<SendPart> out{source.view().slice(1, 2, 4), source.view().slice(0, 2, 2),
                                  source.view().slice(0, 4, 5)};
  const std::vector<ReceivePart> in{target.view().slice(0, 1, 7).slice(1, 0, 5),
                                    target.view().slice(0, 2, 2),
                                    target.view().slice(0, 7, 10).slice(1, 1, 8)};
  world.exchange({{next, out}}, {{previous, in}}, "strided_views", stream);
  std::vector<float> wire;
  const auto from = expected_of<float>(105, 4, previous);
  for (std::size_t a = 0; a < 5; ++a) {
    for (std::size_t b = 2; b < 4; ++b) {
      for (std::size_t c = 0; c < 3; ++c) wire.push_back(from[a * 21 + b * 3 + c]);
    }
  }
  wire.insert(wire.end(), from.begin() + 84, from.end());
  std::vector<float> expected(90, -1.0f);
  for (std::size_t i = 0; i < 30; ++i) expected[(1 + i / 5) * 9 + i % 5] = wire[i];
  for (std::size_t i = 0; i < 21; ++i) expected[(7 + i / 7) * 9 + 1 + i % 7] = wire[30 + i];
  expect_same(read<float>(target, stream), expected, "target");
  expect_same(read<float>(source, stream), expected_of<float>(105, 4, world.rank()), "source");
}

/// One strided view on either side: a column goes out, and into another column.
void single_strided_view(Communicator& world) {
  const Stream stream = Stream::cpu("column");
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const Tensor source = tensor_of<float>(35, 6, world.rank(), stream);
  const Tensor target({7, 3}, DType::float32, stream);
  fill(target, -1, stream);
  world.exchange({{next, {source.view().reshape({7, 5}).slice(1, 3, 4)}}},
                 {{previous, {target.view().slice(1, 1, 2)}}}, "single_strided_view", stream);
  std::vector<float> expected(21, -1.0f);
  for (int row = 0; row < 7; ++row) {
    expected[at(row * 3 + 1)] = static_cast<float>(value(6, previous, row * 5 + 3));
  }
  expect_same(read<float>(target, stream), expected, "target");
}

/// Rows of a list on both sides, in a part between two whole ones; sent as they are and rounded.
void listed_rows(Communicator& world) {
  const Stream stream = Stream::cpu("listed");
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const Tensor source = tensor_of<float>(9 * 4 * 3, 7, world.rank(), stream);
  // Rows 1, 2, 5, 8 of heads 1 and 2 go to rows 6, 0, 1, 3 of heads 0 and 1.
  const std::vector<RowMove> gather{{1, 0, 2}, {5, 2, 1}, {8, 3, 1}};
  const std::vector<RowMove> scatter{{0, 6, 1}, {1, 0, 2}, {3, 3, 1}};
  constexpr std::int64_t kFrom[] = {1, 2, 5, 8}, kTo[] = {6, 0, 1, 3};
  const RowList sent{std::make_shared<const RowMoves>(gather)},
      placed{std::make_shared<const RowMoves>(scatter)};
  for (const bool rounded : {false, true}) {
    const Tensor target({7, 2, 3}, DType::float32, stream), ends({2, 3}, DType::float32, stream);
    fill(target, -1, stream);
    const auto wire = rounded ? std::optional(DType::bfloat16) : std::nullopt;
    const TensorView from = source.view().reshape({9, 4, 3});
    const TensorView first = source.view().slice(0, 0, 3), last = source.view().slice(0, 105, 108);
    std::vector<SendMessage> sends{
        {next, {first, SendPart(from.slice(1, 1, 3), sent), last}, wire}};
    std::vector<ReceiveMessage> receives{
        {previous,
         {ends.view().reshape({6}).slice(0, 0, 3), ReceivePart(target.view(), placed),
          ends.view().reshape({6}).slice(0, 3, 6)},
         wire}};
    world.exchange(std::move(sends), std::move(receives), "listed_rows", stream);
    const std::vector<float> theirs = expected_of<float>(108, 7, previous);
    const auto on_wire = [&](std::size_t i) {
      return rounded ? static_cast<float>(BFloat16(theirs[i])) : theirs[i];
    };
    std::vector<float> expected(42, -1.0f);
    for (std::size_t row = 0; row < 4; ++row) {
      for (std::size_t i = 0; i < 6; ++i)
        expected[static_cast<std::size_t>(kTo[row]) * 6 + i] =
            on_wire(static_cast<std::size_t>(kFrom[row]) * 12 + 3 + i);
    }
    expect_same(read<float>(target, stream), expected, "target");
    expect_same(read<float>(ends, stream),
                {on_wire(0), on_wire(1), on_wire(2), on_wire(105), on_wire(106), on_wire(107)},
                "ends");
  }
}

/// What lies together travels from where it lies; what does not is staged, byte for byte.
void staging_is_what_does_not_lie_together(Communicator& world) {
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const Stream stream = Stream::cpu("staged"), memory = Stream::cpu("memory");
  const Tensor out = tensor_of<float>(120, 8, world.rank(), memory);
  const Tensor in({120}, DType::float32, memory);
  memory.synchronize(deadline_in(60));
  const auto exchange = [&](std::vector<SendPart> sent, std::vector<ReceivePart> received,
                            std::optional<DType> wire) {
    stream.reset_peak();
    world.exchange({{next, std::move(sent), wire}}, {{previous, std::move(received), wire}},
                   "staging", stream);
    stream.synchronize(deadline_in(60));
    return stream.memory().peak_bytes;
  };
  const TensorView from = out.view().reshape({6, 4, 5}), to = in.view().reshape({6, 4, 5});
  EXPECT_EQ(exchange({from.slice(0, 0, 3), from.slice(0, 3, 6)},
                     {to.slice(0, 0, 3), to.slice(0, 3, 6)}, std::nullopt),
            0);
  expect_same(read<float>(in, stream), expected_of<float>(120, 8, previous), "whole");
  EXPECT_EQ(exchange({from.slice(1, 0, 2)}, {to.slice(0, 0, 3)}, std::nullopt), 60 * 4);
  EXPECT_EQ(exchange({from.slice(1, 0, 2)}, {to.slice(1, 1, 3)}, std::nullopt), 2 * 60 * 4);
  EXPECT_EQ(exchange({from}, {to}, DType::bfloat16), 2 * 120 * 2);
}

/// float32 as bfloat16: rounded once, oneself included, half the bytes.
void wire_dtype(Communicator& world) {
  const Stream stream = Stream::cpu("wire");
  const Tensor source = tensor_of<float>(333, 5, world.rank(), stream);
  world.reset_sent_bytes();
  for (int hop = 0; hop < world.size(); ++hop) {
    const int to = (world.rank() + hop) % world.size();
    const int from = (world.rank() + world.size() - hop) % world.size();
    Tensor target({333}, DType::float32, stream);
    world.exchange(
        {{to, {source.view().slice(0, 0, 100), source.view().slice(0, 100, 333)}, DType::bfloat16}},
        {{from,
          {target.view().slice(0, 0, 100), target.view().slice(0, 100, 333)},
          DType::bfloat16}},
        "wire_dtype", stream);
    std::vector<float> expected = expected_of<float>(333, 5, from);
    for (float& element : expected) element = static_cast<float>(BFloat16(element));
    expect_same(read<float>(target, stream), expected, concat("hop ", hop));
  }
  EXPECT_EQ(world.sent_bytes(), 333 * 2 * (world.size() - 1));
  Tensor whole({8}, DType::int32, stream);
  EXPECT_THROW(world.exchange({{0, {whole}, DType::bfloat16}}, {}, "wire_dtype", stream), Error);
}

template <class T>
void gather_case(Communicator& world, const Counts& counts, std::uint64_t seed) {
  const Stream stream = Stream::cpu("gather");
  const Tensor input = tensor_of<T>(counts[at(world.rank())], seed, world.rank(), stream);
  const Tensor output({sum(counts)}, DTypeOf<T>::value, stream);
  world.reset_sent_bytes();
  world.all_gather(input, output, counts, stream);
  std::vector<T> expected;
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto part = expected_of<T>(counts[at(rank)], seed, rank);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  expect_same(read<T>(output, stream), expected, "all_gather");
  EXPECT_EQ(world.sent_bytes(), (world.size() - 1) * input.bytes());
}

void all_gather(Communicator& world) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed)
    gather_case<float>(world, uneven_counts(seed, world.size()), seed);
  gather_case<double>(world, uneven_counts(9, world.size()), 9);
  gather_case<std::int64_t>(world, uneven_counts(10, world.size()), 10);
  gather_case<std::uint8_t>(world, uneven_counts(11, world.size()), 11);
  gather_case<float>(world, Counts(at(world.size()), 0), 12);
  // In place: the input is the caller's segment of the output.
  const Stream stream = Stream::cpu("gather");
  const Counts counts(at(world.size()), 5);
  const Tensor whole({5 * world.size()}, DType::float32, stream);
  const TensorView own = whole.view().slice(0, world.rank() * 5, world.rank() * 5 + 5);
  copy(tensor_of<float>(5, 3, world.rank(), stream), own, stream);
  world.all_gather(own, whole, counts, stream);
  const auto values = read<float>(whole, stream);
  for (int rank = 0; rank < world.size(); ++rank) {
    EXPECT_EQ(values[at(rank * 5 + 4)], static_cast<float>(value(3, rank, 4)));
  }
}

/// ((x_0 + x_1) + x_2) + ... in T.
template <class T>
std::vector<T> ordered_sum(int ranks, std::int64_t elements, std::uint64_t seed,
                           std::int64_t begin) {
  std::vector<T> total(at(elements));
  for (std::int64_t i = 0; i < elements; ++i) {
    T element = static_cast<T>(value(seed, 0, begin + i));
    for (int rank = 1; rank < ranks; ++rank)
      element += static_cast<T>(value(seed, rank, begin + i));
    total[at(i)] = element;
  }
  return total;
}

template <class T>
void reduce_scatter_case(Communicator& world, const Counts& counts, std::uint64_t seed) {
  const Stream stream = Stream::cpu("reduce", 2);
  const Tensor input = tensor_of<T>(sum(counts), seed, world.rank(), stream);
  const Tensor output({counts[at(world.rank())]}, DTypeOf<T>::value, stream);
  world.reset_sent_bytes();
  world.reduce_scatter(input, output, counts, stream);
  expect_same(
      read<T>(output, stream),
      ordered_sum<T>(world.size(), counts[at(world.rank())], seed, offset(counts, world.rank())),
      "reduce_scatter");
  expect_same(read<T>(input, stream), expected_of<T>(sum(counts), seed, world.rank()), "input");
  EXPECT_EQ(world.sent_bytes(), input.bytes() - output.bytes());
}

void reduce_scatter(Communicator& world) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    reduce_scatter_case<float>(world, uneven_counts(seed, world.size()), seed);
    reduce_scatter_case<double>(world, uneven_counts(seed + 20, world.size()), seed);
  }
  reduce_scatter_case<float>(world, Counts(at(world.size()), 0), 30);
  Counts one_owner(at(world.size()), 0);
  one_owner.back() = 4099;
  reduce_scatter_case<float>(world, one_owner, 31);
}

template <class T>
void all_reduce_case(Communicator& world, std::int64_t elements, std::uint64_t seed) {
  const Stream stream = Stream::cpu("reduce", 2);
  const Tensor values = tensor_of<T>(elements, seed, world.rank(), stream);
  world.reset_sent_bytes();
  world.all_reduce(values, stream);
  expect_same(read<T>(values, stream), ordered_sum<T>(world.size(), elements, seed, 0),
              concat("all_reduce of ", elements));
  const std::int64_t own =
      elements * (world.rank() + 1) / world.size() - elements * world.rank() / world.size();
  EXPECT_EQ(world.sent_bytes(),
            (elements - own + own * (world.size() - 1)) * size_bytes(values.dtype()));
}

void all_reduce(Communicator& world) {
  for (const std::int64_t elements : {0, 1, 2, 7, 127, 1000, 20011}) {
    all_reduce_case<float>(world, elements, 40);
    all_reduce_case<double>(world, elements, 41);
  }
  const Stream stream = Stream::cpu("reduce");
  const Tensor wrong({4}, DType::bfloat16, stream);
  EXPECT_THROW(world.all_reduce(wrong, stream), Error);
}

/// Long enough that the reduction goes through its staging several times.
void all_reduce_in_chunks(Communicator& world) {
  if (world.size() > 4) return;
  all_reduce_case<float>(world, 3'000'017, 42);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Sum over ranks, by a collective that the other tests hold against its oracle.
double total(Communicator& world, double part, const Stream& stream) {
  const Tensor value({1}, DType::float64, stream);
  fill(value, part, stream);
  world.all_reduce(value, stream);
  return read<double>(value, stream)[0];
}

/// <A x, y> = <x, A' y> of every collective with the adjoint that communicator.h declares, and of
/// an exchange with the exchange back.
void adjoints(Communicator& world) {
  const Stream stream = Stream::cpu("adjoint");
  const Counts counts = uneven_counts(60, world.size());
  const std::int64_t own = counts[at(world.rank())], all = sum(counts);
  const auto close = [&](double forward, double backward, double scale, const char* what) {
    // Both sides sum the same products in another order.
    EXPECT_NEAR(forward, backward, 1e-13 * (1.0 + scale)) << what;
  };
  const auto run = [&](const char* what, std::int64_t input, std::int64_t output, const auto& apply,
                       const auto& adjoint) {
    const Tensor x = tensor_of<double>(input, 61, world.rank(), stream);
    const Tensor y = tensor_of<double>(output, 62, world.rank(), stream);
    const Tensor ax({output}, DType::float64, stream), aty({input}, DType::float64, stream);
    apply(x, ax);
    adjoint(y, aty);
    const auto vx = read<double>(x, stream), vy = read<double>(y, stream);
    const auto vax = read<double>(ax, stream), vaty = read<double>(aty, stream);
    const double scale =
        std::sqrt(total(world, dot(vx, vx), stream) * total(world, dot(vy, vy), stream));
    close(total(world, dot(vax, vy), stream), total(world, dot(vx, vaty), stream),
          scale * world.size(), what);
  };
  const auto gather = [&](const Tensor& x, const Tensor& out) {
    world.all_gather(x, out, counts, stream);
  };
  const auto scatter = [&](const Tensor& x, const Tensor& out) {
    world.reduce_scatter(x, out, counts, stream);
  };
  run("all_gather", own, all, gather, scatter);
  run("reduce_scatter", all, own, scatter, gather);
  const auto reduce = [&](const Tensor& x, const Tensor& out) {
    copy(x, out, stream);
    world.all_reduce(out, stream);
  };
  run("all_reduce", 100, 100, reduce, reduce);
  Counts out, in;
  for (int peer = 0; peer < world.size(); ++peer) {
    out.push_back(nasty_size(63, world.rank(), peer));
    in.push_back(nasty_size(63, peer, world.rank()));
  }
  // Messages between all, and the same back.
  const auto between_all = [&](const Counts& sent, const Counts& received) {
    return [&](const Tensor& x, const Tensor& y) {
      std::vector<runtime::SendMessage> sends;
      std::vector<runtime::ReceiveMessage> receives;
      for (int peer = 0; peer < world.size(); ++peer) {
        const std::int64_t from = offset(sent, peer), to = offset(received, peer);
        sends.push_back({peer, {x.view().slice(0, from, from + sent[at(peer)])}});
        receives.push_back({peer, {y.view().slice(0, to, to + received[at(peer)])}});
      }
      world.exchange(std::move(sends), std::move(receives), "between all", stream);
    };
  };
  run("exchange", sum(out), sum(in), between_all(out, in), between_all(in, out));
}

/// Odd and empty-handed groups, reversed order, groups of groups, and duplicates; all usable at
/// once.
void split(Communicator& world) {
  const Stream stream = Stream::cpu("split");
  const auto thirds = world.split(world.rank() % 3, -world.rank(), "thirds");
  const auto alone = world.split(world.rank() == 0 ? -5 : 1, 0, "alone");
  const auto twin = world.split(0, world.rank(), "twin");
  EXPECT_EQ(thirds->name(), "thirds");
  std::vector<int> members;
  for (int rank = world.size() - 1; rank >= 0; --rank) {
    if (rank % 3 == world.rank() % 3) members.push_back(rank);
  }
  ASSERT_EQ(thirds->size(), static_cast<int>(members.size()));
  EXPECT_EQ(members[at(thirds->rank())], world.rank());
  EXPECT_EQ(alone->size(), world.rank() == 0 ? 1 : world.size() - 1);
  EXPECT_EQ(twin->rank(), world.rank());
  const Tensor mine = tensor_of<float>(1, 70, world.rank(), stream);
  const Tensor gathered({thirds->size()}, DType::float32, stream);
  thirds->all_gather(mine, gathered, Counts(members.size(), 1), stream);
  std::vector<float> expected;
  for (const int rank : members) expected.push_back(static_cast<float>(value(70, rank, 0)));
  expect_same(read<float>(gathered, stream), expected, "thirds");
  const auto pairs = thirds->split(thirds->rank() / 2, 0, "pairs");
  const Tensor count({1}, DType::float32, stream);
  fill(count, 1, stream);
  pairs->all_reduce(count, stream);
  EXPECT_EQ(read<float>(count, stream)[0],
            static_cast<float>(std::min(2, thirds->size() - thirds->rank() / 2 * 2)));
  EXPECT_EQ(pairs->sent_bytes(), pairs->size() == 1 ? 0 : 4);
}

/// Around and beyond the limit at which MPI tests split a message (64 KiB), and pieces in both
/// directions.
void long_messages(Communicator& world) {
  const Stream stream = Stream::cpu("long");
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  for (const std::int64_t elements : {16383, 16384, 16385, 3 * 16384 + 5, 4 * 16384}) {
    const Tensor out = tensor_of<float>(elements, 80, world.rank(), stream);
    const Tensor first({elements}, DType::float32, stream),
        second({elements}, DType::float32, stream);
    world.exchange({{next, {out}}, {previous, {out}}},
                   {{previous, {first.view()}}, {next, {second.view()}}}, "long_messages", stream);
    if (world.size() != 2 && world.size() != 1) {
      expect_same(read<float>(second, stream), expected_of<float>(elements, 80, next), "from next");
    }
    expect_same(read<float>(first, stream), expected_of<float>(elements, 80, previous),
                concat(elements, " elements"));
  }
}

/// Communicators of their own on streams of their own, each with a chain of operations, none
/// synchronised.
void concurrent_streams(Communicator& world) {
  constexpr int kStreams = 4, kRounds = 12;
  struct Lane {
    Stream stream;
    std::unique_ptr<Communicator> comm;
    Tensor values, incoming;
  };
  std::vector<Lane> lanes;
  for (int i = 0; i < kStreams; ++i) {
    Stream stream = Stream::cpu(concat("lane ", i));
    auto comm = world.split(0, world.rank(), concat("lane ", i));
    Tensor values({257}, DType::float64, stream), incoming({257}, DType::float64, stream);
    fill(values, world.rank() + i, stream);
    lanes.push_back({stream, std::move(comm), std::move(values), std::move(incoming)});
  }
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  for (int round = 0; round < kRounds; ++round) {
    // Ranks issue in different orders: only the order within a communicator counts.
    for (int i = 0; i < kStreams; ++i) {
      Lane& lane = lanes[at((i + world.rank()) % kStreams)];
      lane.comm->exchange({{next, {lane.values}}}, {{previous, {lane.incoming.view()}}}, "pass on",
                          lane.stream);
      copy(lane.incoming, lane.values, lane.stream);
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    const int origin = ((world.rank() - kRounds) % world.size() + world.size()) % world.size();
    expect_same(read<double>(lanes[at(i)].values, lanes[at(i)].stream),
                std::vector<double>(257, origin + i), concat("lane ", i));
  }
}

/// Nobody leaves a barrier before everybody has come.
void barrier(Communicator& world) {
  const Stream stream = Stream::cpu("barrier");
  world.reset_sent_bytes();
  const auto late = std::chrono::milliseconds(100);
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
  const Clock::time_point begin = Clock::now();
  if (world.rank() == world.size() - 1)
    stream.cpu_task([late] { std::this_thread::sleep_for(late); });
  world.barrier(stream);
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
  // The first barrier's exit is spread over ranks: half of the delay is proof enough.
  EXPECT_GT(Clock::now() - begin, late / 2);
  EXPECT_EQ(world.sent_bytes(), 0);
}

void wrong_arguments(Communicator& world) {
  const Stream stream = Stream::cpu("wrong");
  const Tensor four({4}, DType::float32, stream), five({5}, DType::float32, stream);
  const Counts counts(at(world.size()), 4);
  EXPECT_THROW(world.all_gather(five, four, counts, stream), Error);
  EXPECT_THROW(world.all_gather(four, four, Counts(at(world.size() + 1), 4), stream), Error);
  EXPECT_THROW(world.exchange({{world.size(), {four}}}, {}, "wrong peer", stream), Error);
  EXPECT_THROW(world.exchange({{world.rank(), {four}}}, {{world.rank(), {five.view()}}},
                              "wrong size", stream),
               Error);
  EXPECT_THROW(world.exchange({{world.rank(), {four}}}, {}, "no receive", stream), Error);
  EXPECT_THROW(world.all_reduce(four.view().slice(0, 0, 4).reshape({2, 2}).slice(1, 0, 1), stream),
               Error);
  world.barrier(stream);  // still in step
  stream.synchronize(deadline_in(kHostDeadlineSeconds));
}

/// A size mismatch is an error on the receiver, not a hang or a silent half.
void size_mismatch(Communicator& world) {
  if (world.size() < 2 || world.rank() > 1) return;
  for (const std::int64_t sent : {3, 9}) {
    const auto pair = Stream::cpu("mismatch");
    const Tensor out({sent}, DType::float32, pair), in({5}, DType::float32, pair);
    if (world.rank() == 0) {
      world.exchange({{1, {out}}}, {}, "mismatch", pair);
      pair.synchronize(deadline_in(kHostDeadlineSeconds));
      continue;
    }
    world.exchange({}, {{0, {in.view()}}}, "mismatch", pair);
    try {
      pair.synchronize(deadline_in(kHostDeadlineSeconds));
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::internal) << error.what();
      EXPECT_NE(std::string(error.what()).find("rank 1 expects 20 bytes from rank 0"),
                std::string::npos)
          << error.what();
    }
  }
}

}  // namespace

const std::vector<CommCase>& comm_cases() {
  static const std::vector<CommCase> cases{
      {"exchange_between_all", exchange_between_all},
      {"hints_change_no_byte", hints_change_no_byte},
      {"strided_views", strided_views},
      {"single_strided_view", single_strided_view},
      {"listed_rows", listed_rows},
      {"staging_is_what_does_not_lie_together", staging_is_what_does_not_lie_together},
      {"wire_dtype", wire_dtype},
      {"all_gather", all_gather},
      {"reduce_scatter", reduce_scatter},
      {"all_reduce", all_reduce},
      {"all_reduce_in_chunks", all_reduce_in_chunks},
      {"adjoints", adjoints},
      {"split", split},
      {"long_messages", long_messages},
      {"concurrent_streams", concurrent_streams},
      {"barrier", barrier},
      {"wrong_arguments", wrong_arguments},
      {"size_mismatch", size_mismatch},
  };
  return cases;
}

}  // namespace longhaul::test
