// The key dims' side of a chunk of up to 64 tokens of one head: what queries, keys and gates say
// before any value is looked at, and the gradients that come back to them. With g the sums of the
// log decay from the chunk's start, in the letters of the sources (rows are tokens):
//   weights  P_ij  = sum_d scale q_id k_jd exp(g_id - g_jd), j <= i
//   overlaps A0_ij = sum_d k_id k_jd exp(g_id - g_jd), j < i; the delta rule's
// No factor's exponent is positive, and each is made of the gates that it spans alone: an output
// depends on nothing later, not even in its last bit.

#if defined(LONGHAUL_ATTENTION_LINEAR_KEYS_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_KEYS_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_KEYS_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_KEYS_CPU_H
#endif

#include <memory>

#include "attention/linear.h"
#include "attention/linear_rows_cpu.h"
#include "attention/linear_segments_impl.h"
#include "attention/scratch_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

constexpr std::int64_t kChunk = detail::kLinearChunk;

/// A matrix of scratch.
inline Matrix matrix(Scratch& scratch, std::int64_t rows, std::int64_t columns) {
  return {scratch.floats(rows * padded(columns)), padded(columns)};
}

struct ChunkSizes {
  LinearShape shape;
  Recurrence how;
  std::int64_t dim() const { return shape.dim; }
  std::int64_t value_dim() const { return shape.value_dim; }
  /// In whole vectors.
  std::int64_t columns() const { return padded_to_vectors(dim()); }
  std::int64_t value_columns() const { return padded_to_vectors(value_dim()); }
  std::int64_t key_head(std::int64_t head) const { return head * shape.key_heads / shape.heads; }
  bool delta() const { return how.rule == StateRule::delta; }
  bool gated() const { return how.decay != Decay::none; }
};

/// What a pass wants of a chunk beside its keys.
struct KeyUses {
  bool queries = false;  ///< q, q_in
  bool weights = false;  ///< needs the queries
};

/// In and out of ChunkKeys::backward().
struct KeyGradients {
  Matrix dq;          ///< in: dout S^T, S the state before; out: dq
  Matrix dk;          ///< in: U dS^T, dS the gradient of the state after; out: dk
  Matrix dk_read;     ///< in: -dV S^T, delta rule; overwritten
  Matrix dweights;    ///< in: of P, lower, rows zero up to whole vectors; overwritten
  Matrix doverlaps;   ///< in: of A0, strictly lower, likewise; delta rule; overwritten
  float* overlap;     ///< [D] in: sum over e of S dS; overwritten
  Matrix dlog_decay;  ///< out: [tokens, 1 or D], with a decay
};

class ChunkKeys {
 public:
  virtual ~ChunkKeys() = default;
  /// Reads `tokens` rows, 1 to 64, from `begin` on.
  virtual void load(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                    std::int64_t tokens, KeyUses uses) = 0;
  /// Of what was loaded with all uses.
  virtual void backward(const KeyGradients& gradients) = 0;

  std::int64_t tokens = 0;
  Matrix q, k;        ///< scale q, k
  Matrix q_in, k_in;  ///< times exp(g): they read the state before the chunk; k_in: delta rule
  Matrix k_out;       ///< times exp(g_c - g): what the state after the chunk holds of a token
  Matrix weights, overlaps;
  float *decay_high = nullptr, *decay_low = nullptr;  ///< [D] exp(g_c), with a decay

 protected:
  ChunkKeys(Scratch& scratch, const ChunkSizes& of);
  void load_rows_of(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                    std::int64_t count, KeyUses uses);
  const ChunkSizes sizes;
};

/// With memory of `scratch`, which must outlive it. `gradients`: backward() will be called.
std::unique_ptr<ChunkKeys> make_chunk_keys(Scratch& scratch, const ChunkSizes& sizes,
                                           bool gradients);

/// Decay none, head or scalar: factors of a pair of tokens.
class ScalarKeys final : public ChunkKeys {
 public:
  ScalarKeys(Scratch& scratch, const ChunkSizes& of, bool gradients);
  void load(const LinearInputs& inputs, std::int64_t head, std::int64_t begin, std::int64_t count,
            KeyUses uses) override;
  void backward(const KeyGradients& gradients) override;

 private:
  void load_factors(const LinearInputs& inputs, std::int64_t head, std::int64_t begin, bool pairs);
  void decay_backward(const KeyGradients& gradients, const float* reads, const float* writes) const;
  Matrix k_transposed, fades, spans;  // fades: exp(g_i - g_j); spans: gradients of their logs
  float *in_factor, *out_factor;
};

/// Decay vector: factors of a pair of tokens and key dim. Blocks of 16 tokens: a factor between
/// blocks is the row's from its block's start, the column's to its block's end, and those of the
/// blocks between them; inside a block, products of single tokens' factors.
class VectorKeys final : public ChunkKeys {
 public:
  VectorKeys(Scratch& scratch, const ChunkSizes& of, bool gradients);
  void load(const LinearInputs& inputs, std::int64_t head, std::int64_t begin, std::int64_t count,
            KeyUses uses) override;
  void backward(const KeyGradients& gradients) override;

 private:
  static constexpr std::int64_t kBlock = 16, kBlocks = kChunk / kBlock;
  std::int64_t blocks() const { return (tokens + kBlock - 1) / kBlock; }
  std::int64_t block_tokens(std::int64_t block) const {
    return std::min(kBlock, tokens - block * kBlock);
  }
  void load_factors(const LinearInputs& inputs, std::int64_t head, std::int64_t begin);
  void near_rows(KeyUses uses);
  template <int Count, bool with_weights, bool with_overlaps>
  void pairs_of_key(std::int64_t j, std::int64_t i);
  template <bool with_weights, bool with_overlaps>
  void pairs_of_block(std::int64_t block);
  void anchor_at_chunk(KeyUses uses);
  void reads_backward(const KeyGradients& g);
  void writes_backward(const KeyGradients& g);
  void decay_between_blocks(const KeyGradients& g);
  void finish(const KeyGradients& g);
  template <int Count, bool delta>
  void keys_backward(std::int64_t j, std::int64_t end, std::int64_t d, const KeyGradients& g);
  template <bool delta>
  void block_backward(std::int64_t block, const KeyGradients& g);

  Matrix alpha;               // exp(a) of each token
  Matrix row_factor;          // from the block's start through the token
  Matrix column_factor;       // after the token to the block's end
  Matrix block_factor;        // [block, D] of a whole block
  Matrix earlier_transposed;  // [D, tokens] k of the blocks so far, decayed to the block's start
  float *ones, *faded;        // [D] of pairs_of_key()
  float* factor;              // [D]
  // Backward.
  Matrix earlier;             // the same by rows
  Matrix later_q, later_k;    // of later blocks, decayed from the block's end
  Matrix read_sums;           // [block * kBlocks + B, D]: what a block read of before block B
  Matrix write_sums, across;  // [block, D]
};

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_LINEAR_KEYS_CPU_H
