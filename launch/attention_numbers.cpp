#include "launch/attention_numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "launch/named_tensor.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::ExitCode;
using runtime::fail;

/// Of a score's products: what float32 holds, less what rounding inputs to bfloat16 may add.
constexpr double kLargest = 0.99 * static_cast<double>(std::numeric_limits<float>::max());

/// One vector of a tensor [B, S, heads, width].
std::span<const float> row_of(const NamedTensor& tensor, std::int64_t row, std::int64_t head) {
  const std::int64_t heads = tensor.sizes[2], width = tensor.sizes[3];
  return tensor.values.subspan(static_cast<std::size_t>((row * heads + head) * width),
                               static_cast<std::size_t>(width));
}
/// "q[0, 5, 1]".
std::string at_row(const char* name, std::int64_t seq_len, std::int64_t row, std::int64_t head) {
  return runtime::concat(name, "[", row / seq_len, ", ", row % seq_len, ", ", head, "]");
}

NamedTensor q_of(const AttentionCase& in) {
  return {"q", in.q, {in.batch, in.seq_len, in.heads, in.dim}};
}
NamedTensor k_of(const AttentionCase& in) {
  return {"k", in.k, {in.batch, in.seq_len, in.kv_heads, in.dim}};
}

std::vector<NamedTensor> tensors_of(const AttentionCase& in) {
  return {q_of(in),
          k_of(in),
          {"v", in.v, {in.batch, in.seq_len, in.kv_heads, in.value_dim}},
          {"dout", in.dout, {in.batch, in.seq_len, in.heads, in.value_dim}}};
}

double norm(std::span<const float> x) {
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(squares);
}

/// Of each row of a head; 0 where an element is not finite, since that shows by itself.
std::vector<double> finite_norms(const NamedTensor& tensor, std::int64_t head) {
  std::vector<double> norms;
  const auto rows = tensor.sizes[0] * tensor.sizes[1];
  for (std::int64_t row = 0; row < rows; ++row) {
    const double size = norm(row_of(tensor, row, head));
    norms.push_back(std::isfinite(size) ? size : 0);
  }
  return norms;
}

/// Norms bound every partial sum of a score, in whatever order and wherever the scale comes in: in
/// a usual case they settle it, and no pair is looked at.
void check_scores(const std::string& path, const AttentionCase& input,
                  const attention::Scoring& scoring) {
  const NamedTensor q = q_of(input), k = k_of(input);
  const double scale = std::max(1.0, std::abs(static_cast<double>(scoring.scale)));
  for (std::int64_t head = 0; head < input.heads; ++head) {
    const std::int64_t kv_head = head * input.kv_heads / input.heads;
    const std::vector<double> of_q = finite_norms(q, head), of_k = finite_norms(k, kv_head);
    const double largest_k = std::ranges::max(of_k) * scale;
    for (const attention::Slice& slice : input.mask.of(static_cast<int>(head)).slices()) {
      for (std::int64_t row = slice.q_begin; row < slice.q_end; ++row) {
        const double of_row = of_q[static_cast<std::size_t>(row)];
        if (of_row * largest_k <= kLargest) continue;
        for (std::int64_t key = slice.key_begin(row); key < slice.key_end(row); ++key) {
          if (of_row * of_k[static_cast<std::size_t>(key)] * scale <= kLargest) continue;
          const auto a = row_of(q, row, head), b = row_of(k, key, kv_head);
          double sum = 0;
          for (std::size_t d = 0; d < a.size(); ++d)
            sum += std::abs(static_cast<double>(a[d]) * static_cast<double>(b[d]));
          if (sum * scale <= kLargest) continue;
          fail(ExitCode::data, path, ": the score of query ", at_row("q", input.seq_len, row, head),
               " and key ", at_row("k", input.seq_len, key, kv_head),
               " leaves float32: its products are up to ", sum * scale, " together, at scale ",
               scoring.scale, "; expected at most ", kLargest,
               "; make 'q', 'k' or the attribute 'scale' smaller, or cap scores with --softcap");
        }
      }
    }
  }
}

/// A row that sees a key and whose LSE is -inf, if there is one: its index in lse [B*S, H].
std::optional<std::int64_t> lost_row(const AttentionCase& input, const AttentionResult& result) {
  if (result.lse.empty()) return std::nullopt;
  for (std::int64_t head = 0; head < input.heads; ++head) {
    for (const attention::Slice& slice : input.mask.of(static_cast<int>(head)).slices()) {
      for (std::int64_t row = slice.q_begin; row < slice.q_end; ++row) {
        const std::int64_t at = row * input.heads + head;
        if (slice.key_begin(row) < slice.key_end(row) &&
            result.lse[static_cast<std::size_t>(at)] == -std::numeric_limits<float>::infinity())
          return at;
      }
    }
  }
  return std::nullopt;
}

/// The first number of the results that is none, or is -inf where keys are seen; with its place.
std::string first_wrong(const AttentionCase& in, const AttentionResult& result) {
  const std::int64_t b = in.batch, t = in.seq_len;
  const std::string number = first_not_finite(
      std::vector<NamedTensor>{{"out", result.out, {b, t, in.heads, in.value_dim}},
                               {"dq", result.dq, {b, t, in.heads, in.dim}},
                               {"dk", result.dk, {b, t, in.kv_heads, in.dim}},
                               {"dv", result.dv, {b, t, in.kv_heads, in.value_dim}}});
  if (!number.empty()) return number;
  const auto lost = lost_row(in, result);
  if (lost) {
    return runtime::concat("the LSE of ",
                           at_row("out", in.seq_len, *lost / in.heads, *lost % in.heads),
                           ", which sees keys, is -inf");
  }
  return first_not_finite(std::vector<NamedTensor>{{"dsinks", result.dsinks, {in.heads}}});
}

}  // namespace

void check_numbers(const std::string& path, const AttentionCase& input, DType dtype,
                   const attention::Scoring& scoring) {
  if (dtype == DType::bfloat16) check_bfloat16(path, tensors_of(input));
  if (scoring.weighting == attention::Weighting::softmax && scoring.softcap == 0)
    check_scores(path, input, scoring);
}

std::string check_results(const AttentionCase& input, const AttentionResult& result) {
  const std::string wrong = first_wrong(input, result);
  if (wrong.empty()) return "";
  return explain_wrong(wrong, tensors_of(input), "smaller 'v' or 'dout'");
}

}  // namespace longhaul::launch
