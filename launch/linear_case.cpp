#include "launch/linear_case.h"

#include <algorithm>
#include <cmath>

#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::launch {

namespace hdf5 = runtime::hdf5;
using attention::Decay;
using attention::Recurrence;
using attention::StateRule;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr const char* kShapes =
    "; a case of a recurrence has q, k [B,S,H_k,D] and v [B,S,H,E], and dout [B,S,H,E] where "
    "gradients are wanted, all float32";

void check_mask(const MaskRequest& mask, const Recurrence& recurrence) {
  const std::string kind = attention::kind_of(recurrence);
  const std::string& name = mask.name;
  if (name == "full" && kind != "linear") {
    fail(ExitCode::config, "--mask full with --kind ", kind,
         ": its states follow the order of tokens; expected causal or documents, or --kind linear");
  }
  if (name != "full" && name != "causal" && name != "documents" && name != "causal_document") {
    fail(ExitCode::config, "--mask ", name, " with --kind ", kind,
         ": a recurrence reads every earlier token of a document and no other; expected causal or "
         "documents",
         kind == "linear" ? ", or full" : "");
  }
  if (mask.numbers.window) {
    fail(ExitCode::config, "--window ", *mask.numbers.window, " with --kind ", kind,
         ": a recurrence reads every earlier token of a document; leave it out");
  }
}

std::vector<float> read_floats(const std::string& path, const hdf5::File& file, const char* name,
                               const hdf5::Extents& sizes, const std::string& why) {
  if (!file.has(name)) {
    fail(ExitCode::data, path, ": there is no dataset '", name, "', which ", why,
         "; expected float32 ", shown(sizes));
  }
  const hdf5::Dataset dataset =
      file.dataset(name, hdf5::Element::float32, static_cast<int>(sizes.size()));
  require_sizes(path, dataset, sizes);
  return dataset.read<float>();
}

void check_log_decay(const std::string& path, const NamedTensor& log_decay) {
  if (const auto found = log_decay.first([](float x) { return x > 0; })) {
    fail(ExitCode::data, path, ": ", log_decay.at(*found), " is ", log_decay.value(*found),
         "; expected at most 0: a state is multiplied by its exponential");
  }
}

/// What a recurrence that is not causal has no place for.
void refuse_states(const std::string& path, const hdf5::File& file) {
  for (const char* name : {"initial_state", "dfinal_state"}) {
    if (!file.has(name)) continue;
    fail(ExitCode::config, path, ": dataset '", name,
         "' with --mask full: every token reads the sum over its whole sequence; remove it, or use "
         "--mask causal");
  }
}

}  // namespace

std::vector<std::int64_t> LinearCase::log_decay_sizes(Decay decay) const {
  switch (decay) {
    case Decay::none:
      return {0};
    case Decay::head:
      return {heads};
    case Decay::scalar:
      return {batch, seq_len, heads};
    default:
      return {batch, seq_len, heads, dim};
  }
}

namespace {

/// Datasets that say something of the recurrence which this kind does not do.
void refuse_unused(const std::string& path, const hdf5::File& file, const Recurrence& recurrence) {
  const auto refuse = [&](const char* dataset, const char* advice) {
    if (!file.has(dataset)) return;
    fail(ExitCode::config, path, ": the case has ", dataset, ", which kind ",
         attention::kind_of(recurrence), " has no use for; remove the dataset '", dataset, "', or ",
         advice);
  };
  refuse("sinks", "leave out --kind");
  if (recurrence.decay == Decay::none) refuse("log_decay", "take a --kind that decays");
  if (recurrence.rule == StateRule::sum) refuse("beta", "take a --kind of the delta rule");
}

}  // namespace

LinearCase read_linear_case(const std::string& path, const MaskRequest& mask,
                            const Recurrence& recurrence, bool normalize) {
  check_mask(mask, recurrence);
  const hdf5::File file = hdf5::File::open(path);
  LinearCase input;
  const auto read = [&](const char* name) { return read_tensor(path, file, name, kShapes); };
  const hdf5::Dataset q = read("q"), k = read("k"), v = read("v");
  const hdf5::Extents sizes = q.info().sizes;
  input.batch = sizes[0];
  input.seq_len = sizes[1];
  input.key_heads = sizes[2];
  input.dim = sizes[3];
  input.heads = v.info().sizes[2];
  input.value_dim = v.info().sizes[3];
  input.state_columns = input.value_dim + (normalize ? 1 : 0);
  const hdf5::Extents values{input.batch, input.seq_len, input.heads, input.value_dim};
  require_sizes(path, k, sizes);
  require_sizes(path, v, values);
  if (input.heads % input.key_heads != 0) {
    fail(ExitCode::data, path, ": ", input.heads, " value heads over ", input.key_heads,
         " heads of 'q' and 'k'; expected a multiple");
  }
  refuse_unused(path, file, recurrence);
  input.q = q.read<float>();
  input.k = k.read<float>();
  input.v = v.read<float>();
  if (file.has("dout")) {
    const hdf5::Dataset dout = read("dout");
    require_sizes(path, dout, values);
    input.dout = dout.read<float>();
  }
  const std::string kind = runtime::concat("--kind ", attention::kind_of(recurrence), " needs");
  if (recurrence.decay != Decay::none) {
    const auto expected = input.log_decay_sizes(recurrence.decay);
    input.log_decay = read_floats(path, file, "log_decay", expected, kind);
    check_log_decay(path, {"log_decay", input.log_decay, expected});
  }
  if (recurrence.rule == StateRule::delta) {
    input.beta = read_floats(path, file, "beta", {input.batch, input.seq_len, input.heads}, kind);
  }
  if (mask.name == "full") refuse_states(path, file);
  const std::string state = normalize ? "holds a column for the normaliser behind E" : "is a state";
  if (file.has("initial_state"))
    input.initial_state = read_floats(path, file, "initial_state", input.state_sizes(), state);
  if (file.has("dfinal_state"))
    input.dfinal_state = read_floats(path, file, "dfinal_state", input.state_sizes(), state);
  input.scale = read_scale(path, file, input.dim);
  input.mask = read_mask(path, file, mask, input.seq_len, input.heads).repeated(input.batch);
  return input;
}

