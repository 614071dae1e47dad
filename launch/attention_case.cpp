#include "launch/attention_case.h"

#include <cmath>
#include <filesystem>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hdf5.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using runtime::ExitCode;
using runtime::fail;

void require_sizes(const std::string& path, const hdf5::Dataset& dataset,
                   const hdf5::Extents& expected) {
  const hdf5::Extents& sizes = dataset.info().sizes;
  if (sizes == expected) return;
  const auto show = [](const hdf5::Extents& extents) {
    std::string text = "[";
    for (const std::int64_t extent : extents)
      text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
    return text + "]";
  };
  fail(ExitCode::data, path, ": dataset '", dataset.info().name, "' is ", show(sizes),
       "; expected ", show(expected));
}

attention::Mask slices_mask(const std::string& path, const hdf5::File& file, std::int64_t tokens) {
  const hdf5::Dataset dataset = file.dataset("slices", hdf5::Element::int64, 2);
  require_sizes(path, dataset, {dataset.info().sizes[0], 5});
  const std::vector<std::int64_t> rows = dataset.read<std::int64_t>();
  std::vector<attention::Slice> slices;
  for (std::size_t i = 0; i < rows.size(); i += 5) {
    const std::int64_t type = rows[i + 4];
    if (type < 0 || type > 3) {
      fail(ExitCode::data, path, ": dataset 'slices', row ", i / 5, ": type ", type,
           "; expected 0 full, 1 causal, 2 inverse causal or 3 both");
    }
    if (!(0 <= rows[i] && rows[i] <= rows[i + 1] && rows[i + 1] <= tokens && 0 <= rows[i + 2] &&
          rows[i + 2] <= rows[i + 3] && rows[i + 3] <= tokens)) {
      fail(ExitCode::data, path, ": dataset 'slices', row ", i / 5, ": queries [", rows[i], ", ",
           rows[i + 1], ") and keys [", rows[i + 2], ", ", rows[i + 3], ") do not lie in [0, ",
           tokens, ")");
    }
    slices.push_back(attention::slice_from_type(rows[i], rows[i + 1], rows[i + 2], rows[i + 3],
                                                static_cast<int>(type)));
  }
  return attention::Mask::from_slices(tokens, std::move(slices));
}

attention::Mask read_mask(const std::string& path, const hdf5::File& file, const std::string& name,
                          std::int64_t tokens) {
  if (name == "full") return attention::Mask::full(tokens);
  if (name == "causal") return attention::Mask::causal(tokens);
  try {
    if (name == "documents") {
      const auto offsets = file.dataset("documents", hdf5::Element::int64, 1).read<std::int64_t>();
      if (offsets.empty() || offsets.back() != tokens) {
        fail(ExitCode::data, "dataset 'documents' ends at ", offsets.empty() ? 0 : offsets.back(),
             "; expected ", tokens);
      }
      return attention::Mask::documents(offsets);
    }
    if (name == "slices") return slices_mask(path, file, tokens);
  } catch (const runtime::Error& error) {
    const std::string text = error.what();
    fail(error.code(), text.starts_with(path) ? "" : path + ": ", text);
  }
  fail(ExitCode::config, "unknown mask '", name, "'; expected full, causal, documents or slices");
}

}  // namespace

