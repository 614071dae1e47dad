#pragma once
// The seam between what this room plans and cuDNN: what one of its attention graphs is made of, and
// what one runs on. Knows nothing of CUDA's or cuDNN's headers. Private to attention/ and its
// tests, which put a stand-in in cuDNN's place.
//
// The contract, as measured (launch/gpu/RESULTS.md): softmax attention of bfloat16 q, k, v; out and
// the gradients are rounded to bfloat16, LSE is float32 and natural. Backward reads a bfloat16 out,
// of which only rowsum(dout * out) counts, and the LSE. Batch entries are apart in memory; of a
// ragged graph each has its own lengths and begins anywhere, and one of length 0 touches nothing.

#include <cstdint>
#include <memory>
#include <string>

#include "attention/block_plan.h"
#include "attention/sdpa_plan.h"

namespace longhaul::attention::detail {

/// What a graph is made of. Operands are rows of heads of elements: an entry of q begins
/// `q_step * q_row_heads * dim` elements after the one before.
struct SdpaForm {
  Pass pass = Pass::forward;
  bool ragged = false;
  bool deterministic = false;  ///< backward
  std::int64_t heads = 1, kv_heads = 1, dim = 0, value_dim = 0;
  std::int64_t batch = 1;
  std::int64_t q_rows = 0, k_rows = 0;  ///< of an entry; ragged: of the longest
  std::int64_t q_step = 0, k_step = 0;  ///< rows from entry to entry; not read of a ragged form
  /// Ragged backward: rows that the entries lie in, all together.
  std::int64_t q_total = 0, k_total = 0;
  /// Heads from row to row of q and dout; of k, v. Ragged backward: their own, nothing between
  /// rows.
  std::int64_t q_row_heads = 0, kv_row_heads = 0;
  SdpaMask mask = {};
  float scale = 1;
  bool operator==(const SdpaForm&) const = default;
  auto operator<=>(const SdpaForm&) const = default;
};
/// "backward, bottom right (left -1, right 0), 16:2 heads, ..."
std::string to_string(const SdpaForm& form);

/// Of a call of choose_kernels(). Sizes of a ragged one are rounded up, so that documents of many
/// lengths share graphs.
SdpaForm form_of(const SdpaCall& call, Pass pass, const BlockShape& shape, float scale,
                 bool deterministic);

/// What a graph of cuDNN 9.19 asks for at most, to within a twentieth (tests/attention/
/// sdpa_graphs_test.cpp); known without one.
std::int64_t expected_workspace_bytes(const SdpaForm& form);

/// Of one run, on the device; what a pass or form has no use for is null. All 16-byte aligned.
struct SdpaOperands {
  const std::byte *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;  // bfloat16
  std::byte* out = nullptr;  ///< bfloat16, rows of `heads`; backward reads it
  /// Forward, and ragged backward: [row, head]. Dense backward: [entry, head, row], packed.
  float* lse = nullptr;
  std::byte *dq = nullptr, *dk = nullptr, *dv = nullptr;  ///< bfloat16, rows of their own heads
  std::byte* workspace = nullptr;
  // Ragged, [batch] and [batch + 1], offsets in elements.
  const std::int32_t *q_lengths = nullptr, *k_lengths = nullptr;
  const std::int64_t *q_offsets = nullptr, *k_offsets = nullptr, *v_offsets = nullptr,
                     *dout_offsets = nullptr, *out_offsets = nullptr, *lse_offsets = nullptr,
                     *dq_offsets = nullptr, *dk_offsets = nullptr, *dv_offsets = nullptr;
};

/// A graph with its execution plan. Immutable; runs on any stream of its device.
class Sdpa {
 public:
  virtual ~Sdpa() = default;
  virtual std::int64_t workspace_bytes() const = 0;
  /// Only enqueues.
  virtual void run(const SdpaOperands& operands, const runtime::Stream& stream) const = 0;
};

/// The graph of a form on a device: built once a process, its kernel loaded. On any thread.
/// Throws Error(config) where cuDNN does not take it.
std::shared_ptr<const Sdpa> sdpa(const SdpaForm& form, runtime::Device device);

/// Why this build cannot run sdpa(); empty where it can.
std::string no_sdpa_reason();

}  // namespace longhaul::attention::detail
