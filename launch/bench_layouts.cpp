// `longhaul bench layouts`: what each token layout makes of packed documents.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <numeric>
#include <vector>

#include "attention/tiles.h"
#include "launch/batches.h"
#include "launch/bench.h"
#include "launch/model.h"
#include "parallel/executor.h"
#include "parallel/layout.h"
#include "parallel/policy.h"
#include "parallel/schemes/scheme.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using attention::Mask;
using attention::Run;
using attention::Slice;
using parallel::Layout;
using parallel::LayoutKind;
using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

constexpr std::int64_t kTile = 128;
constexpr int kRepeats = 3;  // of a timing; the fastest counts

std::vector<std::int64_t> read_lengths(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail(ExitCode::io, path, ": cannot be read");
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 0; file >> length;) {
    if (length < 0)
      fail(ExitCode::data, path, ":", lengths.size() + 1, ": a document of ", length, " tokens");
    lengths.push_back(length);
  }
  if (!file.eof()) fail(ExitCode::data, path, ":", lengths.size() + 1, ": not a whole number");
  return lengths;
}

/// Documents packed end to end, as runtime::Sequences does: what a sequence's end cuts goes on as a
/// document of the next.
std::vector<Mask> packed_masks(const BenchLayoutsOptions& options) {
  std::vector<Mask> masks;
  if (options.mask != "documents" && options.mask != "causal") {
    fail(ExitCode::config, "unknown mask '", options.mask, "'; expected documents or causal");
  }
  if (options.mask == "causal") {
    if (!options.lengths_path.empty())
      fail(ExitCode::usage, "--lengths has no meaning with --mask causal; leave one of them out");
    masks.assign(static_cast<std::size_t>(options.sequences), Mask::causal(options.seq_len));
    return masks;
  }
  if (options.lengths_path.empty())
    fail(ExitCode::usage, "--mask documents needs --lengths FILE, or give --mask causal");
  const std::vector<std::int64_t> lengths = read_lengths(options.lengths_path);
  std::size_t next = 0;
  std::int64_t left = 0;
  while (std::ssize(masks) < options.sequences) {
    std::vector<std::int64_t> offsets{0};
    while (offsets.back() < options.seq_len) {
      if (left == 0 && next == lengths.size()) {
        fail(ExitCode::data, options.lengths_path, ": ", counted(std::ssize(lengths), "document"),
             lengths.size() == 1 ? " does" : " do", " not fill ",
             counted(options.sequences, "sequence"), " of ", counted(options.seq_len, "token"),
             lengths.size() == 1 ? "; it fills " : "; they fill ", masks.size());
      }
      if (left == 0) left = lengths[next++];
      const std::int64_t taken = std::min(left, options.seq_len - offsets.back());
      offsets.push_back(offsets.back() + taken);
      left -= taken;
    }
    masks.push_back(Mask::documents(offsets));
  }
  return masks;
}

template <class Work>
double milliseconds(const Work& work) {
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::milli> passed =
        std::chrono::steady_clock::now() - begin;
    if (repeat == 0 || passed.count() < best) best = passed.count();
  }
  return best;
}

double mean(const std::vector<std::int64_t>& values) {
  const auto sum = std::accumulate(values.begin(), values.end(), 0.0);
  return sum / static_cast<double>(values.size());
}
std::int64_t largest(const std::vector<std::int64_t>& values) {
  return *std::ranges::max_element(values);
}
double largest_over_mean(const std::vector<std::int64_t>& values) {
  return largest(values) == 0 ? 1 : static_cast<double>(largest(values)) / mean(values);
}

/// A mask and how many layers have it.
struct LayerMask {
  Mask mask;
  std::int64_t layers = 1;
};

