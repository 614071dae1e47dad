#include "launch/attention_case.h"

#include <cmath>
#include <limits>

#include "runtime/error.h"

namespace longhaul::launch {

namespace hdf5 = runtime::hdf5;
using runtime::ExitCode;
using runtime::fail;

AttentionCase read_attention_case(const std::string& path, const MaskRequest& mask) {
  const hdf5::File file = hdf5::File::open(path);
  AttentionCase input;
  const auto read = [&](const char* name) {
    return read_tensor(path, file, name,
                       "; a case has q [B,S,H,D], k [B,S,H_kv,D] and v [B,S,H_kv,D_v], and dout "
                       "[B,S,H,D_v] where gradients are wanted, all float32");
  };
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
  input.scale = read_scale(path, file, input.dim);
  input.mask = read_mask(path, file, mask, input.seq_len, input.heads).repeated(input.batch);
  return input;
}

void write_attention_result(const runtime::OutputFile& output, const AttentionCase& input,
                            const AttentionResult& result, const std::string& scheme,
                            const std::string& layout) {
  write_result_file(output, result.figures, scheme, layout, [&](hdf5::File& file) {
    const auto write = [&](const char* name, const hdf5::Extents& sizes,
                           const std::vector<float>& values) {
      file.write<float>(name, sizes, values);
    };
    file.write<std::int64_t>("area", {std::ssize(result.area)}, result.area);
    if (!result.figures.pretended.empty()) return;  // nothing was computed
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
  });
}

}  // namespace longhaul::launch
