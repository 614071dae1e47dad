#include "launch/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "attention/block.h"
#include "launch/attention_case.h"
#include "launch/attention_numbers.h"
#include "launch/linear_attention.h"
#include "launch/pretend.h"
#include "launch/rank_tensors.h"
#include "launch/replay.h"
#include "parallel/policy.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Stream;
using runtime::Tensor;

/// A softmax or sigmoid call.
class SoftmaxReplay final : public Replay {
 public:
  SoftmaxReplay(const AttentionOptions& options, int ranks);
  void run(ReplayRank rank, const runtime::OutputFile& output) const override;

 private:
  AttentionResult results(ReplayRank& rank) const;

  const AttentionOptions options_;
  const std::optional<Pretending> pretending_;
  const DType dtype_, wire_dtype_;
  const AttentionCase input_;
  const parallel::Layout layout_;
  const attention::Scoring scoring_;
  parallel::Expression scheme_;  // resolved
};

parallel::Shapes shapes_of(const AttentionCase& in, DType dtype,
                           const attention::Scoring& scoring) {
  return {static_cast<int>(in.heads), static_cast<int>(in.kv_heads), in.dim, in.value_dim, dtype,
          scoring.weighting};
}

/// What the options ask for, with what it chooses itself written out.
parallel::Expression choose_scheme(const AttentionOptions& options, const parallel::Shapes& shapes,
                                   DType wire, const attention::HeadMasks& masks,
                                   const parallel::Layout& layout) {
  const parallel::Combination asked{
      parallel::choose_scheme(options.scheme.value_or("ring"), shapes,
                              wire == DType::float32 ? std::nullopt : std::optional(wire)),
      layout.ranks(),
      shapes.heads,
      shapes.kv_heads,
      layout.kind(),
      parallel::is_causal(masks),
      parallel::Family::softmax,
      parallel::sees_whole_past(masks)};
  parallel::check_legal(asked);
  return parallel::resolved(asked);
}

attention::Scoring read_scoring(const AttentionOptions& options, const AttentionCase& input) {
  attention::Scoring scoring;
  const std::string weighting = options.weighting.value_or("softmax");
  const double softcap = options.softcap.value_or(0), bias = options.bias.value_or(0);
  scoring.scale = static_cast<float>(input.scale);
  if (weighting == "sigmoid") {
    scoring.weighting = attention::Weighting::sigmoid;
  } else if (weighting != "softmax") {
    fail(ExitCode::config, "unknown weighting '", weighting, "'; expected softmax or sigmoid");
  }
  const bool sigmoid = scoring.weighting == attention::Weighting::sigmoid;
  scoring.softcap = static_cast<float>(softcap);
  scoring.bias = static_cast<float>(bias);
  const bool capped = softcap != 0;
  if (capped && (!(scoring.softcap > 0) || !std::isfinite(scoring.softcap) ||
                 !std::isfinite(1 / scoring.softcap))) {
    fail(ExitCode::config, "--softcap ", softcap,
         ": expected a number above 0 that float32 holds, its inverse too; or 0 for none");
  }
  if (!std::isfinite(scoring.bias) || (bias != 0 && !sigmoid)) {
    fail(ExitCode::config, "--bias ", bias,
         ": expected a number that float32 holds, and only with --weighting sigmoid");
  }
  if (sigmoid && !input.sinks.empty()) {
    fail(ExitCode::config,
         "the case has sinks, which a sigmoid has no use for; remove the dataset 'sinks', or use "
         "--weighting softmax");
  }
  return scoring;
}

