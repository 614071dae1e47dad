// Lists of rows: gathers, scatters and sums over intervals, against single rows.
#include "runtime/rows.h"

#include <gtest/gtest.h>

#include <random>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

Deadline deadline() { return deadline_in(60); }

/// Random disjoint moves between views of `from` and `to` rows.
std::vector<RowMove> random_moves(std::int64_t from, std::int64_t to, std::mt19937& random) {
  std::vector<RowMove> moves;
  for (std::int64_t a = 0, b = 0;;) {
    a += random() % 3;
    b += random() % 3;
    const std::int64_t count = random() % 5;
    if (a + count > from || b + count > to) return moves;
    moves.push_back({a, b, count});
    a += count;
    b += count;
  }
}

Tensor ramp(std::initializer_list<std::int64_t> sizes, float first, const Stream& stream) {
  Tensor made(sizes, DType::float32, stream);
  stream.synchronize(deadline());
  for (std::int64_t i = 0; i < made.elements(); ++i)
    made.as<float>()[i] = first + static_cast<float>(i);
  return made;
}
std::vector<float> values(const Tensor& tensor, const Stream& stream) {
  stream.synchronize(deadline());
  return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

TEST(Rows, CopyAndSumMoveJustTheListedRows) {
  const Stream stream = Stream::cpu("rows");
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    const std::int64_t from = 1 + random() % 40, to = 1 + random() % 40;
    const std::vector<RowMove> moves = random_moves(from, to, random);
    const RowList list{std::make_shared<const RowMoves>(moves)};
    const Tensor src = ramp({from, 3, 5}, 1, stream), dst = ramp({to, 4, 5}, 1000, stream);
    std::vector<float> expected = values(dst, stream), source = values(src, stream);
    const bool sums = round % 2 == 0;
    std::int64_t rows = 0;
    for (const RowMove& move : moves) {
      rows += move.count;
      for (std::int64_t row = 0; row < move.count; ++row) {
        for (std::int64_t head = 0; head < 2; ++head) {
          for (std::int64_t d = 0; d < 5; ++d) {
            float& at =
                expected[static_cast<std::size_t>(((move.to + row) * 4 + head + 1) * 5 + d)];
            const float value =
                source[static_cast<std::size_t>(((move.from + row) * 3 + head) * 5 + d)];
            at = sums ? at + value : value;
          }
        }
      }
    }
    EXPECT_EQ(list.moves->rows(), rows);
    const ConstTensorView of = src.view().slice(1, 0, 2);
    const TensorView into = dst.view().slice(1, 1, 3);
    (sums ? accumulate_rows : copy_rows)(of, into, list, stream);
    EXPECT_EQ(values(dst, stream), expected) << "round " << round;
  }
}

TEST(Rows, NeighboursBecomeOneMove) {
  const std::vector<RowMove> moves{{0, 5, 2}, {2, 7, 3}, {5, 20, 0}, {6, 10, 1}};
  const RowMoves joined(moves);
  ASSERT_EQ(joined.entries().size(), 2u);
  EXPECT_EQ(joined.entries()[0].count, 5);
  EXPECT_EQ(joined.entries()[1].first, 5);
  EXPECT_EQ(joined.rows(), 6);
  EXPECT_EQ(RowMoves({}).rows(), 0);
}

TEST(Rows, RefusesWhatDoesNotFit) {
  const Stream stream = Stream::cpu("rows");
  const Tensor a({4, 3, 5}, DType::float32, stream), other({4, 2, 5}, DType::float32, stream);
  const Tensor narrow({4, 3, 5}, DType::bfloat16, stream);
  const RowList list{std::make_shared<const RowMoves>(std::vector<RowMove>{{0, 1, 2}})};
  EXPECT_THROW(copy_rows(a, other, list, stream), Error);
  EXPECT_THROW(copy_rows(a, a, {}, stream), Error);
  EXPECT_THROW(accumulate_rows(narrow, a, list, stream), Error);
  EXPECT_THROW(RowMoves(std::vector<RowMove>{{-1, 0, 2}}), Error);
}

}  // namespace
}  // namespace longhaul::runtime
