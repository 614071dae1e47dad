#include "tests/support/differences.h"

namespace longhaul::test {

std::vector<double> numeric_gradient(
    const std::function<std::vector<double>(const std::vector<double>&)>& f, std::vector<double> x,
    const std::vector<double>& weights) {
  constexpr double kStep = 3e-4;
  std::vector<double> gradient;
  for (double& element : x) {
    const double kept = element;
    const auto at = [&](double shift) {
      element = kept + shift * kStep;
      const std::vector<double> y = f(x);
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += weights[i] * y[i];
      return sum;
    };
    const double near = at(1) - at(-1), far = at(2) - at(-2);
    element = kept;
    gradient.push_back((8 * near - far) / (12 * kStep));
  }
  return gradient;
}

}  // namespace longhaul::test