SoftmaxReplay::SoftmaxReplay(const AttentionOptions& options, int ranks)
    : options_(options),
      pretending_(options.pretend ? std::optional(parse_pretending(*options.pretend))
                                  : std::nullopt),
      dtype_(dtype_of_option("--dtype", options.dtype)),
      wire_dtype_(dtype_of_option("--wire-dtype", options.wire_dtype)),
      input_(read_attention_case(options.case_path, options.mask)),
      layout_(parallel::Layout::make(parallel::layout_from_name(options.layout), input_.mask,
                                     input_.batch, ranks)),
      scoring_(read_scoring(options, input_)) {
  if (pretending_) pretending_->check_ranks(ranks);
  check_numbers(options.case_path, input_, dtype_, scoring_);
  const parallel::Shapes shapes = shapes_of(input_, dtype_, scoring_);
  scheme_ = choose_scheme(options, shapes, wire_dtype_, input_.mask, layout_);
  parallel::SchemeInputs inputs{input_.mask, layout_, shapes, {}, {}, scheme_};
  if (wire_dtype_ != DType::float32) inputs.wire_dtype = wire_dtype_;
  verify_schedules(inputs);
  if (options.shared_memory != "auto") return;
  inputs.lends = true;  // where ranks turn out to share memory
  verify_schedules(inputs);
}

AttentionResult SoftmaxReplay::results(ReplayRank& rank) const {
  const Stream& compute = rank.compute;
  const AttentionCase& in = input_;
  const attention::Scoring& scoring = scoring_;
  const bool with_backward = in.has_dout, with_sinks = !in.sinks.empty(),
             softmax = scoring.weighting == attention::Weighting::softmax;
  const RankTensors tensors(layout_, rank.world.rank(), compute);
  const std::int64_t n = tensors.size();
  const Tensor q = tensors.upload(in.q, in.heads, in.dim, dtype_);
  const Tensor k = tensors.upload(in.k, in.kv_heads, in.dim, dtype_);
  const Tensor v = tensors.upload(in.v, in.kv_heads, in.value_dim, dtype_);
  const Tensor out = tensors.make({n, in.heads, in.value_dim});
  Tensor lse, sinks, dout, kept, delta, dq, dk, dv, dsinks;
  if (softmax) lse = tensors.make({n, in.heads, 2});
  if (with_sinks) sinks = tensors.upload_all(in.sinks, {in.heads});
  if (with_backward) {
    dout = tensors.upload(in.dout, in.heads, in.value_dim, dtype_);
    if (softmax) delta = tensors.make({n, in.heads});
    if (with_sinks) dsinks = tensors.make({in.heads});
    dq = tensors.make({n, in.heads, in.dim});
    dk = tensors.make({n, in.kv_heads, in.dim});
    dv = tensors.make({n, in.kv_heads, in.value_dim});
  }
  parallel::AttentionOptions spread{
      .scheme = scheme_, .wire_dtype = wire_dtype_, .lend = options_.shared_memory == "auto"};
  if (pretending_) spread.pretence = pretending_->of_rank(rank.world.rank());
  parallel::Attention attention(spread, std::move(rank.context), compute);
  const auto batch = attention.batch(in.mask, layout_);

  parallel::AttentionKept saved;  // of the scheme, for backward
  std::unique_ptr<parallel::Execution> forward, backward;
  const double seconds = time_together(rank.world, compute, [&] {
    forward = attention.forward(*batch, q, k, v, scoring, out, lse, &saved);
    forward->finish();
    if (with_sinks) attention::apply_sinks(out, lse, sinks, compute);
    if (with_backward) {
      // As in training, which keeps the output in the activation dtype and takes delta from that.
      ConstTensorView attended = out;
      if (dtype_ != DType::float32) {
        kept = tensors.cast(out, dtype_);
        attended = kept;
      }
      if (softmax) attention::block_delta(attended, dout, delta, compute);
      backward =
          attention.backward(*batch, {q, k, v, dout, lse, delta, &saved}, scoring, dq, dk, dv);
      backward->finish();
      if (with_sinks) attention::sinks_backward(lse, delta, sinks, dsinks, compute);
    }
  });

  AttentionResult result;
  const Stream host = Stream::cpu("results");
  const auto collect = [&](const Tensor& tensor, std::int64_t row_elements) {
    return gather_rows(rank.world, layout_, tensors.download(tensor), row_elements, host);
  };
  result.out = collect(out, in.heads * in.value_dim);
  if (softmax) {
    const std::vector<float> parts = collect(lse, 2 * in.heads);
    for (std::size_t i = 0; i < parts.size(); i += 2) result.lse.push_back(parts[i]);
  }
  if (with_backward) {
    result.dq = collect(dq, in.heads * in.dim);
    result.dk = collect(dk, in.kv_heads * in.dim);
    result.dv = collect(dv, in.kv_heads * in.value_dim);
  }
  if (with_backward && with_sinks)  // each rank saw its own rows
    result.dsinks = gather_sums(rank.world, tensors.download(dsinks), host);
  result.figures = gather_figures(attention, rank, seconds);
  if (pretending_) result.figures.pretended = pretending_->text();
  // Of one head, or of all where their masks differ.
  result.area = parallel::query_areas(in.mask, layout_);
  return result;
}

