#pragma once
// Numbers of a case and of results, by dataset and element.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace longhaul::launch {

/// A dataset of the case or of the results, flat.
struct NamedTensor {
  const char* name;
  std::span<const float> values;
  std::vector<std::int64_t> sizes;
  /// "q[0, 5, 1, 3]".
  std::string at(std::int64_t index) const;
  /// As text; a NaN without its sign.
  std::string value(std::int64_t index) const;
  std::optional<std::int64_t> first(bool (*wrong)(float)) const;
};

/// Throws Error(data) where a finite element is beyond bfloat16.
void check_bfloat16(const std::string& path, std::span<const NamedTensor> tensors);

/// The first element that is no finite number, "dq[0, 5, 1, 3] is nan"; empty where all are.
std::string first_not_finite(std::span<const NamedTensor> tensors);

/// Of a wrong result: itself, with the first element of the case that is not finite. Throws
/// Error(internal) where the case is finite, ending in what was `expected`; nothing is written
/// then.
std::string explain_wrong(const std::string& wrong, std::span<const NamedTensor> of_case,
                          const char* expected);

}  // namespace longhaul::launch
