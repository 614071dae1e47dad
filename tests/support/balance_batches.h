#pragma once
// The reference data on balance: batches of documents for attention servers, and what DistCA's
// published planner makes of each.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace longhaul::test {

struct BalanceBatch {
  std::string mix;
  std::int64_t context = 0;  ///< tokens of each server
  int servers = 0, batch = 0;
  std::vector<std::int64_t> lengths;
  /// "mix, context, servers": batches of a cell are drawn alike.
  std::string cell() const;
};
/// A CSV file of them, packed with gzip if its name says so.
std::vector<BalanceBatch> read_balance_batches(const std::filesystem::path& path);

/// A row of the published planner's results at one tolerance.
struct BalanceReference {
  double area_mean = 0, ratio_before = 0, ratio_after = 0;
  std::int64_t area_max_before = 0, key_bytes_before = 0, total_bytes = 0, peak_receiver_bytes = 0;
};
/// By cell, then by batch.
using BalanceReferences = std::map<std::string, std::map<int, BalanceReference>>;
BalanceReferences read_balance_references(const std::filesystem::path& path,
                                          const std::string& tolerance);

}  // namespace longhaul::test
