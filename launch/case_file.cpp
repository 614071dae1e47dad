#include "launch/case_file.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <optional>

#include "runtime/error.h"
#include "runtime/io/file.h"

namespace longhaul::launch {

namespace hdf5 = runtime::hdf5;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// `blocks` or `slices`: int64 (or uint8 where `bytes`), of two dims, or of three, one for each
/// query head.
attention::IntegerArray read_array(const std::string& path, const hdf5::File& file,
                                   const char* name, std::int64_t heads, bool bytes) {
  const hdf5::Dataset dataset = file.dataset(name);
  const hdf5::Extents& sizes = dataset.info().sizes;
  const std::string start = path + ": dataset '" + name + "'";
  if (sizes.size() != 2 && sizes.size() != 3) {
    fail(ExitCode::data, start, " has rank ", sizes.size(),
         "; expected 2, or 3 with one for each query head");
  }
  if (sizes.size() == 3 && sizes[0] != heads) {
    fail(ExitCode::data, start, " is of ", sizes[0], " heads; expected ", heads,
         ", the query heads of 'q'");
  }
  attention::IntegerArray array{sizes, {}};
  if (bytes && dataset.info().element == hdf5::Element::uint8) {
    const auto values = dataset.read<std::uint8_t>();
    array.values.assign(values.begin(), values.end());
  } else {
    array.values = dataset.read<std::int64_t>();
  }
  return array;
}

}  // namespace

std::string shown(const hdf5::Extents& extents) {
  std::string text = "[";
  for (const std::int64_t extent : extents)
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

void require_sizes(const std::string& path, const hdf5::Dataset& dataset,
                   const hdf5::Extents& expected) {
  const hdf5::Extents& sizes = dataset.info().sizes;
  if (sizes == expected) return;
  fail(ExitCode::data, path, ": dataset '", dataset.info().name, "' is ", shown(sizes),
       "; expected ", shown(expected));
}

hdf5::Dataset read_tensor(const std::string& path, const hdf5::File& file, const char* name,
                          const char* shapes) {
  std::optional<hdf5::Dataset> dataset;
  try {
    dataset = file.dataset(name, hdf5::Element::float32, 4);
  } catch (const runtime::Error& error) {
    fail(error.code(), error.what(), shapes);
  }
  constexpr std::array kDims{"sequence", "token", "head", "element of a head"};
  for (std::size_t dim = 0; dim < kDims.size(); ++dim) {
    if (dataset->info().sizes[dim] == 0)
      fail(ExitCode::data, path, ": dataset '", name, "' is ", shown(dataset->info().sizes),
           ", without a single ", kDims[dim], "; expected at least 1 in every dim", shapes);
  }
  return *dataset;
}

attention::HeadMasks read_mask(const std::string& path, const hdf5::File& file,
                               const MaskRequest& request, std::int64_t tokens,
                               std::int64_t heads) {
  using attention::MaskInput;
  const attention::MaskRule& rule = attention::mask_rule(request.name);
  attention::MaskParameters given;
  given.numbers = request.numbers;
  given.numbers.spelling = "--";
  const auto wanted = [&](MaskInput input) {
    return rule.takes(input) && file.has(attention::name(input));
  };
  const auto list = [&](MaskInput input) -> std::optional<std::vector<std::int64_t>> {
    if (!wanted(input)) return std::nullopt;
    return file.dataset(attention::name(input), hdf5::Element::int64, 1).read<std::int64_t>();
  };
  given.documents = list(MaskInput::documents);
  given.prefixes = list(MaskInput::prefixes);
  given.block_offsets = list(MaskInput::block_offsets);
  if (wanted(MaskInput::blocks)) given.blocks = read_array(path, file, "blocks", heads, true);
  if (wanted(MaskInput::slices)) given.slices = read_array(path, file, "slices", heads, false);
  try {
    return attention::make_mask(request.name, given, tokens);
  } catch (const runtime::Error& error) {
    if (error.code() != ExitCode::data) throw;
    fail(error.code(), path, ": ", error.what());
  }
}

double read_scale(const std::string& path, const hdf5::File& file, std::int64_t dim) {
  const double scale = file.has_attribute("scale") ? file.float64_attribute("scale")
                                                   : 1.0 / std::sqrt(static_cast<double>(dim));
  if (!std::isfinite(static_cast<float>(scale)))
    fail(ExitCode::data, path, ": attribute 'scale' is ", scale,
         "; expected a number that float32 holds");
  return scale;
}

runtime::OutputFile result_file(const std::string& path, const std::string& case_path,
                                runtime::Existing existing) {
  runtime::require_no_input(path, "--output", {case_path});
  return {path, existing};
}

void write_result_file(const runtime::OutputFile& output, const ReplayFigures& figures,
                       const std::string& scheme, const std::string& layout,
                       const std::function<void(hdf5::File&)>& write_results) {
  const std::filesystem::path unfinished = output.beside("tmp");
  runtime::Cleanup cleanup([&] {
    std::error_code ignored;  // it may never have been made
    std::filesystem::remove(unfinished, ignored);
  });
  hdf5::File file = hdf5::File::create(unfinished);
  write_results(file);
  const auto ranks = static_cast<std::int64_t>(figures.sent_bytes.size());
  file.write<std::int64_t>("sent_bytes", {ranks}, figures.sent_bytes);
  std::vector<std::int64_t> within, between;
  for (const parallel::LinkBytes& bytes : figures.link_bytes) {
    within.push_back(bytes.within_nodes);
    between.push_back(bytes.between_nodes);
  }
  file.write<std::int64_t>("sent_bytes_within_nodes", {ranks}, within);
  file.write<std::int64_t>("sent_bytes_between_nodes", {ranks}, between);
  file.write<std::int64_t>("node", {ranks},
                           std::vector<std::int64_t>(figures.nodes.begin(), figures.nodes.end()));
  file.set_attribute("scheme", scheme);
  file.set_attribute("layout", layout);
  file.set_attribute("ranks", ranks);
  file.set_attribute("seconds", figures.seconds);
  if (!figures.attention_seconds.empty()) {
    file.write<double>("attention_seconds", {ranks}, figures.attention_seconds);
    file.write<double>("attention_cpu_seconds", {ranks}, figures.attention_cpu_seconds);
  }
  if (!figures.pretended.empty()) file.set_attribute("pretended", figures.pretended);
  file.close();
  runtime::FileHandle::read(unfinished).sync();
  output.publish(unfinished);
  cleanup.dismiss();
}

}  // namespace longhaul::launch
