#include "tests/support/tensor_contract.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>

#include "runtime/ops/host_copy.h"
#include "tests/support/host_tensors.h"
#include "tests/support/ops_data.h"

namespace longhaul::test {
namespace {

using namespace runtime;

using Three = std::array<std::int64_t, 3>;

/// Dense memory of these sizes and the part of it that an operation sees.
struct Part {
  Three memory, begin, end;
  std::int64_t offset = 0;  // elements from an aligned address to the memory

  std::int64_t elements() const { return memory[0] * memory[1] * memory[2]; }
  TensorView of(const Placed& placed) const {
    TensorView view = placed.view;
    for (int dim = 0; dim < 3; ++dim) view = view.slice(dim, begin[at(dim)], end[at(dim)]);
    return view;
  }
  Three sizes() const { return {end[0] - begin[0], end[1] - begin[1], end[2] - begin[2]}; }
  std::size_t index(std::int64_t i, std::int64_t j, std::int64_t k) const {
    return at(((begin[0] + i) * memory[1] + begin[1] + j) * memory[2] + begin[2] + k);
  }
};

void for_each(const Three& sizes,
              const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body) {
  for (std::int64_t i = 0; i < sizes[0]; ++i) {
    for (std::int64_t j = 0; j < sizes[1]; ++j) {
      for (std::int64_t k = 0; k < sizes[2]; ++k) body(i, j, k);
    }
  }
}

Placed place(const Values& values, const Part& part, DType dtype, const Stream& stream) {
  return put(values, {part.memory[0], part.memory[1], part.memory[2]}, dtype, stream, part.offset);
}

/// From whole packs to single elements, aligned and not, one run of memory and many.
std::vector<std::pair<Part, Part>> pairs() {
  return {
      {{{4, 3, 16}, {0, 0, 0}, {4, 3, 16}}, {{4, 3, 16}, {0, 0, 0}, {4, 3, 16}}},
      {{{4, 3, 32}, {0, 0, 8}, {4, 3, 24}}, {{4, 5, 16}, {0, 1, 0}, {4, 4, 16}}},
      {{{4, 3, 32}, {0, 0, 4}, {4, 3, 20}}, {{4, 5, 16}, {0, 1, 0}, {4, 4, 16}}},
      {{{4, 3, 16}, {0, 0, 0}, {4, 3, 16}, 1}, {{4, 3, 16}, {0, 0, 0}, {4, 3, 16}}},
      {{{7, 5, 11}, {1, 1, 2}, {6, 4, 9}}, {{6, 4, 9}, {0, 0, 1}, {5, 3, 8}}},
      {{{9, 4, 20}, {0, 1, 0}, {9, 3, 16}}, {{9, 2, 24}, {0, 0, 8}, {9, 2, 24}}},
      {{{3, 1, 1}, {1, 0, 0}, {2, 1, 1}}, {{1, 1, 1}, {0, 0, 0}, {1, 1, 1}}},
      {{{127, 1, 1}, {0, 0, 0}, {127, 1, 1}}, {{127, 3, 1}, {0, 1, 0}, {127, 2, 1}}},
      {{{40, 64, 8}, {0, 0, 0}, {40, 64, 8}}, {{40, 64, 8}, {0, 0, 0}, {40, 64, 8}, 8}},
  };
}

void expect_copies(const TensorOperations& operations, const Stream& stream) {
  constexpr DType kFloats[] = {DType::float32, DType::bfloat16, DType::float64};
  std::vector<std::pair<DType, DType>> dtypes = {
      {DType::int32, DType::int32}, {DType::int64, DType::int64}, {DType::uint8, DType::uint8}};
  for (const DType from : kFloats) {
    for (const DType to : kFloats) dtypes.emplace_back(from, to);
  }
  int number = 0;
  for (const auto& [src, dst] : pairs()) {
    ++number;
    for (const auto& [from, to] : dtypes) {
      SCOPED_TRACE(concat("pair ", number, " from ", name(from), " to ", name(to)));
      const bool whole =
          from == to && (from == DType::int32 || from == DType::int64 || from == DType::uint8);
      Values values = random_values(src.elements(), 1, from == DType::bfloat16),
             result(at(dst.elements()), 77);
      if (whole) {
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i % 251);
      }
      const Placed ts = place(values, src, from, stream), td = place(result, dst, to, stream);
      operations.copy(src.of(ts), dst.of(td), stream);
      for_each(src.sizes(), [&](std::int64_t i, std::int64_t j, std::int64_t k) {
        const double value = values[src.index(i, j, k)];
        result[dst.index(i, j, k)] = to == DType::bfloat16 ? rounded(value, to) : value;
      });
      EXPECT_EQ(get(td, stream), result);
    }
  }
}

void expect_sums_and_fills(const TensorOperations& operations, const Stream& stream) {
  int number = 0;
  for (const auto& [src, dst] : pairs()) {
    SCOPED_TRACE(concat("pair ", ++number));
    const Values values = random_values(src.elements(), 1);
    Values sums = random_values(dst.elements(), 2);
    const Placed ts = place(values, src, DType::float32, stream),
                 td = place(sums, dst, DType::float32, stream);
    operations.accumulate(src.of(ts), dst.of(td), stream);
    for_each(src.sizes(), [&](std::int64_t i, std::int64_t j, std::int64_t k) {
      double& sum = sums[dst.index(i, j, k)];
      sum = rounded(sum + values[src.index(i, j, k)], DType::float32);
    });
    EXPECT_EQ(get(td, stream), sums);
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float64, DType::int32,
                              DType::int64, DType::uint8}) {
      SCOPED_TRACE(name(dtype));
      const double value = size_bytes(dtype) < 4 ? 3 : 16777213;
      Values filled(at(dst.elements()), 77);
      const Placed memory = place(filled, dst, dtype, stream);
      operations.fill(dst.of(memory), value, stream);
      for_each(dst.sizes(), [&](std::int64_t i, std::int64_t j, std::int64_t k) {
        filled[dst.index(i, j, k)] = value;
      });
      EXPECT_EQ(get(memory, stream), filled);
    }
  }
}

