#include "runtime/comm/gather.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace longhaul::runtime {

std::vector<std::string> gather_texts(Communicator& world, const std::string& own,
                                      const Stream& stream, Deadline deadline) {
  const auto ranks = static_cast<std::size_t>(world.size());
  Tensor length({1}, DType::int64, stream);
  Tensor lengths({world.size()}, DType::int64, stream);
  stream.cpu_task([to = length.as<std::int64_t>(), bytes = own.size()] {
    *to = static_cast<std::int64_t>(bytes);
  });
  world.all_gather(length, lengths, std::vector<std::int64_t>(ranks, 1), stream);
  stream.synchronize(deadline);
  const std::vector<std::int64_t> counts(lengths.as<std::int64_t>(),
                                         lengths.as<std::int64_t>() + ranks);
  Tensor text({counts[static_cast<std::size_t>(world.rank())]}, DType::uint8, stream);
  Tensor texts({std::accumulate(counts.begin(), counts.end(), std::int64_t{0})}, DType::uint8,
               stream);
  stream.cpu_task([to = text.view().data(), own] { std::memcpy(to, own.data(), own.size()); });
  world.all_gather(text, texts, counts, stream);
  stream.synchronize(deadline);
  std::vector<std::string> result;
  const char* at = reinterpret_cast<const char*>(texts.view().data());
  for (const std::int64_t count : counts) {
    result.emplace_back(at, static_cast<std::size_t>(count));
    at += count;
  }
  return result;
}

std::vector<std::vector<double>> gather_numbers(Communicator& comm, const std::vector<double>& own,
                                                const Stream& stream, Deadline deadline) {
  const auto count = static_cast<std::int64_t>(own.size());
  const auto ranks = static_cast<std::size_t>(comm.size());
  Tensor mine({count}, DType::float64, stream);
  Tensor all({count * comm.size()}, DType::float64, stream);
  stream.cpu_task([to = mine.as<double>(), own] { std::ranges::copy(own, to); });
  comm.all_gather(mine, all, std::vector<std::int64_t>(ranks, count), stream);
  stream.synchronize(deadline);
  std::vector<std::vector<double>> result;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const double* from = all.as<double>() + static_cast<std::int64_t>(rank) * count;
    result.emplace_back(from, from + count);
  }
  return result;
}

}  // namespace longhaul::runtime