void SoftmaxReplay::run(ReplayRank rank, const runtime::OutputFile& output) const {
  const AttentionResult result = results(rank);
  if (rank.world.rank() != 0) return;
  const std::string scheme = scheme_.text(),
                    wrong = pretending_ ? "" : check_results(input_, result);
  write_attention_result(output, input_, result, scheme, options_.layout);
  print_summary(options_, scheme, result.figures);
  if (!wrong.empty()) fmt::print("not finite: {}\n", wrong);
}

void check_old_options(const AttentionOptions& options) {
  OldSchemeOptions old = options.old_options;
  for (const char* name : OldSchemeOptions::kNames) {
    const auto& given = old.of(name);
    if (!given) continue;
    const auto ranks =
        options.ranks > 0 ? std::optional<std::int64_t>(options.ranks) : std::nullopt;
    const auto scheme = replace_old_options(options.scheme.value_or("ring"), old, ranks);
    fail(ExitCode::usage, "--", name, " ", *given, ": a scheme is an expression now; ",
         scheme ? fmt::format("give --scheme '{}' instead", *scheme)
                : "give, for example, --scheme 'double_ring(outer=2, inner=4)' or --scheme "
                  "'usp(heads=4, around=double_ring(backward=burst))'");
  }
}

void check_options(const AttentionOptions& options) {
  check_old_options(options);
  parallel::layout_from_name(options.layout);  // whether there is such a layout
  if (options.device != "cpu" && options.device != "cuda") {
    fail(ExitCode::config, "unknown device '", options.device, "'; expected cpu or cuda");
  }
  const std::string& communicator = options.communicator;
  if (communicator != "mpi" && communicator != "loopback" && communicator != "nccl") {
    fail(ExitCode::config, "unknown communicator '", communicator,
         "'; expected mpi, loopback or nccl");
  }
  if (!(options.timeout_seconds > 0)) {
    fail(ExitCode::config, "--timeout-seconds ", options.timeout_seconds,
         ": expected a number above 0");
  }
  if (options.shared_memory != "auto" && options.shared_memory != "off") {
    fail(ExitCode::config, "--shared-memory ", options.shared_memory, ": expected auto or off");
  }
  if (options.pretend && options.device != "cpu") {
    fail(ExitCode::config, "--pretend is for the CPU; use --device cpu");
  }
  if (communicator == "nccl" && options.device == "cpu") {
    fail(ExitCode::config, "nccl moves device memory; use --device cuda, or --communicator mpi");
  }
}

void check_softmax_options(const AttentionOptions& options) {
  // Whether there is such a scheme.
  parallel::choose_scheme(options.scheme.value_or("ring"), {}, {});
  if (options.feature_map || options.normalize) {
    fail(ExitCode::config, options.normalize ? "--normalize" : "--feature-map",
         ": softmax attention has no use for it; give the --kind of a recurrence");
  }
}

}  // namespace

int run_attention(const AttentionOptions& options) {
  check_options(options);
  const bool linear = options.kind != "softmax";
  if (linear) {
    check_linear_options(options);
  } else {
    check_softmax_options(options);
  }
  const runtime::OutputFile output =
      result_file(options.output_path, options.case_path,
                  options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  const auto make = [&](int ranks) -> std::unique_ptr<const Replay> {
    if (linear) return make_linear_replay(options, ranks);
    return std::make_unique<const SoftmaxReplay>(options, ranks);
  };
  run_ranks(options, make, output);
  return 0;
}

}  // namespace longhaul::launch
