#include "models/parameters.h"

#include <utility>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/random.h"

namespace longhaul::models {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::Stream;
using runtime::TensorView;

namespace {

/// FNV-1a: a name's random stream does not depend on what else the table holds.
std::uint64_t name_digest(const std::string& name) {
  std::uint64_t digest = 14695981039346656037u;
  for (const char letter : name)
    digest = (digest ^ static_cast<unsigned char>(letter)) * 1099511628211u;
  return digest;
}

TensorView view_of(const TensorView& flat, const Parameter& parameter) {
  const TensorView range = flat.slice(0, parameter.range.begin, parameter.range.end);
  return {range.data(), range.dtype(), range.device(), parameter.sizes};
}

}  // namespace

void ParameterTable::add(Parameter parameter) {
  LONGHAUL_CHECK(parameters_.empty() ? parameter.group == 0
                                     : parameter.group == parameters_.back().group ||
                                           parameter.group == parameters_.back().group + 1,
                 "parameter '", parameter.name, "' is of group ", parameter.group,
                 ", out of order");
  LONGHAUL_CHECK(index_.emplace(parameter.name, parameters_.size()).second, "parameter '",
                 parameter.name, "' is listed twice");
  std::int64_t elements = 1;
  for (const std::int64_t size : parameter.sizes) elements *= size;
  parameter.range = {elements_, elements_ + elements};
  elements_ += elements;
  parameters_.push_back(std::move(parameter));
}

ElementRange ParameterTable::group_range(int group) const {
  ElementRange range{elements_, 0};
  for (const Parameter& parameter : parameters_) {
    if (parameter.group != group) continue;
    range.begin = std::min(range.begin, parameter.range.begin);
    range.end = std::max(range.end, parameter.range.end);
  }
  LONGHAUL_CHECK(range.begin <= range.end, "there is no parameter group ", group);
  return range;
}

const Parameter& ParameterTable::find(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) fail(ExitCode::data, "the model has no parameter '", name, "'");
  return parameters_[found->second];
}

ParameterStore::ParameterStore(ParameterTable table, DType working_dtype, const Stream& compute)
    : table_(std::move(table)),
      working_dtype_(working_dtype),
      values_({table_.elements()}, DType::float32, compute),
      gradients_({table_.elements()}, DType::float32, compute),
      first_moments_({table_.elements()}, DType::float32, compute),
      second_moments_({table_.elements()}, DType::float32, compute) {
  if (working_dtype != DType::float32 && working_dtype != DType::bfloat16) {
    fail(ExitCode::config, "activations are float32 or bfloat16, not ", name(working_dtype));
  }
  if (working_dtype == DType::bfloat16) {
    working_ = runtime::Tensor({table_.elements()}, DType::bfloat16, compute);
  }
  fill(gradients_, 0, compute);
  fill(first_moments_, 0, compute);
  fill(second_moments_, 0, compute);
}

void ParameterStore::initialise(std::uint64_t seed, const Stream& stream) {
  for (const Parameter& parameter : table_.parameters()) {
    const TensorView values = view_of(values_, parameter);
    switch (parameter.initialisation) {
      case Initialisation::ones:
        fill(values, 1, stream);
        break;
      case Initialisation::normal:
        runtime::ops::fill_normal(values, 0, parameter.stddev, {seed, name_digest(parameter.name)},
                                  0, stream);
        break;
    }
  }
  values_changed();
}

TensorView ParameterStore::value(const std::string& name) const {
  return view_of(values_, table_.find(name));
}

TensorView ParameterStore::gradient(const std::string& name) const {
  return view_of(gradients_, table_.find(name));
}

ConstTensorView ParameterStore::working(const std::string& name) const {
  return view_of(working_.empty() ? values_ : working_, table_.find(name));
}

void ParameterStore::refresh_working_copy(const Stream& stream) {
  if (std::exchange(stale_, false) && !working_.empty())
    runtime::ops::cast(values_, working_, stream);
}

void ParameterStore::zero_gradients(const Stream& stream) { fill(gradients_, 0, stream); }

std::vector<NamedTensor> ParameterStore::named_tensors() const {
  std::vector<NamedTensor> tensors;
  const auto list = [&](const std::string& prefix, const TensorView& flat) {
    for (const Parameter& parameter : table_.parameters()) {
      tensors.push_back({prefix + parameter.name, view_of(flat, parameter)});
    }
  };
  list("", values_);
  list("optimizer.exp_avg.", first_moments_);
  list("optimizer.exp_avg_sq.", second_moments_);
  return tensors;
}

}  // namespace longhaul::models
