#include "launch/linear_call.h"

#include "attention/normaliser.h"

namespace longhaul::launch {

using attention::Decay;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// States [B,H,D,E] of some sequences, and the runtime's of each, [E,H,D] one behind another.
class States {
 public:
  explicit States(const LinearCase& input)
      : heads_(input.heads), dim_(input.dim), columns_(input.state_columns) {}

  std::int64_t elements() const { return heads_ * dim_ * columns_; }
  std::vector<float> take(const std::vector<float>& all,
                          const std::vector<std::int64_t>& sequences) const {
    std::vector<float> states;
    states.reserve(sequences.size() * static_cast<std::size_t>(elements()));
    for (const std::int64_t sequence : sequences)
      visit(sequence, [&](std::size_t at) { states.push_back(all[at]); });
    return states;
  }
  void put(const std::vector<float>& states, const std::vector<std::int64_t>& sequences,
           std::vector<float>& all) const {
    auto from = states.begin();
    for (const std::int64_t sequence : sequences)
      visit(sequence, [&](std::size_t at) { all[at] = *from++; });
  }

 private:
  /// Where the elements of a sequence's state lie in the file's order, in the runtime's order.
  template <class Visitor>
  void visit(std::int64_t sequence, const Visitor& visitor) const {
    for (std::int64_t column = 0; column < columns_; ++column) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t d = 0; d < dim_; ++d) {
          visitor(static_cast<std::size_t>(((sequence * heads_ + head) * dim_ + d) * columns_ +
                                           column));
        }
      }
    }
  }

  const std::int64_t heads_, dim_, columns_;
};

/// All but the last of the columns.
std::vector<float> without_last(const std::vector<float>& values, std::int64_t columns) {
  std::vector<float> kept;
  for (auto at = values.begin(); at != values.end(); at += columns)
    kept.insert(kept.end(), at, at + columns - 1);
  return kept;
}

}  // namespace

parallel::Shapes LinearSetup::shapes() const {
  parallel::Shapes shapes{static_cast<int>(input.heads), static_cast<int>(input.key_heads),
                          input.dim, input.state_columns, dtype};
  shapes.linear = call;
  return shapes;
}

/// Of the call; those that it has.
struct LinearRankCall::Tensors {
  Tensor q, k, v, dout;
  Tensor log_decay, beta, initial_state, dfinal_state;
  /// What the recurrence reads and gives where the case's passes a feature map or the normaliser.
  Tensor mapped_q, mapped_k, extended_v, extended_out, extended_dout;
  Tensor out, final_state;
  Tensor dq, dk, dv;  // of the recurrence
  Tensor unmapped_dq, unmapped_dk;
  Tensor dlog_decay, dbeta, dinitial_state;
};

LinearRankCall::LinearRankCall(const LinearSetup& setup, const ReplayRank& rank)
    : setup_(setup),
      in_(setup.input),
      compute_(rank.compute),
      upload_(setup.layout, rank.world.rank(), rank.compute),
      ends_(parallel::sequence_ends(setup.layout, rank.world.rank())),
      tensors_(std::make_unique<Tensors>()) {
  Tensors& t = *tensors_;
  const std::int64_t n = upload_.size();
  const Decay decay = setup_.call.recurrence.decay;
  t.q = upload_.upload(in_.q, in_.key_heads, in_.dim, setup_.dtype);
  t.k = upload_.upload(in_.k, in_.key_heads, in_.dim, setup_.dtype);
  t.v = upload_.upload(in_.v, in_.heads, in_.value_dim, setup_.dtype);
  if (decay == Decay::head) {
    t.log_decay = upload_.upload_all(in_.log_decay, {1, in_.heads, 1});
  } else if (decay != Decay::none) {
    const std::int64_t width = decay == Decay::vector ? in_.dim : 1;
    t.log_decay = upload_.upload(in_.log_decay, in_.heads, width, DType::float32);
  }
  if (!in_.beta.empty()) t.beta = upload_.upload(in_.beta, in_.heads, 1, DType::float32);
  if (setup_.call.initial_state)
    t.initial_state = upload_states(in_.initial_state, ends_.beginning);
  if (mapped()) {
    t.mapped_q = upload_.make({n, in_.key_heads, in_.dim}, setup_.dtype);
    t.mapped_k = upload_.make({n, in_.key_heads, in_.dim}, setup_.dtype);
  }
  if (setup_.normalize) {
    t.extended_v = upload_.make({n, in_.heads, in_.state_columns}, setup_.dtype);
    t.extended_out = upload_.make({n, in_.heads, in_.state_columns});
  }
  t.out = upload_.make({n, in_.heads, in_.value_dim});
  if (setup_.call.final_state) t.final_state = make_states(ends_.ending);
  if (in_.backward()) make_backward_tensors();
}

