#include "launch/attention_numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::ExitCode;
using runtime::fail;

/// Of a score's products: what float32 holds, less what rounding inputs to bfloat16 may add.
constexpr double kLargest = 0.99 * static_cast<double>(std::numeric_limits<float>::max());

/// As text; a NaN without its sign.
std::string shown(float x) { return std::isnan(x) ? "nan" : runtime::concat(x); }

/// A tensor [B, S, heads, width] of the case or of the results, flat.
struct Named {
  const char* name;
  std::span<const float> values;
  std::int64_t seq_len, heads, width;
  /// "q[0, 5, 1, 3]".
  std::string at(std::int64_t index) const {
    const std::int64_t row = index / (heads * width);
    return runtime::concat(name, "[", row / seq_len, ", ", row % seq_len, ", ",
                           index / width % heads, ", ", index % width, "]");
  }
  std::string value(std::int64_t index) const {
    return shown(values[static_cast<std::size_t>(index)]);
  }
  std::string at_row(std::int64_t row, std::int64_t head) const {
    return runtime::concat(name, "[", row / seq_len, ", ", row % seq_len, ", ", head, "]");
  }
  std::span<const float> row(std::int64_t row, std::int64_t head) const {
    return values.subspan(static_cast<std::size_t>((row * heads + head) * width),
                          static_cast<std::size_t>(width));
  }
  std::optional<std::int64_t> first(bool (*wrong)(float)) const {
    const auto found = std::ranges::find_if(values, wrong);
    if (found == values.end()) return std::nullopt;
    return found - values.begin();
  }
};

bool not_finite(float x) { return !std::isfinite(x); }

Named q_of(const AttentionCase& in) { return {"q", in.q, in.seq_len, in.heads, in.dim}; }
Named k_of(const AttentionCase& in) { return {"k", in.k, in.seq_len, in.kv_heads, in.dim}; }

std::vector<Named> tensors_of(const AttentionCase& in) {
  return {q_of(in),
          k_of(in),
          {"v", in.v, in.seq_len, in.kv_heads, in.value_dim},
          {"dout", in.dout, in.seq_len, in.heads, in.value_dim}};
}

void check_held(const std::string& path, const AttentionCase& input) {
  const auto beyond = [](float x) {
    return std::isfinite(x) && !std::isfinite(static_cast<float>(runtime::BFloat16(x)));
  };
  for (const Named& tensor : tensors_of(input)) {
    const auto found = tensor.first(beyond);
    if (!found) continue;
    fail(ExitCode::data, path, ": ", tensor.at(*found), " is ", tensor.value(*found),
         ", which rounds to infinity in bfloat16; expected at most 3.3895e38, or use --dtype "
         "float32");
  }
}

double norm(std::span<const float> x) {
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(squares);
}

/// Of each row of a head; 0 where an element is not finite, since that shows by itself.
std::vector<double> finite_norms(const Named& tensor, std::int64_t head) {
  std::vector<double> norms;
  const auto rows = std::ssize(tensor.values) / (tensor.heads * tensor.width);
  for (std::int64_t row = 0; row < rows; ++row) {
    const double size = norm(tensor.row(row, head));
    norms.push_back(std::isfinite(size) ? size : 0);
  }
  return norms;
}

/// Norms bound every partial sum of a score, in whatever order and wherever the scale comes in: in
/// a usual case they settle it, and no pair is looked at.
void check_scores(const std::string& path, const AttentionCase& input,
                  const attention::Scoring& scoring) {
  const Named q = q_of(input), k = k_of(input);
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
          const auto a = q.row(row, head), b = k.row(key, kv_head);
          double sum = 0;
          for (std::size_t d = 0; d < a.size(); ++d)
            sum += std::abs(static_cast<double>(a[d]) * static_cast<double>(b[d]));
          if (sum * scale <= kLargest) continue;
          fail(ExitCode::data, path, ": the score of query ", q.at_row(row, head), " and key ",
               k.at_row(key, kv_head), " leaves float32: its products are up to ", sum * scale,
               " together, at scale ", scoring.scale, "; expected at most ", kLargest,
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
  for (const Named& tensor : {Named{"out", result.out, in.seq_len, in.heads, in.value_dim},
                              Named{"dq", result.dq, in.seq_len, in.heads, in.dim},
                              Named{"dk", result.dk, in.seq_len, in.kv_heads, in.dim},
                              Named{"dv", result.dv, in.seq_len, in.kv_heads, in.value_dim}}) {
    if (const auto found = tensor.first(not_finite)) {
      return runtime::concat(tensor.at(*found), " is ", tensor.value(*found));
    }
  }
  const auto lost = lost_row(in, result);
  if (lost) {
    const Named lse{"out", {}, in.seq_len, in.heads, 1};
    return runtime::concat("the LSE of ", lse.at_row(*lost / in.heads, *lost % in.heads),
                           ", which sees keys, is -inf");
  }
  for (std::size_t i = 0; i < result.dsinks.size(); ++i) {
    if (not_finite(result.dsinks[i]))
      return runtime::concat("dsinks[", i, "] is ", shown(result.dsinks[i]));
  }
  return "";
}

}  // namespace

void check_numbers(const std::string& path, const AttentionCase& input, DType dtype,
                   const attention::Scoring& scoring) {
  if (dtype == DType::bfloat16) check_held(path, input);
  if (scoring.weighting == attention::Weighting::softmax && scoring.softcap == 0)
    check_scores(path, input, scoring);
}

std::string check_results(const AttentionCase& input, const AttentionResult& result) {
  const std::string wrong = first_wrong(input, result);
  if (wrong.empty()) return "";
  for (const Named& tensor : tensors_of(input)) {
    if (const auto found = tensor.first(not_finite)) {
      return runtime::concat(wrong, "; in the case, ", tensor.at(*found), " is ",
                             tensor.value(*found));
    }
  }
  fail(
      ExitCode::internal, wrong,
      ", although every number of the case is finite: a sum left float32's range; expected smaller "
      "'v' or 'dout'. Nothing was written");
}

}  // namespace longhaul::launch