/// Bytes that each rank sends under a scheme, in all layers.
std::vector<std::int64_t> sent_bytes(const std::vector<LayerMask>& masks,
                                     const parallel::Expression& scheme, const Layout& layout,
                                     const parallel::Shapes& shapes,
                                     parallel::Direction direction) {
  std::vector<std::int64_t> sent(static_cast<std::size_t>(layout.ranks()), 0);
  for (const auto& [mask, layers] : masks) {
    parallel::SchemeInputs inputs{mask, layout, shapes, direction};
    inputs.scheme = scheme;
    for (const parallel::Program& program : build_schedule(inputs).programs)
      sent[static_cast<std::size_t>(program.rank)] += layers * count(program).sent_bytes;
  }
  return sent;
}

/// Tiles of the rank's queries against each rank's keys in which anything is visible.
std::int64_t tiles(const Mask& mask, const Layout& layout, int rank) {
  std::int64_t sum = 0;
  for (int other = 0; other < layout.ranks(); ++other) {
    const std::vector<Slice> bands = cut(mask, layout.runs(rank), layout.runs(other));
    if (bands.empty()) continue;
    const attention::TilePlan plan(bands, layout.rows(rank), layout.rows(other), kTile, kTile);
    for (std::int64_t row = 0; row < plan.q_blocks(); ++row)
      sum += plan.tiles_before(row, plan.k_blocks());
  }
  return sum;
}

parallel::Shapes shapes_of(const BenchLayoutsOptions& options) {
  return {options.heads, options.kv_heads, options.head_dim, options.head_dim,
          runtime::DType::bfloat16};
}

/// What a layout makes of all sequences.
struct Row {
  double area_worst = 0, area_sum = 0;  // largest over mean of a sequence
  std::int64_t row_difference = 0, chunk_least = 0, chunk_most = 0;
  std::int64_t forward_most = 0, backward_most = 0;          // bytes of a rank
  double forward_sum = 0, backward_sum = 0, needed_sum = 0;  // means over ranks
  std::int64_t area = 0, tiles = 0;
  double tiles_worst = 0;  // slowest rank's over the mean
  double plan_ms = 0, schedule_ms = 0;
  double prepare_ms = 0, bind_us = 0;  // a rank's call, forward and backward
};

/// Times of preparing a call of rank 0 from its masks, and of binding it to a layer's tensors.
struct CallTimes {
  double prepare_ms = 0, bind_us = 0;
};
CallTimes time_call(const parallel::SchemeInputs& inputs) {
  const bool forward = inputs.direction == parallel::Direction::forward;
  const parallel::Signature signature = forward
                                            ? parallel::forward_signature(inputs.shapes.weighting)
                                            : parallel::backward_signature(inputs.shapes.weighting);
  const runtime::Stream compute = runtime::Stream::cpu("compute");
  const attention::BlockPlace place = attention::place_of(compute);
  std::shared_ptr<const parallel::Prepared> prepared;
  CallTimes times;
  times.prepare_ms = milliseconds([&] {
    prepared = std::make_shared<const parallel::Prepared>(prepare(inputs)(0), signature,
                                                          attention::Scoring{}, place);
  });
  // Tensors without memory: binding sets pointers and reads none.
  std::vector<runtime::ConstTensorView> ins(signature.inputs.size());
  std::vector<runtime::TensorView> outs(signature.outputs.size());
  const parallel::Program& program = prepared->program();
  for (std::size_t s = 0; s < program.slots.size(); ++s) {
    const parallel::Slot& slot = program.slots[s];
    if (slot.role == parallel::Role::scratch) continue;
    for (std::size_t f = 0; f < slot.record.fields.size(); ++f) {
      const parallel::Field& field = slot.record.fields[f];
      std::vector<std::int64_t> sizes{slot.rows, slot.heads};
      if (!field.number) sizes.push_back(field.width);
      const runtime::TensorView view(nullptr, field.dtype, compute.device(), sizes);
      const std::size_t tensor = prepared->places()[s][f].tensor;
      if (slot.role == parallel::Role::input) {
        ins[tensor] = view;
      } else {
        outs[tensor] = view;
      }
    }
  }
  std::vector<parallel::Channel> channels;
  for (int channel = 0; channel < prepared->channels(); ++channel)
    channels.push_back({compute, nullptr});
  const auto loaded = std::make_shared<const parallel::Loaded>(prepared, compute);
  times.bind_us =
      1000 * milliseconds([&] { parallel::Execution(loaded, ins, outs, compute, channels); });
  return times;
}

