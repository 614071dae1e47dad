// Plans of the sum rule's CUDA kernels, and folds of states.

#include <vector>

#include "attention/linear_gates.cuh"
#include "attention/linear_impl.h"

namespace longhaul::attention::detail {
namespace {

using runtime::Stream;

void require_sum_rule(const Recurrence& recurrence) {
  if (recurrence.rule == StateRule::sum) return;
  runtime::fail(runtime::ExitCode::config, "linear attention of kind ", kind_of(recurrence),
                " (the delta rule) has no CUDA kernel; use [device] kind = cpu");
}

/// What a diagonal map makes of a state: a thread has a key dim of every kFoldRows-th row.
constexpr int kFoldRows = kTileThreads / kEdge;
__global__ void __launch_bounds__(kTileThreads)
    fold_kernel(Operand<const float> in, Operand<const float> addend, Operand<float> out,
                std::int64_t rows, int dim, const float* logs, std::int64_t log_stride, bool wide,
                double tokens) {
  const int head = static_cast<int>(blockIdx.y), tiles_of_dim = (dim + kEdge - 1) / kEdge;
  const int d = static_cast<int>(blockIdx.x) % tiles_of_dim * kEdge + own_column();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) / tiles_of_dim * kEdge;
  if (d >= dim) return;
  TwoFloats by{1.0f, 0.0f};
  if (logs != nullptr)
    by = two_floats(static_cast<double>(logs[head * log_stride + (wide ? d : 0)]) * tokens);
  for (std::int64_t row = begin + own_part(); row < begin + kEdge && row < rows; row += kFoldRows) {
    float sum = by.of(in.head(head)[row * in.row_stride + d]);
    if (addend.data != nullptr) sum += addend.head(head)[row * addend.row_stride + d];
    out.head(head)[row * out.row_stride + d] = sum;
  }
}

/// The table is the run's chunks, then its segments; scratch is the states that are kept, backward
/// those of their gradients, too, and then the gradients of constant decays.
class CudaLinearPlan final : public LinearPlan {
 public:
  CudaLinearPlan(LinearPass pass, const LinearShape& shape, const Recurrence& recurrence,
                 std::vector<std::int64_t> starts, const BlockPlace& place)
      : LinearPlan(pass, shape, recurrence, std::move(starts), place) {
    std::vector<LinearSegment> segments;
    std::vector<LinearChunk> chunks;
    for (const Segment& segment : segments_of(shape.rows, this->starts())) {
      segments.push_back({segment, static_cast<std::int64_t>(chunks.size())});
      for (std::int64_t row = segment.begin; row < segment.end; row += kLinearChunk) {
        chunks.push_back({row, static_cast<std::int32_t>(std::min(kLinearChunk, segment.end - row)),
                          row == segment.begin && segment.starts ? 1 : 0});
      }
    }
    call_.shape = shape;
    call_.recurrence = recurrence;
    call_.chunk_count = static_cast<std::int64_t>(chunks.size());
    segments_ = static_cast<std::int64_t>(segments.size());
    const auto append = [this](auto bytes) {
      table_.insert(table_.end(), bytes.begin(), bytes.end());
    };
    append(std::as_bytes(std::span(chunks)));
    append(std::as_bytes(std::span(segments)));
  }

  std::int64_t scratch_bytes() const override {
    switch (pass()) {
      case LinearPass::sweep:
        return kept_bytes();
      case LinearPass::sweep_backward:
        return 2 * kept_bytes() + call_.chunk_count * shape().heads * std::int64_t{sizeof(double)};
      default:
        return 0;
    }
  }
  std::span<const std::byte> table() const override { return table_; }

