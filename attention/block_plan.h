#pragma once
// A block call prepared: everything that depends on bands, shapes, scoring and device, and not on
// the tensors. Made once a batch, run once a layer.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attention/block.h"
#include "attention/pretence.h"

namespace longhaul::attention {

enum class Pass : unsigned char { forward, backward };

/// Sizes of the operands of a block call; names as in block.h.
struct BlockShape {
  std::int64_t q_rows = 0, k_rows = 0;
  std::int64_t heads = 0, kv_heads = 0;
  std::int64_t dim = 0, value_dim = 0;
  runtime::DType activation = runtime::DType::float32;
  /// Heads from row to row in memory, where q and dout, or k and v, are heads of wider tensors; 0:
  /// their own heads follow each other. What is bound in another way is copied by each call whose
  /// kernels need to know.
  std::int64_t q_row_heads = 0, kv_row_heads = 0;
  std::int64_t heads_of_q_rows() const { return q_row_heads == 0 ? heads : q_row_heads; }
  std::int64_t heads_of_kv_rows() const { return kv_row_heads == 0 ? kv_heads : kv_row_heads; }
  bool operator==(const BlockShape&) const = default;
};

/// What computes softmax attention on CUDA. No other device has a choice.
enum class Kernels : unsigned char {
  exact,      ///< our own: every contract of block.h, at a fraction of the device's speed
  automatic,  ///< cuDNN's for what they can do and are faster at, else the exact ones
  cudnn       ///< cuDNN's, or a refusal
};

/// Where a call is to run: on a stream of this device, on the CPU with so many threads.
struct BlockPlace {
  runtime::Device device;
  int threads = 1;
  Kernels kernels = Kernels::exact;
  bool deterministic = false;  ///< cuDNN's backward repeats bit for bit; the others always do
  /// Of a plan only its sizes are asked for: it cannot run, and needs neither a device nor cuDNN.
  bool sizes_only = false;
  /// Calls only take time: what they would write becomes 0, what they would add to stays. CPU only.
  std::optional<Pretence> pretence = {};
};
BlockPlace place_of(const runtime::Stream& stream);
/// Whether the host can read its memory.
bool in_host_memory(const BlockPlace& place);
/// Throws Error(config), naming `what`, for a device whose memory the host cannot read.
void require_host_memory(const BlockPlace& place, const char* what);

struct BlockForwardTensors {
  runtime::ConstTensorView q, k, v;
  runtime::TensorView out, lse;
  Mode mode = Mode::write;
};
struct BlockBackwardTensors {
  BlockBackwardInputs inputs;
  runtime::TensorView dq;
  Mode dq_mode = Mode::write;
  runtime::TensorView dk, dv;
  Mode dkv_mode = Mode::write;
};

/// Memory of one call, valid until it has run. Calls of one stream may share it.
struct BlockMemory {
  std::byte* scratch = nullptr;      ///< scratch_bytes() of the stream's device; 256-byte aligned
  const std::byte* table = nullptr;  ///< a copy of table() on the device; not read on the CPU
};

/// Immutable: one plan may run on several streams at once, and be made on any thread.
class BlockPlan : public std::enable_shared_from_this<BlockPlan> {
 public:
  virtual ~BlockPlan() = default;

  Pass pass() const { return pass_; }
  const BlockShape& shape() const { return shape_; }
  const Scoring& scoring() const { return scoring_; }
  const BlockPlace& place() const { return place_; }

  /// Temporaries that a call overwrites.
  virtual std::int64_t scratch_bytes() const = 0;
  /// What a call is pretended to take (BlockPlace::pretence); 0: it computes.
  virtual double pretended_seconds() const { return 0; }
  /// What the device reads of the plan; empty on the CPU.
  virtual std::span<const std::byte> table() const { return {}; }

  /// As block_forward() and block_backward(). Throw Error where a tensor does not fit the plan.
  void forward(const BlockForwardTensors& tensors, const BlockMemory& memory,
               const runtime::Stream& stream) const;
  void backward(const BlockBackwardTensors& tensors, const BlockMemory& memory,
                const runtime::Stream& stream) const;
  /// Throw Error where a tensor does not fit the plan.
  void check(const BlockForwardTensors& tensors, const runtime::Stream& stream) const;
  void check(const BlockBackwardTensors& tensors, const runtime::Stream& stream) const;

  /// The work itself, of tensors that were checked, on the calling thread and the team that it
  /// makes. Only of plans of the CPU that compute.
  virtual void compute(const BlockForwardTensors& tensors, std::byte* scratch) const;
  virtual void compute(const BlockBackwardTensors& tensors, std::byte* scratch) const;

 protected:
  BlockPlan(Pass pass, const BlockShape& shape, const Scoring& scoring, const BlockPlace& place)
      : pass_(pass), shape_(shape), scoring_(scoring), place_(place) {}
  /// Of a plan of that pass; the tensors are checked. Only enqueues; the plan lives until it ran.
  virtual void run_forward(const BlockForwardTensors& tensors, const BlockMemory& memory,
                           const runtime::Stream& stream) const;
  virtual void run_backward(const BlockBackwardTensors& tensors, const BlockMemory& memory,
                            const runtime::Stream& stream) const;

 private:
  const Pass pass_;
  const BlockShape shape_;
  const Scoring scoring_;
  const BlockPlace place_;
};

/// Throws Error for bands that leave the views, heads that do not divide, a scoring without
/// meaning, and what the device's kernels cannot do: everything that a call could be refused for
/// but its tensors.
std::shared_ptr<const BlockPlan> plan_block(Pass pass, const std::vector<Slice>& bands,
                                            const BlockShape& shape, const Scoring& scoring,
                                            const BlockPlace& place);

/// Runs a plan once, with memory of the stream.
void run_once(const std::shared_ptr<const BlockPlan>& plan, const BlockForwardTensors& tensors,
              const runtime::Stream& stream);
void run_once(const std::shared_ptr<const BlockPlan>& plan, const BlockBackwardTensors& tensors,
              const runtime::Stream& stream);

}  // namespace longhaul::attention
