#include "launch/bench_calls.h"

#include <algorithm>
#include <cmath>

#include "parallel/executor.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/random.h"

namespace longhaul::launch {

using attention::Mode;
using parallel::Direction;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// A block call, planned, with memory of its own.
class OneCall {
 public:
  OneCall(attention::Pass pass, const RankCall& call, const Stream& stream)
      : stream_(stream),
        plan_(attention::plan_block(pass, call.bands(), call.shape(), call.scoring(),
                                    call.place(stream))),
        memory_(plan_->scratch_bytes(), plan_->table(), stream) {}
  void forward(const attention::BlockForwardTensors& tensors) const {
    plan_->forward(tensors, memory_.memory(), stream_);
  }
  void backward(const attention::BlockBackwardTensors& tensors) const {
    plan_->backward(tensors, memory_.memory(), stream_);
  }

 private:
  const Stream stream_;
  const std::shared_ptr<const attention::BlockPlan> plan_;
  const CallMemory memory_;
};

}  // namespace

DType bench_dtype(const std::optional<std::string>& text, bool cuda) {
  if (!text) return cuda ? DType::bfloat16 : DType::float32;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    if (*text == runtime::name(dtype)) return dtype;
  }
  runtime::fail(runtime::ExitCode::config, "--dtype ", *text, ": expected float32 or bfloat16");
}

Stream bench_stream(bool cuda) {
  if (cuda) {
    if (runtime::cuda_device_count() == 0) {
      runtime::fail(runtime::ExitCode::launch,
                    "--device cuda: no CUDA device can be used; use --device cpu");
    }
    return Stream::cuda("compute", 0);
  }
  const int given = runtime::threads_of_environment();
  return Stream::cpu("compute", given > 0 ? given : runtime::available_cores());
}

std::string bench_device(const Stream& stream) {
  if (stream.device().kind == runtime::DeviceKind::cuda) return runtime::cuda_device_name(0);
  return runtime::counted(stream.threads(), "thread") + " of the CPU";
}

CallMemory::CallMemory(std::int64_t scratch_bytes, std::span<const std::byte> table,
                       const Stream& stream)
    : scratch_(stream.allocate(scratch_bytes)) {
  memory_ = {scratch_.data(), table.data()};
  if (stream.device().kind == runtime::DeviceKind::cpu || table.empty()) return;
  table_ = stream.allocate(std::ssize(table));
  runtime::ops::upload_bytes(table, table_.data(), stream);
  memory_.table = table_.data();
}

double attention_flops(Direction direction, std::int64_t pairs, const parallel::Shapes& shapes) {
  const std::int64_t d = shapes.dim, e = shapes.value_dim;
  const std::int64_t a_pair = direction == Direction::forward ? 2 * (d + e) : 2 * (3 * d + 2 * e);
  return static_cast<double>(a_pair) * static_cast<double>(pairs);
}

std::vector<attention::Slice> RankCall::bands() const {
  const auto strided = [](const attention::Run& run) { return run.stride != 1; };
  if (std::ranges::none_of(layout.runs(rank), strided)) {
    const attention::Run all[] = {{0, mask.tokens()}};
    return attention::cut(mask, layout.runs(rank), all);
  }
  // Strided rows have bands over rows that are strided alike: each rank's.
  std::vector<attention::Slice> bands;
  std::int64_t before = 0;
  for (int other = 0; other < layout.ranks(); ++other) {
    for (attention::Slice band : attention::cut(mask, layout.runs(rank), layout.runs(other))) {
      band.k_begin += before;
      band.k_end += before;
      if (band.lo > -attention::kUnbounded) band.lo += before;
      if (band.hi < attention::kUnbounded) band.hi += before;
      bands.push_back(band);
    }
    before += layout.rows(other);
  }
  return bands;
}

attention::BlockShape RankCall::shape() const {
  return {layout.rows(rank), layout.tokens(),  shapes.heads,     shapes.kv_heads,
          shapes.dim,        shapes.value_dim, shapes.activation};
}

attention::Scoring RankCall::scoring() const {
  return {.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shapes.dim)))};
}

attention::BlockPlace RankCall::place(const Stream& stream) const {
  attention::BlockPlace place = attention::place_of(stream);
  place.kernels = kernels;
  return place;
}

