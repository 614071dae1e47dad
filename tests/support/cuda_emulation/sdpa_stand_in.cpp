// In cuDNN's place where kernels run on the host: attention by the contract of attention/sdpa.h,
// pair by pair. Rounds as measured: out and gradients to bfloat16, and each query head's part of dk
// and dv before they are summed.

#include <cmath>
#include <cstring>
#include <vector>

#include "attention/sdpa.h"
#include "runtime/dtype.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

using runtime::BFloat16;

float rounded(double value) { return static_cast<float>(BFloat16(static_cast<float>(value))); }

/// One entry's tensor: [row, head, element].
struct Rows {
  const BFloat16* at;
  std::int64_t row_stride, dim;
  float get(std::int64_t row, std::int64_t head, std::int64_t d) const {
    return static_cast<float>(at[row * row_stride + head * dim + d]);
  }
  void set(std::int64_t row, std::int64_t head, std::int64_t d, double value) const {
    const_cast<BFloat16*>(at)[row * row_stride + head * dim + d] =
        BFloat16(static_cast<float>(value));
  }
};

class Entry {
 public:
  Entry(const SdpaForm& form, const SdpaOperands& o, std::int64_t number) : f_(form) {
    const auto n = static_cast<std::size_t>(number);
    LONGHAUL_CHECK(!f_.ragged || f_.pass == Pass::forward ||
                       (f_.q_row_heads == f_.heads && f_.kv_row_heads == f_.kv_heads),
                   "wider rows in ", to_string(f_));
    q_rows_ = f_.ragged ? o.q_lengths[n] : f_.q_rows;
    k_rows_ = f_.ragged ? o.k_lengths[n] : f_.k_rows;
    LONGHAUL_CHECK(q_rows_ <= f_.q_rows && k_rows_ <= f_.k_rows, "an entry of ", q_rows_, " x ",
                   k_rows_, " rows in ", to_string(f_));
    const auto rows = [&](const std::byte* base, const std::int64_t* offsets, std::int64_t step,
                          std::int64_t row_heads, std::int64_t dim) -> Rows {
      const std::int64_t stride = row_heads * dim;
      return {reinterpret_cast<const BFloat16*>(base) +
                  (f_.ragged ? offsets[n] : number * step * stride),
              stride, dim};
    };
    q_ = rows(o.q, o.q_offsets, f_.q_step, f_.q_row_heads, f_.dim);
    k_ = rows(o.k, o.k_offsets, f_.k_step, f_.kv_row_heads, f_.dim);
    v_ = rows(o.v, o.v_offsets, f_.k_step, f_.kv_row_heads, f_.value_dim);
    out_ = rows(o.out, o.out_offsets, f_.q_step, f_.heads, f_.value_dim);
    const bool backward = f_.pass == Pass::backward;
    if (f_.ragged) {
      lse_ = o.lse + o.lse_offsets[n];
    } else {
      lse_ = o.lse + number * (backward ? f_.q_rows : f_.q_step) * f_.heads;
    }
    by_head_ = backward && !f_.ragged;
    if (!backward) return;
    dout_ = rows(o.dout, o.dout_offsets, f_.q_step, f_.q_row_heads, f_.value_dim);
    dq_ = rows(o.dq, o.dq_offsets, f_.q_step, f_.heads, f_.dim);
    dk_ = rows(o.dk, o.dk_offsets, f_.k_step, f_.kv_heads, f_.dim);
    dv_ = rows(o.dv, o.dv_offsets, f_.k_step, f_.kv_heads, f_.value_dim);
  }

  void forward() const {
    std::vector<double> out(static_cast<std::size_t>(f_.value_dim));
    for (std::int64_t head = 0; head < f_.heads; ++head) {
      for (std::int64_t i = 0; i < q_rows_; ++i) {
        double largest = -INFINITY, sum = 0;
        for (std::int64_t j = 0; j < k_rows_; ++j)
          if (visible(i, j)) largest = std::max(largest, score(i, j, head));
        std::fill(out.begin(), out.end(), 0);
        for (std::int64_t j = 0; j < k_rows_; ++j) {
          if (!visible(i, j)) continue;
          const double weight = std::exp(score(i, j, head) - largest);
          sum += weight;
          for (std::int64_t d = 0; d < f_.value_dim; ++d)
            out[static_cast<std::size_t>(d)] += weight * v_.get(j, kv(head), d);
        }
        for (std::int64_t d = 0; d < f_.value_dim; ++d)
          out_.set(i, head, d, sum > 0 ? out[static_cast<std::size_t>(d)] / sum : 0);
        lse(i, head) = static_cast<float>(largest + std::log(sum));
        if (sum == 0) lse(i, head) = -INFINITY;
      }
    }
  }

