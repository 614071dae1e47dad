#include "launch/linear_attention.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/linear_call.h"
#include "launch/rank_tensors.h"
#include "parallel/policy.h"
#include "runtime/error.h"
#include "runtime/ops/feature_map.h"

namespace longhaul::launch {
namespace {

using attention::Decay;
using attention::StateRule;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Stream;
using runtime::Tensor;
using runtime::ops::FeatureMap;

class LinearReplay final : public Replay {
 public:
  LinearReplay(const AttentionOptions& options, int ranks);
  void run(ReplayRank rank, const runtime::OutputFile& output) const override;

 private:
  const AttentionOptions options_;
  const LinearSetup setup_;
  parallel::Expression scheme_;        // resolved
  std::string why_;                    // it was chosen; empty where it was asked for
  std::vector<std::string> warnings_;  // about the case
};

FeatureMap map_of(const AttentionOptions& options) {
  return runtime::ops::feature_map_of(options.feature_map.value_or("identity"));
}

/// The keys as the recurrence reads them.
std::vector<float> mapped_keys(const LinearCase& input, FeatureMap map) {
  if (map == FeatureMap::identity) return input.k;
  const Stream host = Stream::cpu("keys");
  const parallel::Layout whole(parallel::LayoutKind::contiguous, input.seq_len, input.batch, 1);
  const RankTensors tensors(whole, 0, host);
  const Tensor k = tensors.upload(input.k, input.key_heads, input.dim, DType::float32);
  runtime::ops::feature_map(map, k, k, host);
  return tensors.download(k);
}

LinearSetup setup_of(const AttentionOptions& options, int ranks) {
  const DType dtype = dtype_of_option("--dtype", options.dtype);
  attention::Recurrence recurrence = attention::recurrence_of_kind(options.kind);
  recurrence.causal = options.mask.name != "full";
  LinearCase input =
      read_linear_case(options.case_path, options.mask, recurrence, options.normalize);
  auto layout = parallel::Layout::make(parallel::layout_from_name(options.layout), input.mask,
                                       input.batch, ranks);
  recurrence.scale = static_cast<float>(input.scale);
  const parallel::LinearCall call{
      .recurrence = recurrence,
      .initial_state = !input.initial_state.empty(),
      .final_state = recurrence.causal,
      .slopes_gradient = input.backward() && recurrence.decay == Decay::head};
  check_numbers(options.case_path, input, recurrence.decay, dtype);
  return {std::move(input), std::move(layout), call, dtype, map_of(options), options.normalize};
}

LinearReplay::LinearReplay(const AttentionOptions& options, int ranks)
    : options_(options), setup_(setup_of(options, ranks)) {
  const parallel::Layout& layout = setup_.layout;
  const parallel::Shapes shapes = setup_.shapes();
  if (setup_.call.recurrence.rule == StateRule::delta)
    warnings_ = growth_warnings(setup_.input, mapped_keys(setup_.input, setup_.map));
  std::int64_t rows = 0;
  for (int rank = 0; rank < ranks; ++rank) rows = std::max(rows, layout.rows(rank));
  const parallel::LinearChoice choice = parallel::choose_linear_scheme(
      options.scheme.value_or("auto"), shapes, layout.kind(), ranks, rows);
  why_ = choice.reason;
  const parallel::Combination asked{
      choice.scheme,           ranks,         shapes.heads,
      shapes.kv_heads,         layout.kind(), setup_.call.recurrence.causal,
      parallel::Family::linear};
  parallel::check_legal(asked);
  scheme_ = parallel::resolved(asked);
  verify_schedules({setup_.input.mask, layout, shapes, {}, {}, scheme_});
}

void LinearReplay::run(ReplayRank rank, const runtime::OutputFile& output) const {
  LinearRankCall call(setup_, rank);
  parallel::Attention attention({.scheme = "ring", .linear_scheme = scheme_},
                                std::move(rank.context), rank.compute);
  const auto batch = attention.batch(setup_.input.mask, setup_.layout);
  const double seconds = time_together(rank.world, rank.compute, [&] {
    call.forward(attention, *batch);
    if (setup_.input.backward()) call.backward(attention, *batch);
  });
  LinearResult result = call.gather(rank.world);
  result.figures = gather_figures(attention, rank, seconds);
  if (rank.world.rank() != 0) return;
  const std::string scheme = scheme_.text(),
                    wrong = check_results(setup_.input, result, setup_.call.recurrence.decay);
  write_linear_result(output, setup_.input, result, setup_.call.recurrence, scheme,
                      options_.layout);
  for (const std::string& warning : warnings_) fmt::print("warning: {}\n", warning);
  if (!why_.empty()) fmt::print("{} for {}: {}\n", scheme, options_.kind, why_);
  print_summary(options_, scheme, result.figures);
  if (!wrong.empty()) fmt::print("not finite: {}\n", wrong);
}

}  // namespace

void check_linear_options(const AttentionOptions& options) {
  if (std::ranges::count(attention::recurrence_kinds(), options.kind) == 0) {
    std::string kinds = "softmax";
    for (const char* kind : attention::recurrence_kinds()) kinds += std::string(", ") + kind;
    fail(ExitCode::config, "unknown kind '", options.kind, "'; expected one of ", kinds);
  }
  const auto refuse = [&](bool given, const char* option, const char* what) {
    if (given) fail(ExitCode::config, option, " with --kind ", options.kind, ": ", what);
  };
  const char* const kNoScores = "a recurrence has no scores to weigh; leave it out";
  refuse(options.weighting.has_value(), "--weighting", kNoScores);
  refuse(options.softcap.has_value(), "--softcap", kNoScores);
  refuse(options.bias.has_value(), "--bias", kNoScores);
  refuse(options.wire_dtype != "float32", "--wire-dtype",
         "states and their gradients travel as float32; leave it out");
  refuse(options.pretend.has_value(), "--pretend",
         "the time of a recurrence is not modelled; leave it out");
  map_of(options);  // whether there is such a map
  const std::string scheme = options.scheme.value_or("auto");
  if (scheme != "auto")  // whether there is such a scheme
    parallel::parse_scheme(scheme, parallel::policy_names(), parallel::Family::linear);
}

std::unique_ptr<const Replay> make_linear_replay(const AttentionOptions& options, int ranks) {
  return std::make_unique<const LinearReplay>(options, ranks);
}

}  // namespace longhaul::launch
