#include "models/parameters.h"

#include <cmath>
#include <utility>

#include "runtime/ops/cast.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/random.h"
#include "runtime/purpose.h"

namespace longhaul::models {

using parallel::Initialisation;
using parallel::Parameter;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::Write;

namespace {

/// FNV-1a: a name's random stream does not depend on what else the table holds. Which digest it is
/// belongs to the meaning of a seed: another one would draw other weights.
std::uint64_t name_digest(const std::string& name) {
  std::uint64_t digest = 14695981039346656037u;
  for (const char letter : name)
    digest = (digest ^ static_cast<unsigned char>(letter)) * 1099511628211u;
  return digest;
}

/// The values of a parameter that is drawn between its low and high.
std::vector<float> drawn(const Parameter& parameter, std::uint64_t seed) {
  std::vector<float> values;
  const double low = parameter.low, high = parameter.high;
  for (const double u :
       runtime::ops::uniforms(parameter.range.elements(), {seed, name_digest(parameter.name)})) {
    double value = low + (high - low) * u;
    if (parameter.initialisation == Initialisation::log_of_uniform) value = std::log(value);
    if (parameter.initialisation == Initialisation::log_uniform_step) {
      const double step = std::exp(std::log(low) + (std::log(high) - std::log(low)) * u);
      value = step + std::log(-std::expm1(-step));  // softplus' inverse
    }
    values.push_back(static_cast<float>(value));
  }
  return values;
}

runtime::Tensor storage(const parallel::ParameterTable& table, DType dtype, const char* what,
                        const Stream& compute) {
  const runtime::Purpose purpose(
      what, "only a smaller model, or fewer ranks on this host, needs less of it");
  return {{table.elements()}, dtype, compute};
}

}  // namespace

TensorView view_of(const TensorView& flat, const Parameter& parameter) {
  const TensorView range = flat.slice(0, parameter.range.begin, parameter.range.end);
  return {range.data(), range.dtype(), range.device(), parameter.sizes};
}

ParameterStore::ParameterStore(parallel::ParameterTable table, DType working_dtype,
                               const Stream& compute, Gradients gradients)
    : table_(std::move(table)),
      working_dtype_(working_dtype),
      values_(storage(table_, DType::float32, "the model's parameters", compute)),
      written_(table_.parameters().size(), false) {
  if (working_dtype != DType::float32 && working_dtype != DType::bfloat16) {
    fail(ExitCode::config, "activations are float32 or bfloat16, not ", name(working_dtype));
  }
  if (working_dtype == DType::bfloat16) {
    working_ = storage(table_, DType::bfloat16, "the parameters' bfloat16 copy", compute);
  }
  if (gradients == Gradients::none) return;
  gradients_ = storage(table_, DType::float32, "the parameters' gradients", compute);
  fill(gradients_, 0, compute);
}

void ParameterStore::initialise(std::uint64_t seed, const Stream& stream) {
  for (const Parameter& parameter : table_.parameters()) {
    const TensorView values = view_of(values_, parameter);
    switch (parameter.initialisation) {
      case parallel::Initialisation::ones:
        fill(values, 1, stream);
        break;
      case parallel::Initialisation::zeros:
        fill(values, 0, stream);
        break;
      case parallel::Initialisation::uniform:
      case parallel::Initialisation::log_of_uniform:
      case parallel::Initialisation::log_uniform_step:
        runtime::ops::upload(drawn(parameter, seed), values, stream);
        break;
      case parallel::Initialisation::normal:
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

ConstTensorView ParameterStore::working() const {
  return working_.empty() ? values_.view() : working_.view();
}

ConstTensorView ParameterStore::working(const std::string& name) const {
  return view_of(working_.empty() ? values_ : working_, table_.find(name));
}

void ParameterStore::refresh_working_copy(const Stream& stream) {
  if (std::exchange(stale_, false) && !working_.empty())
    runtime::ops::cast(values_, working_, stream);
}

void ParameterStore::drop_gradients() { written_.assign(written_.size(), false); }

Write ParameterStore::next_write(parallel::ElementRange range, const Stream& stream) {
  std::vector<std::size_t> inside;
  bool any = false;
  for (std::size_t i = 0; i < written_.size(); ++i) {
    if (common(table_.parameters()[i].range, range).elements() == 0) continue;
    inside.push_back(i);
    any |= written_[i];
  }
  if (any) zero_unwritten(range, stream);
  for (const std::size_t i : inside) written_[i] = true;
  return any ? Write::add : Write::overwrite;
}

void ParameterStore::zero_unwritten(parallel::ElementRange range, const Stream& stream) {
  for (std::size_t i = 0; i < written_.size(); ++i) {
    const Parameter& parameter = table_.parameters()[i];
    if (written_[i] || common(parameter.range, range).elements() == 0) continue;
    fill(view_of(gradients_, parameter), 0, stream);
    written_[i] = true;
  }
}

}  // namespace longhaul::models
