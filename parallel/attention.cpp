#include "parallel/attention.h"

#include <algorithm>
#include <deque>

#include "parallel/executor.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::parallel {
using runtime::ConstTensorView;
using runtime::TensorView;

struct Attention::Impl {
  // Programs of the batches seen lately, by what they are a function of.
  static constexpr std::size_t kCached = 16;

  SchemeOptions scheme;
  std::optional<runtime::DType> wire_dtype;
  std::unique_ptr<runtime::Communicator> context;
  runtime::Stream compute;
  std::vector<Channel> channels{};
  std::optional<attention::HeadMasks> masks{};
  std::optional<Layout> layout{};
  std::map<std::string, std::shared_ptr<const Program>> cache{};
  std::deque<std::string> oldest{};  // its keys, in the order in which they came

  void open_channels() {
    const auto wanted = static_cast<std::size_t>(scheme_from_name(scheme.name).channels);
    while (channels.size() < wanted) {
      const std::string name = runtime::concat(context->name(), ".", channels.size());
      channels.push_back({compute.sibling(name), context->split(0, context->rank(), name)});
    }
  }

  std::string key(Direction direction, const Shapes& shapes) const {
    return runtime::concat(
        scheme.name, " ", scheme.outer, " ", scheme.inner, " ", static_cast<int>(scheme.nesting),
        " ", scheme.around, " ", static_cast<int>(scheme.backward), " ", name(direction), " ",
        shapes.heads, " ", shapes.kv_heads, " ", shapes.dim, " ", shapes.value_dim, " ",
        name(shapes.activation), " ", static_cast<int>(shapes.weighting), " ", masks->digest(), " ",
        layout->digest());
  }

  std::shared_ptr<const Program> program(Direction direction, const Shapes& shapes) {
    LONGHAUL_CHECK(masks && layout, "set_batch() comes before the first attention call");
    const std::string wanted = key(direction, shapes);
    auto found = cache.find(wanted);
    if (found == cache.end()) {
      if (cache.size() >= kCached) {
        cache.erase(oldest.front());
        oldest.pop_front();
      }
      oldest.push_back(wanted);
      const SchemeInputs inputs{*masks, *layout, shapes, direction, wire_dtype, scheme};
      found =
          cache.emplace(wanted, std::make_shared<const Program>(prepare(inputs)(context->rank())))
              .first;
    }
    return found->second;
  }

  std::unique_ptr<Execution> call(Direction direction, const Shapes& shapes,
                                  const attention::Scoring& scoring,
                                  std::initializer_list<ConstTensorView> inputs,
                                  std::initializer_list<TensorView> outputs) {
    const Signature signature = direction == Direction::forward
                                    ? forward_signature(shapes.weighting)
                                    : backward_signature(shapes.weighting);
    return std::make_unique<Execution>(
        program(direction, shapes), signature, scoring, std::span(inputs.begin(), inputs.size()),
        std::span(outputs.begin(), outputs.size()), compute, channels);
  }
};

Attention::Attention(const AttentionOptions& options,
                     std::unique_ptr<runtime::Communicator> context,
                     const runtime::Stream& compute) {
  std::optional<runtime::DType> wire;
  if (options.wire_dtype != runtime::DType::float32) wire = options.wire_dtype;
  impl_ = std::make_unique<Impl>(Impl{options.scheme, wire, std::move(context), compute});
  impl_->open_channels();
}

Attention::~Attention() = default;

void Attention::set_batch(const attention::HeadMasks& masks, const Layout& layout) {
  LONGHAUL_CHECK(masks.tokens() == layout.tokens(), "mask of ", masks.tokens(),
                 " tokens, layout of ", layout.tokens());
  LONGHAUL_CHECK(layout.ranks() == impl_->context->size(), "layout over ", layout.ranks(),
                 " ranks on ", impl_->context->size());
  impl_->masks = masks;
  impl_->layout = layout;
}

void Attention::set_scheme(const SchemeOptions& scheme) {
  impl_->scheme = scheme;
  impl_->open_channels();
}

namespace {
Shapes shapes_of(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                 const attention::Scoring& scoring) {
  LONGHAUL_CHECK(q.dims() == 3 && k.dims() == 3 && v.dims() == 3,
                 "q, k and v are [rows, heads, dim]; got ", q.dims(), ", ", k.dims(), " and ",
                 v.dims(), " dims");
  return {static_cast<int>(q.size(1)),
          static_cast<int>(k.size(1)),
          q.size(2),
          v.size(2),
          q.dtype(),
          scoring.weighting};
}

}  // namespace

std::unique_ptr<Execution> Attention::forward(ConstTensorView q, ConstTensorView k,
                                              ConstTensorView v, const attention::Scoring& scoring,
                                              TensorView out, TensorView lse) {
  return impl_->call(Direction::forward, shapes_of(q, k, v, scoring), scoring, {q, k, v},
                     {out, lse});
}

std::unique_ptr<Execution> Attention::backward(const BackwardInputs& in,
                                               const attention::Scoring& scoring, TensorView dq,
                                               TensorView dk, TensorView dv) {
  const Shapes shapes = shapes_of(in.q, in.k, in.v, scoring);
  if (scoring.weighting == attention::Weighting::sigmoid)
    return impl_->call(Direction::backward, shapes, scoring, {in.q, in.dout, in.k, in.v},
                       {dq, dk, dv});
  return impl_->call(Direction::backward, shapes, scoring,
                     {in.q, in.dout, in.lse, in.delta, in.k, in.v}, {dq, dk, dv});
}

std::int64_t Attention::sent_bytes() const {
  std::int64_t bytes = 0;
  for (const Channel& channel : impl_->channels) bytes += channel.communicator->sent_bytes();
  return bytes;
}

std::map<int, std::int64_t> Attention::sent_to() const {
  std::map<int, std::int64_t> sent;
  for (const Channel& channel : impl_->channels) {
    int peer = 0;
    for (const std::int64_t bytes : channel.communicator->exchanged_bytes()) {
      if (bytes > 0) sent[peer] += bytes;
      ++peer;
    }
  }
  return sent;
}

}  // namespace longhaul::parallel
