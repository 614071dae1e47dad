#pragma once
// How a block of many parameters adds them to the table.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "parallel/parameters.h"

namespace longhaul::models {

/// Adds parameters of one group whose names begin alike. Every call returns the full name.
class ParameterAdder {
 public:
  ParameterAdder(parallel::ParameterTable& table, std::string prefix, int group, double stddev)
      : table_(table), prefix_(std::move(prefix)), group_(group), stddev_(stddev) {}

  /// [out, in], normal, decayed.
  std::string matrix(const std::string& name, std::int64_t out, std::int64_t in) {
    return add({name, {out, in}, parallel::Initialisation::normal, stddev_, true, 0, group_});
  }
  /// The same that writes into the residual stream.
  std::string output_matrix(const std::string& name, std::int64_t out, std::int64_t in,
                            double stddev) {
    return add({name, {out, in}, parallel::Initialisation::normal, stddev, true, 1, group_});
  }
  /// All others: read in fp32, not decayed. `low` and `high`: of what is drawn between them.
  std::string other(const std::string& name, std::vector<std::int64_t> sizes,
                    parallel::Initialisation initialisation, double low = 0, double high = 0) {
    parallel::Parameter parameter{name, std::move(sizes), initialisation, 0, false, -1, group_};
    parameter.low = low;
    parameter.high = high;
    return add(std::move(parameter));
  }
  /// Of a short convolution: [channels, 1, width], U(+-1/sqrt(width)).
  std::string taps(const std::string& name, std::int64_t channels, std::int64_t width) {
    const double reach = 1 / std::sqrt(static_cast<double>(width));
    return other(name, {channels, 1, width}, parallel::Initialisation::uniform, -reach, reach);
  }

 private:
  std::string add(parallel::Parameter parameter) {
    parameter.name = prefix_ + parameter.name;
    std::string name = parameter.name;
    table_.add(std::move(parameter));
    return name;
  }

  parallel::ParameterTable& table_;
  const std::string prefix_;
  const int group_;
  const double stddev_;
};

}  // namespace longhaul::models
