#include "tests/support/host_tensors.h"

#include <cmath>
#include <cstring>
#include <random>

#include "runtime/ops/host_copy.h"

namespace longhaul::test {
namespace {

using namespace runtime;

template <class T>
void store(const std::vector<double>& values, std::byte* data) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    T value{};
    if constexpr (std::is_same_v<T, BFloat16>) {
      value = BFloat16(static_cast<float>(values[i]));
    } else {
      value = static_cast<T>(values[i]);
    }
    std::memcpy(data + i * sizeof(T), &value, sizeof(T));
  }
}

template <class T>
std::vector<double> load(const ConstTensorView& view) {
  const T* data = view.as<T>();
  std::vector<double> values;
  for (std::int64_t i = 0; i < view.elements(); ++i) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      values.push_back(static_cast<double>(static_cast<float>(data[i])));
    } else {
      values.push_back(static_cast<double>(data[i]));
    }
  }
  return values;
}

}  // namespace

std::vector<double> random_values(std::int64_t count, unsigned seed, bool bfloat16) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = uniform(engine);
    values.push_back(static_cast<double>(bfloat16 ? static_cast<float>(BFloat16(value)) : value));
  }
  return values;
}

Tensor make_tensor(const std::vector<double>& values, std::initializer_list<std::int64_t> sizes,
                   DType dtype, const Stream& stream) {
  Tensor tensor(sizes, dtype, stream);
  LONGHAUL_CHECK(tensor.elements() == static_cast<std::int64_t>(values.size()), "make_tensor of ",
                 values.size(), " values, sizes hold ", tensor.elements());
  stream.cpu_task([values, dtype, data = tensor.view().data()] {
    switch (dtype) {
      case DType::float32:
        return store<float>(values, data);
      case DType::bfloat16:
        return store<BFloat16>(values, data);
      case DType::float64:
        return store<double>(values, data);
      case DType::int32:
        return store<std::int32_t>(values, data);
      case DType::int64:
        return store<std::int64_t>(values, data);
      case DType::uint8:
        return store<std::uint8_t>(values, data);
    }
  });
  return tensor;
}

std::vector<double> read(ConstTensorView view, const Stream& stream) {
  stream.synchronize(deadline_in(120));
  switch (view.dtype()) {
    case DType::float32:
      return load<float>(view);
    case DType::bfloat16:
      return load<BFloat16>(view);
    case DType::float64:
      return load<double>(view);
    case DType::int32:
      return load<std::int32_t>(view);
    case DType::int64:
      return load<std::int64_t>(view);
    case DType::uint8:
      return load<std::uint8_t>(view);
  }
  return {};
}

std::vector<std::byte> read_bytes(ConstTensorView view, const Stream& stream) {
  const auto bytes = runtime::ops::download<std::uint8_t>(
      ConstTensorView(view.data(), DType::uint8, view.device(), {view.bytes()}), stream);
  stream.synchronize(deadline_in(120));
  const auto* begin = reinterpret_cast<const std::byte*>(bytes->data());
  return {begin, begin + bytes->size()};
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  LONGHAUL_CHECK(actual.size() == expected.size(), "relative_error of ", actual.size(), " and ",
                 expected.size(), " values");
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

}  // namespace longhaul::test