namespace {

std::vector<NamedTensor> named(const LinearCase& in, Decay decay) {
  const std::int64_t b = in.batch, s = in.seq_len;
  return {{"q", in.q, {b, s, in.key_heads, in.dim}},
          {"k", in.k, {b, s, in.key_heads, in.dim}},
          {"v", in.v, {b, s, in.heads, in.value_dim}},
          {"dout", in.dout, {b, s, in.heads, in.value_dim}},
          {"log_decay", in.log_decay, in.log_decay_sizes(decay)},
          {"beta", in.beta, {b, s, in.heads}},
          {"initial_state", in.initial_state, in.state_sizes()},
          {"dfinal_state", in.dfinal_state, in.state_sizes()}};
}

}  // namespace

std::vector<NamedTensor> named(const LinearResult& result, const LinearCase& in, Decay decay) {
  const std::int64_t b = in.batch, s = in.seq_len;
  std::vector<NamedTensor> all{{"out", result.out, {b, s, in.heads, in.value_dim}},
                               {"final_state", result.final_state, in.state_sizes()},
                               {"dq", result.dq, {b, s, in.key_heads, in.dim}},
                               {"dk", result.dk, {b, s, in.key_heads, in.dim}},
                               {"dv", result.dv, {b, s, in.heads, in.value_dim}},
                               {"dlog_decay", result.dlog_decay, in.log_decay_sizes(decay)},
                               {"dbeta", result.dbeta, {b, s, in.heads}},
                               {"dinitial_state", result.dinitial_state, in.state_sizes()}};
  std::erase_if(all, [](const NamedTensor& tensor) { return tensor.values.empty(); });
  return all;
}

void check_numbers(const std::string& path, const LinearCase& input, Decay decay,
                   runtime::DType dtype) {
  if (dtype != runtime::DType::bfloat16) return;
  std::vector<NamedTensor> rounded = named(input, decay);
  rounded.resize(4);  // gates and states stay float32
  check_bfloat16(path, rounded);
}

std::vector<std::string> growth_warnings(const LinearCase& input, const std::vector<float>& k) {
  std::vector<std::string> warnings;
  const NamedTensor beta{"beta", input.beta, {input.batch, input.seq_len, input.heads}};
  const auto outside = [](float x) { return x < 0 || x > 2; };
  if (const auto found = beta.first(outside)) {
    warnings.push_back(
        runtime::concat(beta.at(*found), " is ", beta.value(*found), ", outside [0, 2] (as ",
                        runtime::counted(std::ranges::count_if(input.beta, outside), "element"),
                        "): under a delta rule states may grow without bound"));
  }
  std::vector<float> norms;
  for (std::size_t at = 0; at < k.size(); at += static_cast<std::size_t>(input.dim)) {
    double squares = 0;
    for (std::size_t d = at; d < at + static_cast<std::size_t>(input.dim); ++d)
      squares += static_cast<double>(k[d]) * static_cast<double>(k[d]);
    norms.push_back(static_cast<float>(std::sqrt(squares)));
  }
  const NamedTensor norm{"k", norms, {input.batch, input.seq_len, input.key_heads}};
  const auto longer = [](float x) { return x > 1.01f; };
  if (const auto found = norm.first(longer)) {
    warnings.push_back(runtime::concat(
        "the key ", norm.at(*found), " has a norm of ", norm.value(*found), ", above 1.01 (as ",
        runtime::counted(std::ranges::count_if(norms, longer), "key"),
        "): under a delta rule states may grow without bound"));
  }
  return warnings;
}

std::string check_results(const LinearCase& input, const LinearResult& result, Decay decay) {
  const std::string wrong = first_not_finite(named(result, input, decay));
  if (wrong.empty()) return "";
  return explain_wrong(wrong, named(input, decay),
                       "smaller 'k', 'v' or 'dout', shorter documents or a stronger decay");
}

void write_linear_result(const runtime::OutputFile& output, const LinearCase& input,
                         const LinearResult& result, const Recurrence& recurrence,
                         const std::string& scheme, const std::string& layout) {
  write_result_file(output, result.figures, scheme, layout, [&](hdf5::File& file) {
    for (const NamedTensor& tensor : named(result, input, recurrence.decay))
      file.write<float>(tensor.name, tensor.sizes, tensor.values);
    file.set_attribute("kind", attention::kind_of(recurrence));
  });
}

}  // namespace longhaul::launch
