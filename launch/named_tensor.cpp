#include "launch/named_tensor.h"

#include <algorithm>
#include <cmath>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace longhaul::launch {

using runtime::ExitCode;
using runtime::fail;

namespace {
bool not_finite(float x) { return !std::isfinite(x); }
}  // namespace

std::string NamedTensor::at(std::int64_t index) const {
  std::string text = "]";
  for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
    text = runtime::concat(size + 1 == sizes.rend() ? "" : ", ", index % *size) + text;
    index /= *size;
  }
  return runtime::concat(name, "[", text);
}

std::string NamedTensor::value(std::int64_t index) const {
  const float x = values[static_cast<std::size_t>(index)];
  return std::isnan(x) ? "nan" : runtime::concat(x);
}

std::optional<std::int64_t> NamedTensor::first(bool (*wrong)(float)) const {
  const auto found = std::ranges::find_if(values, wrong);
  if (found == values.end()) return std::nullopt;
  return found - values.begin();
}

void check_bfloat16(const std::string& path, std::span<const NamedTensor> tensors) {
  const auto beyond = [](float x) {
    return std::isfinite(x) && !std::isfinite(static_cast<float>(runtime::BFloat16(x)));
  };
  for (const NamedTensor& tensor : tensors) {
    const auto found = tensor.first(beyond);
    if (!found) continue;
    fail(ExitCode::data, path, ": ", tensor.at(*found), " is ", tensor.value(*found),
         ", which rounds to infinity in bfloat16; expected at most 3.3895e38, or use --dtype "
         "float32");
  }
}

std::string first_not_finite(std::span<const NamedTensor> tensors) {
  for (const NamedTensor& tensor : tensors) {
    if (const auto found = tensor.first(not_finite))
      return runtime::concat(tensor.at(*found), " is ", tensor.value(*found));
  }
  return "";
}

std::string explain_wrong(const std::string& wrong, std::span<const NamedTensor> of_case,
                          const char* expected) {
  const std::string in_case = first_not_finite(of_case);
  if (!in_case.empty()) return runtime::concat(wrong, "; in the case, ", in_case);
  fail(ExitCode::internal, wrong,
       ", although every number of the case is finite: a sum left float32's range; expected ",
       expected, ". Nothing was written");
}

}  // namespace longhaul::launch