void measure(const BenchLayoutsOptions& options, const parallel::Expression& scheme,
             std::span<const models::MaskKind> kinds, LayoutKind kind, const Mask& data, Row& row) {
  std::vector<Mask> of_kinds;
  std::vector<LayerMask> masks;
  for (const models::MaskKind& layers : kinds) {
    of_kinds.push_back(layers.of(data));
    masks.push_back({of_kinds.back(), layers.layers});
  }
  const attention::HeadMasks together = masks_of_layers(std::move(of_kinds), kinds);
  const Layout layout = Layout::make(kind, together, 1, options.ranks);
  row.plan_ms =
      std::max(row.plan_ms, milliseconds([&] { Layout::make(kind, together, 1, options.ranks); }));
  const std::vector<std::int64_t> areas = parallel::query_areas(together, layout);
  row.area_worst = std::max(row.area_worst, largest_over_mean(areas));
  row.area_sum += largest_over_mean(areas);
  const std::int64_t chunk = layout.chunk_tokens();
  row.chunk_least = row.chunk_most == 0 ? chunk : std::min(row.chunk_least, chunk);
  row.chunk_most = std::max(row.chunk_most, chunk);

  const parallel::Shapes shapes = shapes_of(options);
  std::vector<std::int64_t> rows, tile_counts;
  for (int rank = 0; rank < options.ranks; ++rank) {
    rows.push_back(layout.rows(rank));
    tile_counts.push_back(0);
    for (const auto& [mask, layers] : masks)
      tile_counts.back() += layers * tiles(mask, layout, rank);
  }
  for (const auto& [mask, layers] : masks) row.area += layers * mask.area();
  row.row_difference =
      std::max(row.row_difference, largest(rows) - *std::ranges::min_element(rows));
  row.tiles += std::accumulate(tile_counts.begin(), tile_counts.end(), std::int64_t{0});
  row.tiles_worst = std::max(row.tiles_worst, largest_over_mean(tile_counts));

  // Group-cast sends each rank the keys and values that its queries see, and nothing else.
  CallTimes both;
  row.needed_sum +=
      mean(sent_bytes(masks, "group_cast", layout, shapes, parallel::Direction::forward));
  for (const auto direction : {parallel::Direction::forward, parallel::Direction::backward}) {
    const std::vector<std::int64_t> sent = sent_bytes(masks, scheme, layout, shapes, direction);
    const bool forward = direction == parallel::Direction::forward;
    std::int64_t& most = forward ? row.forward_most : row.backward_most;
    most = std::max(most, largest(sent));
    (forward ? row.forward_sum : row.backward_sum) += mean(sent);
    for (const LayerMask& layer : masks) {
      parallel::SchemeInputs inputs{layer.mask, layout, shapes, direction};
      inputs.scheme = scheme;
      const CallTimes times = time_call(inputs);
      both.prepare_ms += times.prepare_ms;
      both.bind_us += times.bind_us;
    }
    if (!forward) continue;
    row.schedule_ms = std::max(row.schedule_ms, milliseconds([&] {
                                 for (const LayerMask& layer : masks) {
                                   parallel::SchemeInputs inputs{layer.mask, layout, shapes};
                                   inputs.scheme = scheme;
                                   prepare(inputs)(0);
                                 }
                               }));
  }
  row.prepare_ms = std::max(row.prepare_ms, both.prepare_ms);
  row.bind_us = std::max(row.bind_us, both.bind_us);
}

