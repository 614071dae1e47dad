#pragma once
// Gradients of definitions in double, by differences.

#include <functional>
#include <vector>

namespace longhaul::test {

/// d (sum of weights * f(x)) / dx, by central differences of fourth order: of a smooth f of
/// moderate values to about 1e-10.
std::vector<double> numeric_gradient(
    const std::function<std::vector<double>(const std::vector<double>&)>& f, std::vector<double> x,
    const std::vector<double>& weights);

}  // namespace longhaul::test