  void backward() const {
    const auto size = [](std::int64_t a, std::int64_t b) {
      return static_cast<std::size_t>(a * b);
    };
    std::vector<double> dk_sum(size(k_rows_, f_.kv_heads * f_.dim)),
        dv_sum(size(k_rows_, f_.kv_heads * f_.value_dim));
    for (std::int64_t head = 0; head < f_.heads; ++head) {
      std::vector<double> dk(size(k_rows_, f_.dim)), dv(size(k_rows_, f_.value_dim));
      for (std::int64_t i = 0; i < q_rows_; ++i) {
        std::vector<double> dq(size(1, f_.dim));
        double delta = 0;
        for (std::int64_t d = 0; d < f_.value_dim; ++d)
          delta += static_cast<double>(dout_.get(i, head, d)) * out_.get(i, head, d);
        for (std::int64_t j = 0; j < k_rows_; ++j) {
          if (!visible(i, j)) continue;
          const double p = std::exp(score(i, j, head) - static_cast<double>(lse(i, head)));
          double dp = 0;
          for (std::int64_t d = 0; d < f_.value_dim; ++d) {
            const double g = dout_.get(i, head, d);
            dp += g * v_.get(j, kv(head), d);
            dv[size(j, f_.value_dim) + static_cast<std::size_t>(d)] += p * g;
          }
          const double ds = p * (dp - delta) * static_cast<double>(f_.scale);
          for (std::int64_t d = 0; d < f_.dim; ++d) {
            dq[static_cast<std::size_t>(d)] += ds * k_.get(j, kv(head), d);
            dk[size(j, f_.dim) + static_cast<std::size_t>(d)] += ds * q_.get(i, head, d);
          }
        }
        for (std::int64_t d = 0; d < f_.dim; ++d)
          dq_.set(i, head, d, dq[static_cast<std::size_t>(d)]);
      }
      add(dk, f_.dim, head, dk_sum);
      add(dv, f_.value_dim, head, dv_sum);
    }
    store(dk_sum, f_.dim, dk_);
    store(dv_sum, f_.value_dim, dv_);
  }

 private:
  bool visible(std::int64_t i, std::int64_t j) const {
    if (f_.mask.diagonal == Diagonal::none) return true;
    const std::int64_t across =
        j - i - (f_.mask.diagonal == Diagonal::bottom_right ? k_rows_ - q_rows_ : 0);
    return (f_.mask.left < 0 || across > -f_.mask.left) &&
           (f_.mask.right < 0 || across <= f_.mask.right);
  }
  std::int64_t kv(std::int64_t head) const { return head / (f_.heads / f_.kv_heads); }
  double score(std::int64_t i, std::int64_t j, std::int64_t head) const {
    double sum = 0;
    for (std::int64_t d = 0; d < f_.dim; ++d)
      sum += static_cast<double>(q_.get(i, head, d)) * k_.get(j, kv(head), d);
    return sum * static_cast<double>(f_.scale);
  }
  float& lse(std::int64_t row, std::int64_t head) const {
    return lse_[by_head_ ? head * f_.q_rows + row : row * f_.heads + head];
  }
  void add(const std::vector<double>& of_head, std::int64_t dim, std::int64_t head,
           std::vector<double>& sum) const {
    for (std::int64_t j = 0; j < k_rows_; ++j) {
      for (std::int64_t d = 0; d < dim; ++d) {
        sum[static_cast<std::size_t>((j * f_.kv_heads + kv(head)) * dim + d)] +=
            rounded(of_head[static_cast<std::size_t>(j * dim + d)]);
      }
    }
  }
  void store(const std::vector<double>& sum, std::int64_t dim, const Rows& to) const {
    for (std::int64_t j = 0; j < k_rows_; ++j) {
      for (std::int64_t head = 0; head < f_.kv_heads; ++head) {
        for (std::int64_t d = 0; d < dim; ++d) {
          to.set(j, head, d, sum[static_cast<std::size_t>((j * f_.kv_heads + head) * dim + d)]);
        }
      }
    }
  }

  const SdpaForm& f_;
  std::int64_t q_rows_, k_rows_;
  Rows q_{}, k_{}, v_{}, out_{}, dout_{}, dq_{}, dk_{}, dv_{};
  float* lse_;
  bool by_head_;
};

class StandIn final : public Sdpa {
 public:
  explicit StandIn(const SdpaForm& form) : form_(form) {}
  std::int64_t workspace_bytes() const override { return kWorkspaceBytes; }
  void run(const SdpaOperands& operands, const runtime::Stream& stream) const override {
    stream.cpu_task([form = form_, operands] {
      std::memset(operands.workspace, 0xff, kWorkspaceBytes);  // NaN, for whoever lies there
      for (std::int64_t number = 0; number < form.batch; ++number) {
        const Entry entry(form, operands, number);
        form.pass == Pass::forward ? entry.forward() : entry.backward();
      }
    });
  }

 private:
  static constexpr std::int64_t kWorkspaceBytes = 1000;
  const SdpaForm form_;
};

}  // namespace

std::shared_ptr<const Sdpa> sdpa(const SdpaForm& form, runtime::Device) {
  return std::make_shared<const StandIn>(form);
}
std::string no_sdpa_reason() { return {}; }

}  // namespace longhaul::attention::detail