AttentionCase read_attention_case(const std::string& path, const std::string& mask) {
  const hdf5::File file = hdf5::File::open(path);
  AttentionCase input;
  const auto read = [&](const char* name) { return file.dataset(name, hdf5::Element::float32, 4); };
  const hdf5::Dataset q = read("q"), k = read("k"), v = read("v");
  const hdf5::Extents sizes = q.info().sizes;
  input.batch = sizes[0];
  input.seq_len = sizes[1];
  input.heads = sizes[2];
  input.dim = sizes[3];
  input.kv_heads = k.info().sizes[2];
  input.value_dim = v.info().sizes[3];
  require_sizes(path, k, {input.batch, input.seq_len, input.kv_heads, input.dim});
  require_sizes(path, v, {input.batch, input.seq_len, input.kv_heads, input.value_dim});
  if (input.heads < 1 || input.kv_heads < 1 || input.heads % input.kv_heads != 0 || input.dim < 1 ||
      input.value_dim < 1) {
    fail(ExitCode::data, path, ": ", input.heads, " query heads over ", input.kv_heads,
         " key/value heads; expected at least one of each, and a multiple");
  }
  input.q = q.read<float>();
  input.k = k.read<float>();
  input.v = v.read<float>();
  if (file.has("dout")) {
    const hdf5::Dataset dout = read("dout");
    require_sizes(path, dout, {input.batch, input.seq_len, input.heads, input.value_dim});
    input.dout = dout.read<float>();
    input.has_dout = true;
  }
  input.scale = file.has_attribute("scale") ? file.float64_attribute("scale")
                                            : 1.0 / std::sqrt(static_cast<double>(input.dim));
  if (!std::isfinite(input.scale))
    fail(ExitCode::data, path, ": attribute 'scale' is ", input.scale,
         "; expected a finite number");
  input.mask = read_mask(path, file, mask, input.seq_len).repeated(input.batch);
  return input;
}

void check_result_path(const std::string& path, const std::string& case_path) {
  namespace fs = std::filesystem;
  std::error_code ignored;  // a path that does not exist is what is wanted
  if (fs::exists(path, ignored)) {
    if (fs::equivalent(path, case_path, ignored)) {
      fail(ExitCode::usage, "--output ", path, " is the case itself; give another file");
    }
    if (!fs::is_regular_file(path, ignored)) {
      fail(ExitCode::usage, "--output ", path, " is no regular file; give another one");
    }
  }
  const fs::path folder =
      fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  if (!fs::is_directory(folder, ignored)) {
    fail(ExitCode::io, "--output ", path, ": there is no folder ", folder.string());
  }
}

void write_attention_result(const std::string& path, const AttentionCase& input,
                            const AttentionResult& result, const std::string& scheme,
                            const std::string& layout) {
  const std::string unfinished = path + "." + runtime::unique_suffix();
  runtime::Cleanup cleanup([&] {
    std::error_code ignored;  // it may never have been made
    std::filesystem::remove(unfinished, ignored);
  });
  hdf5::File file = hdf5::File::create(unfinished);
  const auto write = [&](const char* name, const hdf5::Extents& sizes,
                         const std::vector<float>& values) {
    file.write<float>(name, sizes, values);
  };
  const std::int64_t b = input.batch, s = input.seq_len, h = input.heads;
  write("out", {b, s, h, input.value_dim}, result.out);
  std::vector<float> lse(result.lse.size());  // [B, S, H] -> [B, H, S]
  for (std::int64_t row = 0; row < b * s; ++row) {
    for (std::int64_t head = 0; head < h; ++head) {
      lse[static_cast<std::size_t>(((row / s) * h + head) * s + row % s)] =
          result.lse[static_cast<std::size_t>(row * h + head)];
    }
  }
  write("lse", {b, h, s}, lse);
  if (input.has_dout) {
    write("dq", {b, s, h, input.dim}, result.dq);
    write("dk", {b, s, input.kv_heads, input.dim}, result.dk);
    write("dv", {b, s, input.kv_heads, input.value_dim}, result.dv);
  }
  const auto ranks = static_cast<std::int64_t>(result.sent_bytes.size());
  file.write<std::int64_t>("sent_bytes", {ranks}, result.sent_bytes);
  file.write<std::int64_t>("area", {ranks}, result.area);
  file.set_attribute("scheme", scheme);
  file.set_attribute("layout", layout);
  file.set_attribute("ranks", ranks);
  file.set_attribute("seconds", result.seconds);
  file.close();
  std::error_code error;
  std::filesystem::rename(unfinished, path, error);
  if (error) fail(ExitCode::io, path, ": cannot be replaced: ", error.message());
  cleanup.dismiss();
}

}  // namespace longhaul::launch