 protected:
  void run(const SummarizeTensors& t, const BlockMemory& memory,
           const Stream& stream) const override {
    const bool backward = pass() == LinearPass::summarize_backward;
    LinearStates states;
    states.backward = backward;
    states.values = backward ? t.dout : t.inputs.v;
    states.first_segment = backward ? 0 : segments_ - 1;
    states.segments = 1;
    states.final = t.state;
    states.transition = t.transition;
    cuda_linear_states(call(t.inputs, memory), states, stream);
  }
  void run(const SweepTensors& t, const BlockMemory& memory, const Stream& stream) const override {
    const LinearCall now = call(t.inputs, memory);
    auto* kept = reinterpret_cast<float*>(memory.scratch);
    cuda_linear_states(now, forward_states(t.inputs, t.state_in, t.state_out, kept), stream);
    cuda_linear_outputs(now, kept, t.out, stream);
  }
  void run(const SweepBackwardTensors& t, const BlockMemory& memory,
           const Stream& stream) const override {
    const LinearCall now = call(t.inputs, memory);
    auto* kept = reinterpret_cast<float*>(memory.scratch);
    auto* dkept = reinterpret_cast<float*>(memory.scratch + kept_bytes());
    auto* gates = reinterpret_cast<double*>(memory.scratch + 2 * kept_bytes());
    cuda_linear_states(now, forward_states(t.inputs, t.state_in, {}, kept), stream);
    LinearStates backward;
    backward.backward = true;
    backward.values = t.dout;
    backward.segments = segments_;
    backward.initial = t.dstate_out;
    backward.final = t.dstate_in;
    backward.kept = dkept;
    cuda_linear_states(now, backward, stream);
    cuda_linear_gradients(now, t, kept, dkept, gates, stream);
  }

 private:
  LinearCall call(const LinearInputs& inputs, const BlockMemory& memory) const {
    LinearCall now = call_;
    now.inputs = inputs;
    now.chunks = reinterpret_cast<const LinearChunk*>(memory.table);
    now.segments = reinterpret_cast<const LinearSegment*>(now.chunks + now.chunk_count);
    return now;
  }
  LinearStates forward_states(const LinearInputs& inputs, runtime::ConstTensorView state_in,
                              runtime::TensorView state_out, float* kept) const {
    LinearStates states;
    states.values = inputs.v;
    states.segments = segments_;
    states.initial = state_in;
    states.final = state_out;
    states.kept = kept;
    return states;
  }
  /// In whole doubles.
  std::int64_t kept_bytes() const {
    const std::int64_t floats = call_.kept_states() * call_.state_elements();
    return (floats + 1) / 2 * std::int64_t{sizeof(double)};
  }

  LinearCall call_;
  std::int64_t segments_ = 0;
  std::vector<std::byte> table_;
};

}  // namespace

std::shared_ptr<const LinearPlan> make_cuda_linear_plan(LinearPass pass, const LinearShape& shape,
                                                        const Recurrence& recurrence,
                                                        std::vector<std::int64_t> starts,
                                                        const BlockPlace& place) {
  require_sum_rule(recurrence);
  require_heads(shape.heads);
  require_shared_memory(runtime::concat("linear attention of kind ", kind_of(recurrence)),
                        cuda_linear_shared_bytes(pass, recurrence), place.device,
                        "use an A100, an H100 or newer, or [device] kind = cpu");
  return std::make_shared<const CudaLinearPlan>(pass, shape, recurrence, std::move(starts), place);
}

void cuda_fold(const StateMap& how, runtime::ConstTensorView in, runtime::ConstTensorView addend,
               runtime::TensorView out, const runtime::Stream& stream) {
  require_sum_rule(how.recurrence);
  require_heads(out.size(1));
  if (out.elements() == 0) return;
  const Decay decay = how.recurrence.decay;
  const bool constant = decay == Decay::head;
  const runtime::ConstTensorView& logs = constant ? how.slopes : how.transition;
  const bool any = decay != Decay::none;
  launch(fold_kernel,
         dim3(tiles(out.size(0), kEdge) * tiles(out.size(2), kEdge),
              static_cast<unsigned>(out.size(1))),
         kTileThreads, 0, stream, operand<float>(in),
         addend.data() == nullptr ? Operand<const float>{nullptr, 0, 0} : operand<float>(addend),
         output_operand(out), out.size(0), static_cast<int>(out.size(2)),
         any ? logs.as<float>() : nullptr, any ? logs.stride(1) : 0, decay == Decay::vector,
         constant ? static_cast<double>(how.tokens) : 1.0);
}

}  // namespace longhaul::attention::detail
