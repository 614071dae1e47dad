#include "launch/attention_case.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hdf5.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using runtime::ExitCode;
using runtime::fail;

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

/// q, k, v or dout: float32 of four dims, none of them 0.
hdf5::Dataset read_tensor(const std::string& path, const hdf5::File& file, const char* name) {
  const char* const kShapes =
      "; a case has q [B,S,H,D], k [B,S,H_kv,D] and v [B,S,H_kv,D_v], and dout [B,S,H,D_v] where "
      "gradients are wanted, all float32";
  std::optional<hdf5::Dataset> dataset;
  try {
    dataset = file.dataset(name, hdf5::Element::float32, 4);
  } catch (const runtime::Error& error) {
    fail(error.code(), error.what(), kShapes);
  }
  constexpr std::array kDims{"sequence", "token", "head", "element of a head"};
  for (std::size_t dim = 0; dim < kDims.size(); ++dim) {
    if (dataset->info().sizes[dim] == 0)
      fail(ExitCode::data, path, ": dataset '", name, "' is ", shown(dataset->info().sizes),
           ", without a single ", kDims[dim], "; expected at least 1 in every dim", kShapes);
  }
  return *dataset;
}

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

/// The mask of one sequence, from the numbers asked for and the datasets it takes.
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

}  // namespace

AttentionCase read_attention_case(const std::string& path, const MaskRequest& mask) {
  const hdf5::File file = hdf5::File::open(path);
  AttentionCase input;
  const auto read = [&](const char* name) { return read_tensor(path, file, name); };
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
  if (input.heads % input.kv_heads != 0) {
    fail(ExitCode::data, path, ": ", input.heads, " query heads over ", input.kv_heads,
         " key/value heads; expected a multiple");
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
  if (file.has("sinks")) {
    const hdf5::Dataset sinks = file.dataset("sinks", hdf5::Element::float32, 1);
    require_sizes(path, sinks, {input.heads});
    input.sinks = sinks.read<float>();
    for (std::size_t head = 0; head < input.sinks.size(); ++head) {
      const float sink = input.sinks[head];
      if (std::isnan(sink) || sink == std::numeric_limits<float>::infinity()) {
        fail(ExitCode::data, path, ": dataset 'sinks', head ", head, ": ", sink,
             "; expected a number, or -inf for none");
      }
    }
  }
  input.scale = file.has_attribute("scale") ? file.float64_attribute("scale")
                                            : 1.0 / std::sqrt(static_cast<double>(input.dim));
  if (!std::isfinite(static_cast<float>(input.scale)))
    fail(ExitCode::data, path, ": attribute 'scale' is ", input.scale,
         "; expected a number that float32 holds");
  input.mask = read_mask(path, file, mask, input.seq_len, input.heads).repeated(input.batch);
  return input;
}

runtime::OutputFile result_file(const std::string& path, const std::string& case_path,
                                runtime::Existing existing) {
  runtime::require_no_input(path, "--output", {case_path});
  return {path, existing};
}

void write_attention_result(const runtime::OutputFile& output, const AttentionCase& input,
                            const AttentionResult& result, const std::string& scheme,
                            const std::string& layout) {
  const std::filesystem::path unfinished = output.beside("tmp");
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
  if (result.lse.size() == static_cast<std::size_t>(b * s * h)) {  // a sigmoid has none
    std::vector<float> lse(result.lse.size());                     // [B, S, H] -> [B, H, S]
    for (std::int64_t row = 0; row < b * s; ++row) {
      for (std::int64_t head = 0; head < h; ++head) {
        lse[static_cast<std::size_t>(((row / s) * h + head) * s + row % s)] =
            result.lse[static_cast<std::size_t>(row * h + head)];
      }
    }
    write("lse", {b, h, s}, lse);
  }
  if (input.has_dout) {
    write("dq", {b, s, h, input.dim}, result.dq);
    write("dk", {b, s, input.kv_heads, input.dim}, result.dk);
    write("dv", {b, s, input.kv_heads, input.value_dim}, result.dv);
    if (!result.dsinks.empty()) write("dsinks", {h}, result.dsinks);
  }
  const auto ranks = static_cast<std::int64_t>(result.sent_bytes.size());
  file.write<std::int64_t>("sent_bytes", {ranks}, result.sent_bytes);
  std::vector<std::int64_t> within, between;
  for (const parallel::LinkBytes& bytes : result.link_bytes) {
    within.push_back(bytes.within_nodes);
    between.push_back(bytes.between_nodes);
  }
  file.write<std::int64_t>("sent_bytes_within_nodes", {ranks}, within);
  file.write<std::int64_t>("sent_bytes_between_nodes", {ranks}, between);
  file.write<std::int64_t>("node", {ranks},
                           std::vector<std::int64_t>(result.nodes.begin(), result.nodes.end()));
  file.write<std::int64_t>("area", {ranks}, result.area);
  file.set_attribute("scheme", scheme);
  file.set_attribute("layout", layout);
  file.set_attribute("ranks", ranks);
  file.set_attribute("seconds", result.seconds);
  file.close();
  runtime::FileHandle::read(unfinished).sync();
  output.publish(unfinished);
  cleanup.dismiss();
}

}  // namespace longhaul::launch
