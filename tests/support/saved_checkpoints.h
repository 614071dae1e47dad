#pragma once
// Checkpoints of a few tensors that tests save, and what a test knows of them.

#include <cstddef>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "runtime/io/checkpoint.h"

namespace longhaul::test {

struct Spec {
  std::string name;
  runtime::DType dtype;
  std::vector<std::int64_t> sizes;
};
/// Every dtype; sizes that do not divide, one element, none.
extern const std::vector<Spec> kTensors;

std::int64_t product(const std::vector<std::int64_t>& sizes);

/// The bytes of a whole tensor, from its name and a version alone.
std::vector<std::byte> global_bytes(const Spec& spec, std::int64_t version);

struct Range {
  std::int64_t begin, end;
};
/// Even cut of `size` into `parts`, the first ones larger; ranks beyond the size get nothing.
Range part_of(std::int64_t size, int parts, int part);

/// Rank `rank`'s slices when every tensor is cut along `dim` (its last one if it has fewer). The
/// views are strided views of the global tensors, which `memory` keeps.
std::vector<runtime::TensorSlice> slices_of(const std::vector<Spec>& specs, int rank, int ranks,
                                            int dim, std::int64_t version,
                                            std::vector<std::vector<std::byte>>& memory);

runtime::CheckpointMetadata metadata_of(std::int64_t step);

void save(const std::filesystem::path& folder, std::int64_t step, int ranks, int dim = 0,
          std::int64_t keep = 0, std::int64_t version = -1,
          const std::vector<Spec>& specs = kTensors);

/// Reads every tensor in `parts` pieces along `dim`, and compares with what was saved.
void expect_reads(const runtime::Checkpoint& checkpoint, int parts, int dim, std::int64_t version,
                  const std::vector<Spec>& specs = kTensors);

/// Of what is in the folder itself.
std::set<std::string> names_in(const std::filesystem::path& folder);

}  // namespace longhaul::test