void print_row(LayoutKind kind, const Row& row, int sequences) {
  const double n = sequences;
  const auto mb = [](double bytes) { return bytes / 1e6; };
  const std::string chunk = row.chunk_least == row.chunk_most
                                ? fmt::format("{}", row.chunk_most)
                                : fmt::format("{}-{}", row.chunk_least, row.chunk_most);
  fmt::print(
      "{:<16}{:>13}{:>9.4f}{:>8.4f}{:>6}{:>10.1f}{:>9.1f}{:>10.1f}{:>9.1f}{:>9.1f}{:>7.1f}%{:>9.3f}"
      "{:>8.2f}{:>9.2f}{:>9.2f}{:>6.1f}\n",
      parallel::name(kind), chunk, row.area_worst, row.area_sum / n, row.row_difference,
      mb(static_cast<double>(row.forward_most)), mb(row.forward_sum / n),
      mb(static_cast<double>(row.backward_most)), mb(row.backward_sum / n), mb(row.needed_sum / n),
      100.0 * static_cast<double>(row.area) / static_cast<double>(row.tiles * kTile * kTile),
      row.tiles_worst, row.plan_ms, row.schedule_ms, row.prepare_ms, row.bind_us);
}

}  // namespace

int run_bench_layouts(const BenchLayoutsOptions& options) {
  if (options.heads % options.kv_heads != 0) {
    fail(ExitCode::usage, "--heads ", options.heads, " is no multiple of --kv-heads ",
         options.kv_heads);
  }
  // Every layout is a row, so the scheme must suit them all; said before anything is printed.
  parallel::Combination asked{parallel::choose_scheme(options.scheme, shapes_of(options), {}),
                              options.ranks, options.heads, options.kv_heads};
  for (const LayoutKind kind : parallel::layout_kinds()) {
    asked.layout = kind;
    parallel::check_legal(asked);
  }
  const parallel::Expression scheme = parallel::resolved(asked);
  const auto slides = std::ranges::find_if(options.layer_types, models::is_sliding);
  if (slides == options.layer_types.end() && options.sliding_window > 0) {
    fail(
        ExitCode::usage,
        "--sliding-window has no meaning without sliding_attention in --layer-types; leave it out");
  }
  if (slides != options.layer_types.end() && options.sliding_window == 0)
    fail(ExitCode::usage, "--layer-types ", *slides, " needs --sliding-window (tokens)");
  const auto layers = std::max<std::int64_t>(1, std::ssize(options.layer_types));
  const models::LayerMasks layer_masks(options.layer_types, options.sliding_window, layers);
  const std::vector<Mask> masks = packed_masks(options);
  std::int64_t documents = 0;
  for (const Mask& mask : masks) documents += std::ssize(mask.slices());
  fmt::print("{} of {}, {}, mask {}, {}; {}: {} query and {} of {}, bfloat16\n",
             counted(std::ssize(masks), "sequence"), counted(options.seq_len, "token"),
             counted(documents, "document"), options.mask, counted(options.ranks, "rank"),
             scheme.text(), options.heads, counted(options.kv_heads, "key/value head"),
             options.head_dim);
  if (!options.layer_types.empty())
    fmt::print("layers {}\n", layers_text(options.layer_types, options.sliding_window));
  fmt::print("{:<16}{:>13}{:>17}{:>6}{:>19}{:>19}{:>9}{:>8}{:>9}{:>8}{:>9}{:>9}{:>6}\n", "",
             "chunk", "max/mean area", "rows", "MB forward", "MB backward", "needed", "tile",
             "max/mean", "plan", "program", "prepare", "bind");
  fmt::print(
      "{:<16}{:>13}{:>9}{:>8}{:>6}{:>10}{:>9}{:>10}{:>9}{:>9}{:>8}{:>9}{:>8}{:>9}{:>9}{:>6}\n",
      "layout", "tokens", "worst", "mean", "diff", "max", "mean", "max", "mean", "MB", "use",
      "tiles", "ms", "ms", "ms", "us");
  for (const LayoutKind kind : parallel::layout_kinds()) {
    Row row;
    for (const Mask& mask : masks) measure(options, scheme, layer_masks.kinds, kind, mask, row);
    print_row(kind, row, options.sequences);
  }
  return 0;
}

}  // namespace longhaul::launch
