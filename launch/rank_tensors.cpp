#include "launch/rank_tensors.h"

#include <algorithm>

#include "launch/replay.h"
#include "runtime/comm/gather.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {

using runtime::Communicator;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {
/// A tensor's elements on the host; blocks.
std::vector<float> values_of(const Tensor& tensor, const Stream& stream) {
  const auto values = runtime::ops::download<float>(tensor, stream);
  stream.synchronize(replay_deadline());
  return *values;
}
}  // namespace

Tensor RankTensors::upload(const std::vector<float>& global, std::int64_t heads, std::int64_t width,
                           DType dtype) const {
  const std::int64_t row_elements = heads * width;
  std::vector<float> mine;
  mine.reserve(static_cast<std::size_t>(size() * row_elements));
  for (const std::int64_t token : tokens_) {
    const auto row = global.begin() + token * row_elements;
    mine.insert(mine.end(), row, row + row_elements);
  }
  Tensor rows = upload_all(std::move(mine), {size(), heads, width});
  if (dtype == DType::float32) return rows;
  return cast(rows, dtype);
}

Tensor RankTensors::cast(const Tensor& values, DType dtype) const {
  Tensor copy(values.view().sizes(), dtype, compute_);
  runtime::copy(values, copy, compute_);
  return copy;
}

Tensor RankTensors::upload_all(std::vector<float> values,
                               std::initializer_list<std::int64_t> sizes) const {
  Tensor device = make(sizes);
  runtime::ops::upload(std::move(values), device, compute_);
  return device;
}

Tensor RankTensors::make(std::initializer_list<std::int64_t> sizes, DType dtype) const {
  return Tensor(sizes, dtype, compute_);
}

std::vector<float> RankTensors::download(const Tensor& tensor) const {
  if (tensor.view().dtype() == DType::float32) return values_of(tensor, compute_);
  return values_of(cast(tensor, DType::float32), compute_);
}

std::vector<std::vector<float>> gather_parts(Communicator& world, const std::vector<float>& mine,
                                             const std::vector<std::int64_t>& counts,
                                             const Stream& stream) {
  const Tensor own({static_cast<std::int64_t>(mine.size())}, DType::float32, stream);
  runtime::ops::upload(mine, own, stream);
  std::vector<Tensor> parts;
  std::vector<runtime::ReceiveMessage> receives;
  if (world.rank() == 0) {
    for (int rank = 0; rank < world.size(); ++rank) {
      parts.emplace_back(
          std::initializer_list<std::int64_t>{counts[static_cast<std::size_t>(rank)]},
          DType::float32, stream);
      receives.push_back({rank, {parts.back()}});
    }
  }
  world.exchange({{0, {own}}}, std::move(receives), "gather of results", stream);
  stream.synchronize(replay_deadline());
  std::vector<std::vector<float>> all;
  for (const Tensor& part : parts) all.push_back(values_of(part, stream));
  return all;
}

std::vector<float> gather_rows(Communicator& world, const parallel::Layout& layout,
                               const std::vector<float>& mine, std::int64_t row_elements,
                               const Stream& stream) {
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < world.size(); ++rank)
    counts.push_back(layout.rows(rank) * row_elements);
  const auto parts = gather_parts(world, mine, counts, stream);
  std::vector<float> global;
  if (parts.empty()) return global;
  global.resize(static_cast<std::size_t>(layout.tokens() * row_elements));
  for (int rank = 0; rank < world.size(); ++rank) {
    auto from = parts[static_cast<std::size_t>(rank)].begin();
    for (const std::int64_t token : layout.tokens_of(rank)) {
      std::copy_n(from, row_elements, global.begin() + token * row_elements);
      from += row_elements;
    }
  }
  return global;
}

std::vector<float> gather_sums(Communicator& world, const std::vector<float>& mine,
                               const Stream& stream) {
  std::vector<float> sums(mine.size(), 0);
  for (const auto& rank : runtime::gather_numbers(
           world, std::vector<double>(mine.begin(), mine.end()), stream, replay_deadline())) {
    for (std::size_t i = 0; i < rank.size(); ++i) sums[i] += static_cast<float>(rank[i]);
  }
  return sums;
}

}  // namespace longhaul::launch
