#include "launch/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "launch/hf_model_keys_impl.h"
#include "launch/metrics.h"
#include "runtime/comm/loopback.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// The slice of a checkpoint that is all of a parameter, read when it is written.
runtime::TensorSlice slice_of(const HfFolder& source, const parallel::Parameter& parameter) {
  runtime::TensorSlice slice;
  slice.name = parameter.name;
  slice.sizes = parameter.sizes;
  slice.start.assign(parameter.sizes.size(), 0);
  slice.view = runtime::ConstTensorView(nullptr, runtime::DType::float32, runtime::Device{},
                                        parameter.sizes);
  slice.reader = [&](std::int64_t begin, std::int64_t end, std::span<std::byte> out) {
    std::vector<float> rows(out.size() / sizeof(float));
    source.read(parameter, begin, end, rows);
    std::ranges::copy(std::as_bytes(std::span(rows)), out.begin());
  };
  return slice;
}

void tell_source(const HfFolder& source, const parallel::ParameterTable& table) {
  fmt::print("from     {}: {}, {}, {} parameters\n", source.path().string(),
             source.model().architecture, source.text(), grouped(table.elements()));
  for (const std::string& line : source.config().assumed)
    fmt::print("default  {}, which {} does not say\n", line, kHfConfigName);
  for (const std::string& name : source.left_out())
    fmt::print("left out {}: it follows from the configuration\n", name);
}

}  // namespace

void import_folder(const HfFolder& source, const fs::path& output) {
  if (!runtime::list_checkpoints(output).empty())
    fail(ExitCode::usage, "--output ", output.string(),
         ": holds checkpoints already; name another folder");
  const parallel::ParameterTable table = parameter_table(source.model());
  source.require(table);
  tell_source(source, table);
  runtime::CheckpointMetadata metadata;
  metadata.config = model_section(source.model());
  metadata.extra[kOriginKey] = to_text(*source.origin());
  std::vector<runtime::TensorSlice> slices;
  for (const parallel::Parameter& parameter : table.parameters())
    slices.push_back(slice_of(source, parameter));
  runtime::run_loopback(1, {}, [&](std::unique_ptr<runtime::Communicator> alone) {
    runtime::SaveOptions options;
    options.folder = output;
    runtime::save_checkpoint(options, metadata, slices, *alone, runtime::Stream::cpu("convert"));
  });
  fmt::print("wrote    {}: {} of float32, for checkpoint.initial_load_path\n\n{}",
             (output / "step-00000000").string(),
             runtime::size_text(table.elements() * std::int64_t{sizeof(float)}), metadata.config);
}

int run_convert(const ConvertOptions& options) {
  const std::unique_ptr<WeightSource> source = open_weights(options.source);
  if (const auto* folder = dynamic_cast<const HfFolder*>(source.get())) {
    if (options.dtype)
      fail(ExitCode::usage, "--dtype: ", options.source.string(),
           " is a Hugging Face folder, and a checkpoint holds float32; it is for folders that are "
           "written");
    import_folder(*folder, options.output);
  } else {
    export_checkpoint(dynamic_cast<const CheckpointWeights&>(*source), options);
  }
  return 0;
}

}  // namespace longhaul::launch