CallTensors::CallTensors(const RankCall& call, const Stream& stream)
    : call_(call), stream_(stream) {
  const parallel::Shapes& s = call.shapes;
  const std::int64_t rows = call.layout.rows(call.rank), tokens = call.layout.tokens();
  q_ = random(rows, s.heads, s.dim, 1);
  k_ = random(tokens, s.kv_heads, s.dim, 2);
  v_ = random(tokens, s.kv_heads, s.value_dim, 3);
  out_ = zeros(rows, s.heads, s.value_dim);
  lse_ = zeros(rows, s.heads, 2);
  if (call.direction == Direction::forward) return;
  dout_ = random(rows, s.heads, s.value_dim, 4);
  delta_ = Tensor({rows, s.heads}, DType::float32, stream);
  dq_ = zeros(rows, s.heads, s.dim);
  dk_ = zeros(tokens, s.kv_heads, s.dim);
  dv_ = zeros(tokens, s.kv_heads, s.value_dim);
  OneCall(attention::Pass::forward, call, stream).forward({q_, k_, v_, out_, lse_, Mode::write});
  attention::block_delta(out_, dout_, delta_, stream);
}

Tensor CallTensors::random(std::int64_t rows, std::int64_t heads, std::int64_t width,
                           std::uint64_t number) const {
  Tensor values({rows, heads, width}, call_.shapes.activation, stream_);
  runtime::ops::fill_normal(values, 0, 1, {1, number}, 0, stream_);
  return values;
}

Tensor CallTensors::zeros(std::int64_t rows, std::int64_t heads, std::int64_t width) const {
  Tensor values({rows, heads, width}, DType::float32, stream_);
  runtime::fill(values, 0, stream_);
  return values;
}

Enqueue CallTensors::one_call() const {
  const bool forward = call_.direction == Direction::forward;
  const auto one = std::make_shared<const OneCall>(
      forward ? attention::Pass::forward : attention::Pass::backward, call_, stream_);
  if (forward) return [=, this] { one->forward({q_, k_, v_, out_, lse_, Mode::write}); };
  return [=, this] {
    one->backward({{q_, k_, v_, dout_, lse_, delta_}, dq_, Mode::write, dk_, dv_, Mode::write});
  };
}

Enqueue CallTensors::both_calls() const {
  const auto forward = std::make_shared<const OneCall>(attention::Pass::forward, call_, stream_);
  return [=, this, backward = one_call()] {
    forward->forward({q_, k_, v_, out_, lse_, Mode::write});
    attention::block_delta(out_, dout_, delta_, stream_);
    backward();
  };
}

Enqueue CallTensors::steps_of(parallel::Program program) const {
  const std::int64_t rows = call_.layout.rows(call_.rank);
  const auto own = [rows](const Tensor& all) { return all.view().slice(0, 0, rows); };
  const auto weighting = attention::Weighting::softmax;
  const bool forward = call_.direction == Direction::forward;
  const auto prepared = std::make_shared<const parallel::Prepared>(
      std::move(program),
      forward ? parallel::forward_signature(weighting) : parallel::backward_signature(weighting),
      call_.scoring(), call_.place(stream_));
  const auto loaded = std::make_shared<const parallel::Loaded>(prepared, stream_);
  std::vector<ConstTensorView> inputs{q_, own(k_), own(v_)};
  std::vector<TensorView> outputs{out_, lse_};
  if (!forward) {
    inputs = {q_, dout_, lse_, delta_, own(k_), own(v_)};
    outputs = {dq_, own(dk_), own(dv_)};
  }
  {
    // What others would have sent: the arena that calls take from the stream's pool is this memory.
    const Tensor arena({(prepared->arena_bytes() + 1) / 2}, DType::bfloat16, stream_);
    runtime::ops::fill_normal(arena, 0, 1, {1, 5}, 0, stream_);
  }
  // What the scheme saves from forward to backward, if anything: the memory of such values.
  const std::int64_t saved_bytes = prepared->saved_bytes();
  if (saved_bytes > 0) {
    const Tensor values({(saved_bytes + 1) / 2}, DType::bfloat16, stream_);
    runtime::ops::fill_normal(values, 0, 1, {1, 6}, 0, stream_);
  }
  const auto saved = std::make_shared<const runtime::Buffer>(
      saved_bytes > 0 ? stream_.allocate(saved_bytes) : runtime::Buffer());
  return [=, this] {
    static const std::vector<parallel::Channel> none;
    parallel::Execution(loaded, inputs, outputs, stream_, none, saved->data()).finish();
  };
}

}  // namespace longhaul::launch
