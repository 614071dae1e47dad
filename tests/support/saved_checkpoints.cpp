#include "tests/support/saved_checkpoints.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "runtime/comm/loopback.h"

namespace longhaul::test {

using namespace runtime;
namespace fs = std::filesystem;

const std::vector<Spec> kTensors{{"embedding.weight", DType::float32, {37, 11}},
                                 {"layers.0.norm", DType::bfloat16, {13}},
                                 {"layers.0.wq", DType::float64, {5, 7, 3}},
                                 {"layers.0.wq.exp_avg", DType::float32, {1, 1, 1, 1, 1}},
                                 {"counters", DType::int64, {2}},
                                 {"mask", DType::uint8, {1, 127}},
                                 {"empty", DType::int32, {0, 4}}};

std::int64_t product(const std::vector<std::int64_t>& sizes) {
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes) elements *= size;
  return elements;
}

std::vector<std::byte> global_bytes(const Spec& spec, std::int64_t version) {
  std::mt19937_64 random(std::hash<std::string>{}(spec.name) + static_cast<std::uint64_t>(version));
  std::vector<std::byte> bytes(
      static_cast<std::size_t>(product(spec.sizes) * size_bytes(spec.dtype)));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Range part_of(std::int64_t size, int parts, int part) {
  const std::int64_t base = size / parts, extra = size % parts;
  const std::int64_t begin = part * base + std::min<std::int64_t>(part, extra);
  return {begin, begin + base + (part < extra ? 1 : 0)};
}

std::vector<TensorSlice> slices_of(const std::vector<Spec>& specs, int rank, int ranks, int dim,
                                   std::int64_t version,
                                   std::vector<std::vector<std::byte>>& memory) {
  std::vector<TensorSlice> slices;
  for (const Spec& spec : specs) {
    const int cut = std::min(dim, static_cast<int>(spec.sizes.size()) - 1);
    const Range range = part_of(spec.sizes[static_cast<std::size_t>(cut)], ranks, rank);
    memory.push_back(global_bytes(spec, version));
    const ConstTensorView whole(memory.back().data(), spec.dtype, Device{}, spec.sizes);
    std::vector<std::int64_t> start(spec.sizes.size(), 0);
    start[static_cast<std::size_t>(cut)] = range.begin;
    slices.push_back({spec.name, spec.sizes, start, whole.slice(cut, range.begin, range.end)});
  }
  return slices;
}

CheckpointMetadata metadata_of(std::int64_t step) {
  return {step,     step * 8192,           step * 2,
          step - 1, 0xffffffffffffffffull, "[training]\nseq_len = 4096  # \"\xc3\xa9\"\n",
          "0123",   {{"note", "a\nb"}}};
}

void save(const fs::path& folder, std::int64_t step, int ranks, int dim, std::int64_t keep,
          std::int64_t version, const std::vector<Spec>& specs) {
  run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices =
        slices_of(specs, comm->rank(), ranks, dim, version < 0 ? step : version, memory);
    save_checkpoint({folder, keep}, metadata_of(step), slices, *comm, stream);
  });
}

void expect_reads(const Checkpoint& checkpoint, int parts, int dim, std::int64_t version,
                  const std::vector<Spec>& specs) {
  for (const Spec& spec : specs) {
    std::vector<std::byte> result(global_bytes(spec, version).size(), std::byte{0xee});
    const TensorView whole(result.data(), spec.dtype, Device{}, spec.sizes);
    const int cut = std::min(dim, static_cast<int>(spec.sizes.size()) - 1);
    for (int part = 0; part < parts; ++part) {
      const Range range = part_of(spec.sizes[static_cast<std::size_t>(cut)], parts, part);
      std::vector<std::int64_t> start(spec.sizes.size(), 0);
      start[static_cast<std::size_t>(cut)] = range.begin;
      checkpoint.read(spec.name, start, whole.slice(cut, range.begin, range.end));
    }
    EXPECT_EQ(result, global_bytes(spec, version))
        << spec.name << " in " << parts << " parts of dim " << dim;
  }
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.insert(entry.path().filename().string());
  return names;
}

}  // namespace longhaul::test
