#include "attention/block_plan.h"

#include <algorithm>
#include <cmath>

#include "attention/block_check_impl.h"
#include "attention/block_impl.h"
#include "attention/own_memory_impl.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using detail::OwnMemory;
using runtime::ConstTensorView;
using runtime::DeviceKind;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

void check_shape(const BlockShape& s) {
  LONGHAUL_CHECK(s.activation == DType::float32 || s.activation == DType::bfloat16,
                 "the activation dtype is ", name(s.activation), "; expected float32 or bfloat16");
  LONGHAUL_CHECK(s.kv_heads == 0 ? s.heads == 0 : s.heads % s.kv_heads == 0, s.heads,
                 " query heads are no multiple of ", s.kv_heads, " key/value heads");
  LONGHAUL_CHECK(s.heads_of_q_rows() >= s.heads && s.heads_of_kv_rows() >= s.kv_heads, "views of ",
                 s.heads, " and ", s.kv_heads, " heads in rows of ", s.q_row_heads, " and ",
                 s.kv_row_heads);
}

void check_scoring(const Scoring& scoring) {
  // A cap below 1e-38 has no finite reciprocal.
  LONGHAUL_CHECK(scoring.softcap == 0 || (scoring.softcap > 0 && std::isfinite(scoring.softcap) &&
                                          std::isfinite(1 / scoring.softcap)),
                 "softcap is ", scoring.softcap, "; expected 0 for none or a positive number");
  LONGHAUL_CHECK(std::isfinite(scoring.scale), "scale is ", scoring.scale);
  LONGHAUL_CHECK(std::isfinite(scoring.bias), "bias is ", scoring.bias);
  LONGHAUL_CHECK(scoring.weighting == Weighting::sigmoid || scoring.bias == 0, "bias is ",
                 scoring.bias, "; softmax has none: expected 0");
}

/// Tightened, without empty ones, by first query, then first key.
std::vector<Slice> sorted(const std::vector<Slice>& bands, const BlockShape& s) {
  std::vector<Slice> kept;
  kept.reserve(bands.size());
  for (const Slice& band : bands) {
    const Slice tight = tightened(band);
    if (tight.q_begin == tight.q_end) continue;
    LONGHAUL_CHECK(tight.q_begin >= 0 && tight.q_end <= s.q_rows && tight.k_begin >= 0 &&
                       tight.k_end <= s.k_rows,
                   "band of queries [", tight.q_begin, ", ", tight.q_end, ") and keys [",
                   tight.k_begin, ", ", tight.k_end, ") leaves views of ", s.q_rows, " and ",
                   s.k_rows, " rows");
    kept.push_back(tight);
  }
  std::sort(kept.begin(), kept.end(), [](const Slice& a, const Slice& b) {
    return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
  });
  return kept;
}

void check_inputs(ConstTensorView q, ConstTensorView k, ConstTensorView v, const BlockPlan& plan,
                  const Stream& stream) {
  const BlockShape& s = plan.shape();
  LONGHAUL_CHECK(!plan.place().sizes_only, "a plan of sizes alone was run");
  detail::check("q", q, {s.q_rows, s.heads, s.dim}, s.activation, stream);
  detail::check("k", k, {s.k_rows, s.kv_heads, s.dim}, s.activation, stream);
  detail::check("v", v, {s.k_rows, s.kv_heads, s.value_dim}, s.activation, stream);
}

void check_place(const BlockPlan& plan, const Stream& stream) {
  LONGHAUL_CHECK(stream.device() == plan.place().device && stream.threads() == plan.place().threads,
                 "a block call planned for ", plan.place().threads, " threads of ",
                 to_string(plan.place().device), " on stream '", stream.name(), "' of ",
                 stream.threads(), " threads of ", to_string(stream.device()));
}

/// What a row of a softmax has one of, and a sigmoid must not be given.
void check_per_row(const char* what, const ConstTensorView& view,
                   std::initializer_list<std::int64_t> sizes, const BlockPlan& plan,
                   const Stream& stream) {
  if (plan.scoring().weighting == Weighting::softmax)
    return detail::check(what, view, sizes, DType::float32, stream);
  LONGHAUL_CHECK(view.data() == nullptr, what, " is given, of ", view.elements(),
                 " elements; sigmoid attention has none: expected an empty view");
}

/// The shape that tensors of a call show.
BlockShape shape_of(ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  LONGHAUL_CHECK(q.dims() == 3 && k.dims() == 3 && v.dims() == 3, "q, k, v have ", q.dims(), ", ",
                 k.dims(), ", ", v.dims(), " dims; expected rows, heads, dim");
  return {q.size(0), k.size(0), q.size(1), k.size(1), q.size(2), v.size(2), q.dtype()};
}

}  // namespace

BlockPlace place_of(const Stream& stream) { return {stream.device(), stream.threads()}; }

bool in_host_memory(const BlockPlace& place) { return place.device.kind == DeviceKind::cpu; }

void require_host_memory(const BlockPlace& place, const char* what) {
  if (!in_host_memory(place))
    runtime::fail(runtime::ExitCode::config, what, " take host memory, and attention is on ",
                  to_string(place.device), "; use [device] kind = \"cpu\"");
}