LinearRankCall::~LinearRankCall() = default;

void LinearRankCall::make_backward_tensors() {
  Tensors& t = *tensors_;
  const std::int64_t n = upload_.size();
  const auto zeros = [](const std::vector<float>& given, std::int64_t size) {
    return given.empty() ? std::vector<float>(static_cast<std::size_t>(size)) : given;
  };
  t.dout =
      upload_.upload(zeros(in_.dout, std::ssize(in_.v)), in_.heads, in_.value_dim, setup_.dtype);
  if (setup_.normalize)
    t.extended_dout = upload_.make({n, in_.heads, in_.state_columns}, setup_.dtype);
  if (setup_.call.final_state) {
    t.dfinal_state =
        upload_states(zeros(in_.dfinal_state, in_.batch * States(in_).elements()), ends_.ending);
  }
  t.dq = upload_.make({n, in_.key_heads, in_.dim});
  t.dk = upload_.make({n, in_.key_heads, in_.dim});
  t.dv = upload_.make({n, in_.heads, in_.state_columns});
  if (mapped()) {
    t.unmapped_dq = upload_.make({n, in_.key_heads, in_.dim}, setup_.dtype);
    t.unmapped_dk = upload_.make({n, in_.key_heads, in_.dim}, setup_.dtype);
  }
  if (!in_.log_decay.empty())
    t.dlog_decay = upload_.make({t.log_decay.size(0), in_.heads, t.log_decay.size(2)});
  if (!in_.beta.empty()) t.dbeta = upload_.make({n, in_.heads});
  if (setup_.call.initial_state) t.dinitial_state = make_states(ends_.beginning);
}

Tensor LinearRankCall::upload_states(const std::vector<float>& all,
                                     const std::vector<std::int64_t>& sequences) const {
  return upload_.upload_all(States(in_).take(all, sequences),
                            {std::ssize(sequences) * in_.state_columns, in_.heads, in_.dim});
}

Tensor LinearRankCall::make_states(const std::vector<std::int64_t>& sequences) const {
  return upload_.make({std::ssize(sequences) * in_.state_columns, in_.heads, in_.dim});
}

TensorView LinearRankCall::log_decays(const Tensor& tensor) const {
  if (in_.log_decay.empty() || setup_.call.recurrence.decay == Decay::vector) return tensor;
  return tensor.view().reshape({tensor.size(0), in_.heads});
}

attention::LinearInputs LinearRankCall::inputs() const {
  const Tensors& t = *tensors_;
  TensorView beta = t.beta;
  if (!in_.beta.empty()) beta = beta.reshape({upload_.size(), in_.heads});
  return {mapped() ? t.mapped_q : t.q, mapped() ? t.mapped_k : t.k,
          setup_.normalize ? t.extended_v : t.v, log_decays(t.log_decay), beta};
}

void LinearRankCall::forward(parallel::Attention& attention,
                             const parallel::AttentionBatch& batch) {
  Tensors& t = *tensors_;
  if (mapped()) {
    runtime::ops::feature_map(setup_.map, t.q, t.mapped_q, compute_);
    runtime::ops::feature_map(setup_.map, t.k, t.mapped_k, compute_);
  }
  if (setup_.normalize) attention::append_ones(t.v, t.extended_v, compute_);
  const parallel::LinearForward tensors{.inputs = inputs(),
                                        .initial_state = t.initial_state,
                                        .out = setup_.normalize ? t.extended_out : t.out,
                                        .final_state = t.final_state};
  calls_.push_back(attention.linear_forward(batch, setup_.call, tensors, kept_));
  calls_.back()->finish();
  if (setup_.normalize) attention::normalise(t.extended_out, t.out, compute_);
}