void expect_rows(const TensorOperations& operations, const Stream& stream) {
  const auto moves = std::make_shared<const RowMoves>(
      std::vector<RowMove>{{0, 5, 2}, {3, 9, 1}, {4, 0, 3}, {9, 20, 11}});
  const Buffer table = stream.allocate(static_cast<std::int64_t>(moves->table().size()));
  ops::upload_bytes(moves->table(), table.data(), stream);
  const RowList list{moves, table.data()},
      none{std::make_shared<const RowMoves>(std::vector<RowMove>{})};
  const auto for_each_move = [&](const Part& src, const auto& body) {
    for (const RowMoves::Entry& entry : moves->entries()) {
      for_each({entry.count, src.sizes()[1], src.sizes()[2]},
               [&](std::int64_t i, std::int64_t j, std::int64_t k) {
                 body(entry.from + i, entry.to + i, j, k);
               });
    }
  };
  const std::pair<Part, Part> shapes[] = {
      {{{21, 3, 16}, {0, 0, 0}, {21, 3, 16}}, {{33, 3, 16}, {0, 0, 0}, {33, 3, 16}}},
      {{{21, 3, 16}, {0, 0, 0}, {21, 2, 16}}, {{33, 4, 24}, {0, 1, 8}, {33, 3, 24}}},
      {{{21, 3, 7}, {0, 0, 1}, {21, 2, 6}}, {{33, 4, 8}, {0, 1, 3}, {33, 3, 8}}},
      {{{21, 3, 16}, {0, 0, 0}, {21, 3, 16}, 1}, {{33, 3, 16}, {0, 0, 0}, {33, 3, 16}}},
  };
  int number = 0;
  for (const auto& [src, dst] : shapes) {
    ++number;
    for (const DType from : {DType::float32, DType::bfloat16}) {
      for (const DType to : {DType::float32, DType::bfloat16}) {
        SCOPED_TRACE(concat("rows of shape ", number, " from ", name(from), " to ", name(to)));
        const Values values = random_values(src.elements(), 1, from == DType::bfloat16);
        Values result = random_values(dst.elements(), 2, true);
        const Placed ts = place(values, src, from, stream), td = place(result, dst, to, stream);
        operations.copy_rows(src.of(ts), dst.of(td), none, stream);
        operations.copy_rows(src.of(ts), dst.of(td), list, stream);
        for_each_move(src, [&](std::int64_t a, std::int64_t b, std::int64_t j, std::int64_t k) {
          result[dst.index(b, j, k)] = rounded(values[src.index(a, j, k)], to);
        });
        EXPECT_EQ(get(td, stream), result);
        if (from != DType::float32 || to != DType::float32) continue;
        operations.accumulate_rows(src.of(ts), dst.of(td), list, stream);
        for_each_move(src, [&](std::int64_t a, std::int64_t b, std::int64_t j, std::int64_t k) {
          double& sum = result[dst.index(b, j, k)];
          sum = rounded(sum + values[src.index(a, j, k)], to);
        });
        EXPECT_EQ(get(td, stream), result);
      }
    }
  }
}

}  // namespace

void expect_tensor_contract(const TensorOperations& operations, const Stream& stream) {
  expect_copies(operations, stream);
  expect_sums_and_fills(operations, stream);
  expect_rows(operations, stream);
}

}  // namespace longhaul::test