void BlockPlan::forward(const BlockForwardTensors& t, const BlockMemory& memory,
                        const Stream& stream) const {
  check_place(*this, stream);
  check(t, stream);
  run_forward(t, memory, stream);
}

void BlockPlan::backward(const BlockBackwardTensors& t, const BlockMemory& memory,
                         const Stream& stream) const {
  check_place(*this, stream);
  check(t, stream);
  run_backward(t, memory, stream);
}

void BlockPlan::check(const BlockForwardTensors& t, const Stream& stream) const {
  LONGHAUL_CHECK(pass() == Pass::forward, "a plan of a backward call was run forward");
  check_inputs(t.q, t.k, t.v, *this, stream);
  detail::check("out", t.out, {shape().q_rows, shape().heads, shape().value_dim}, DType::float32,
                stream);
  check_per_row("lse", t.lse, {shape().q_rows, shape().heads, 2}, *this, stream);
}

void BlockPlan::check(const BlockBackwardTensors& t, const Stream& stream) const {
  LONGHAUL_CHECK(pass() == Pass::backward, "a plan of a forward call was run backward");
  const BlockShape& s = shape();
  const BlockBackwardInputs& in = t.inputs;
  check_inputs(in.q, in.k, in.v, *this, stream);
  detail::check("dout", in.dout, {s.q_rows, s.heads, s.value_dim}, s.activation, stream);
  check_per_row("lse", in.lse, {s.q_rows, s.heads, 2}, *this, stream);
  check_per_row("delta", in.delta, {s.q_rows, s.heads}, *this, stream);
  detail::check("dq", t.dq, {s.q_rows, s.heads, s.dim}, DType::float32, stream);
  detail::check("dk", t.dk, {s.k_rows, s.kv_heads, s.dim}, DType::float32, stream);
  detail::check("dv", t.dv, {s.k_rows, s.kv_heads, s.value_dim}, DType::float32, stream);
}

void BlockPlan::compute(const BlockForwardTensors&, std::byte*) const {
  runtime::fail(runtime::ExitCode::internal, "this plan computes nothing forward on the CPU");
}
void BlockPlan::compute(const BlockBackwardTensors&, std::byte*) const {
  runtime::fail(runtime::ExitCode::internal, "this plan computes nothing backward on the CPU");
}

void BlockPlan::run_forward(const BlockForwardTensors&, const BlockMemory&, const Stream&) const {
  runtime::fail(runtime::ExitCode::internal, "this plan has no forward");
}
void BlockPlan::run_backward(const BlockBackwardTensors&, const BlockMemory&, const Stream&) const {
  runtime::fail(runtime::ExitCode::internal, "this plan has no backward");
}

std::shared_ptr<const BlockPlan> plan_block(Pass pass, const std::vector<Slice>& bands,
                                            const BlockShape& shape, const Scoring& scoring,
                                            const BlockPlace& place) {
  check_scoring(scoring);
  check_shape(shape);
  const bool cuda = place.device.kind == DeviceKind::cuda, forward = pass == Pass::forward;
  if (place.kernels == Kernels::cudnn && !cuda) {
    runtime::fail(runtime::ExitCode::config, "attention by cuDNN is demanded on ",
                  to_string(place.device), "; expected CUDA");
  }
  if (place.pretence) {
    if (cuda) {
      runtime::fail(runtime::ExitCode::config, "attention is pretended on ",
                    to_string(place.device), "; expected the CPU");
    }
    return detail::pretended_plan(pass, sorted(bands, shape), shape, scoring, place);
  }
  const auto plan = forward ? (cuda ? detail::cuda_plan_forward : detail::cpu_plan_forward)
                            : (cuda ? detail::cuda_plan_backward : detail::cpu_plan_backward);
  return plan(sorted(bands, shape), shape, scoring, place);
}

void run_once(const std::shared_ptr<const BlockPlan>& plan, const BlockForwardTensors& tensors,
              const Stream& stream) {
  const OwnMemory own(*plan, stream);
  plan->forward(tensors, own.memory, stream);
}

void run_once(const std::shared_ptr<const BlockPlan>& plan, const BlockBackwardTensors& tensors,
              const Stream& stream) {
  const OwnMemory own(*plan, stream);
  plan->backward(tensors, own.memory, stream);
}

void block_forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                   const std::vector<Slice>& bands, const Scoring& scoring, TensorView out,
                   TensorView lse, Mode mode, const Stream& stream) {
  const auto plan = plan_block(Pass::forward, bands, shape_of(q, k, v), scoring, place_of(stream));
  run_once(plan, BlockForwardTensors{q, k, v, out, lse, mode}, stream);
}

void block_backward(const BlockBackwardInputs& in, const std::vector<Slice>& bands,
                    const Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk,
                    TensorView dv, Mode dkv_mode, const Stream& stream) {
  const auto plan =
      plan_block(Pass::backward, bands, shape_of(in.q, in.k, in.v), scoring, place_of(stream));
  run_once(plan, BlockBackwardTensors{in, dq, dq_mode, dk, dv, dkv_mode}, stream);
}

}  // namespace longhaul::attention