void LinearRankCall::backward(parallel::Attention& attention,
                              const parallel::AttentionBatch& batch) {
  Tensors& t = *tensors_;
  if (setup_.normalize)
    attention::normalise_backward(t.extended_out, t.dout, t.extended_dout, compute_);
  const parallel::LinearBackward tensors{.inputs = inputs(),
                                         .initial_state = t.initial_state,
                                         .dout = setup_.normalize ? t.extended_dout : t.dout,
                                         .dfinal_state = t.dfinal_state,
                                         .dq = t.dq,
                                         .dk = t.dk,
                                         .dv = t.dv,
                                         .dlog_decay = log_decays(t.dlog_decay),
                                         .dbeta = t.dbeta,
                                         .dinitial_state = t.dinitial_state};
  calls_.push_back(attention.linear_backward(batch, setup_.call, tensors, kept_));
  calls_.back()->finish();
  if (mapped()) {
    runtime::ops::feature_map_backward(setup_.map, t.q, t.dq, t.unmapped_dq, compute_);
    runtime::ops::feature_map_backward(setup_.map, t.k, t.dk, t.unmapped_dk, compute_);
  }
}

std::vector<float> LinearRankCall::gather_states(
    runtime::Communicator& world, const Tensor& mine,
    std::vector<std::int64_t> parallel::SequenceEnds::*which, const Stream& host) const {
  const States states(in_);
  std::vector<parallel::SequenceEnds> ends;
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < world.size(); ++rank) {
    ends.push_back(parallel::sequence_ends(setup_.layout, rank));
    counts.push_back(std::ssize(ends.back().*which) * states.elements());
  }
  const auto parts = gather_parts(world, upload_.download(mine), counts, host);
  std::vector<float> all;
  if (parts.empty()) return all;
  all.resize(static_cast<std::size_t>(in_.batch * states.elements()));
  for (std::size_t rank = 0; rank < parts.size(); ++rank)
    states.put(parts[rank], ends[rank].*which, all);
  return all;
}

LinearResult LinearRankCall::gather(runtime::Communicator& world) const {
  const Tensors& t = *tensors_;
  const Stream host = Stream::cpu("results");
  const auto rows = [&](const Tensor& tensor, std::int64_t row_elements) {
    return gather_rows(world, setup_.layout, upload_.download(tensor), row_elements, host);
  };
  const std::int64_t keys = in_.key_heads * in_.dim;
  LinearResult result;
  result.out = rows(t.out, in_.heads * in_.value_dim);
  if (setup_.call.final_state) {
    result.final_state = gather_states(world, t.final_state, &parallel::SequenceEnds::ending, host);
  }
  if (!in_.backward()) return result;
  result.dq = rows(mapped() ? t.unmapped_dq : t.dq, keys);
  result.dk = rows(mapped() ? t.unmapped_dk : t.dk, keys);
  result.dv = rows(t.dv, in_.heads * in_.state_columns);
  if (setup_.normalize) result.dv = without_last(result.dv, in_.state_columns);
  if (setup_.call.slopes_gradient) {  // each rank saw its own rows
    result.dlog_decay = gather_sums(world, upload_.download(t.dlog_decay), host);
  } else if (!in_.log_decay.empty()) {
    result.dlog_decay = rows(t.dlog_decay, in_.heads * t.dlog_decay.size(2));
  }
  if (!in_.beta.empty()) result.dbeta = rows(t.dbeta, in_.heads);
  if (setup_.call.initial_state) {
    result.dinitial_state =
        gather_states(world, t.dinitial_state, &parallel::SequenceEnds::beginning, host);
  }
  return result;
}

}  // namespace longhaul::launch
