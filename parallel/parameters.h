#pragma once
// The parameter table, plain data: what a model is made of by name, from which sizes,
// initialisation, storage, sharding seats and checkpoints derive.

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace longhaul::parallel {

enum class Initialisation : unsigned char {
  normal,
  ones,
  zeros,
  uniform,           ///< in (low, high)
  log_of_uniform,    ///< log of a number uniform in (low, high): A_log
  log_uniform_step,  ///< softplus of it is e^u, u uniform in (log low, log high): dt_bias
};

/// A half-open range of elements of the flat storage.
struct ElementRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t elements() const { return end - begin; }
  bool operator==(const ElementRange&) const = default;
};

/// The elements of both; an empty range where there are none.
inline ElementRange common(const ElementRange& a, const ElementRange& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

struct Parameter {
  std::string name;  ///< Hugging Face's, e.g. "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> sizes;  ///< [out, in] of a projection
  Initialisation initialisation = Initialisation::normal;
  double stddev = 0;  ///< of a normal initialisation
  bool weight_decay = false;
  int tensor_dim = -1;       ///< the dim that tensor parallelism would split; -1: replicated
  int group = 0;             ///< parameters whose gradients are complete together
  ElementRange range = {};   ///< where it lies in the flat storage
  double low = 0, high = 0;  ///< of a uniform initialisation
};

/// An ordered list of parameters. Groups are added in order, so each is one contiguous range: its
/// gradients travel as one message.
class ParameterTable {
 public:
  /// Appends a parameter (its range is set here). Throws on a repeated name or a group out of
  /// order.
  void add(Parameter parameter);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t elements() const { return elements_; }
  int groups() const { return parameters_.empty() ? 0 : parameters_.back().group + 1; }
  ElementRange group_range(int group) const;
  /// Throws Error(data) for an unknown name.
  const Parameter& find(const std::string& name) const;

 private:
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, std::size_t> index_;
  std::int64_t elements_ = 0;
};

}  // namespace longhaul::parallel
