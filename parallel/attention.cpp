#include "parallel/attention.h"

#include <map>
#include <tuple>

#include "parallel/executor.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::ConstTensorView;
using runtime::TensorView;

class ProgramCall final : public AttentionCall {
 public:
  explicit ProgramCall(Execution execution) : execution_(std::move(execution)) {}
  void start() override { execution_.start(); }
  void advance() override { execution_.advance(); }
  void finish() override { execution_.finish(); }

 private:
  Execution execution_;
};

/// A binding's views are mutable by type; the executor never writes to an input slot, and the
/// verifier proves it.
TensorView unconst(ConstTensorView view) {
  TensorView mutable_view;
  runtime::Sizes sizes{}, strides{};
  for (int dim = 0; dim < view.dims(); ++dim) {
    sizes[static_cast<std::size_t>(dim)] = view.size(dim);
    strides[static_cast<std::size_t>(dim)] = view.stride(dim);
  }
  mutable_view.assign(const_cast<std::byte*>(view.data()), view.dtype(), view.device(), view.dims(),
                      sizes, strides);
  return mutable_view;
}

}  // namespace

struct Attention::Impl {
  // Programs of the batches seen lately, by what they are a function of.
  using Key = std::tuple<std::uint64_t, std::uint64_t, int, int, Direction>;
  static constexpr std::size_t kCached = 16;

  const Scheme& scheme;
  std::optional<runtime::DType> wire_dtype;
  runtime::Stream compute;
  int rank, ranks;
  std::vector<Channel> channels;
  std::optional<attention::Mask> mask;
  std::optional<Layout> layout;
  std::map<Key, std::shared_ptr<const Program>> cache;

  std::shared_ptr<const Program> program(Direction direction, const Shapes& shapes) {
    LONGHAUL_CHECK(mask && layout, "set_batch() comes before the first attention call");
    const Key key{mask->digest(), layout->digest(), shapes.heads, shapes.kv_heads, direction};
    auto found = cache.find(key);
    if (found == cache.end()) {
      if (cache.size() >= kCached) cache.clear();
      const SchemeInputs inputs{*mask, *layout, shapes, direction, wire_dtype};
      found =
          cache.emplace(key, std::make_shared<const Program>(scheme.prepare(inputs)(rank))).first;
    }
    return found->second;
  }

  std::unique_ptr<AttentionCall> call(Direction direction, const Shapes& shapes, float scale,
                                      std::vector<Binding> bindings) {
    return std::make_unique<ProgramCall>(Execution(program(direction, shapes), shapes, scale,
                                                   std::move(bindings), compute, channels));
  }
};

Attention::Attention(const AttentionOptions& options,
                     std::unique_ptr<runtime::Communicator> context,
                     const runtime::Stream& compute) {
  const Scheme& scheme = scheme_from_name(options.scheme);
  std::optional<runtime::DType> wire;
  if (options.wire_dtype != runtime::DType::float32) wire = options.wire_dtype;
  const int rank = context->rank(), ranks = context->size();
  std::vector<Channel> channels;
  for (int channel = 0; channel < scheme.channels; ++channel) {
    const std::string channel_name = runtime::concat(context->name(), ".", channel);
    channels.push_back({compute.sibling(channel_name), context->split(0, rank, channel_name)});
  }
  impl_ = std::make_unique<Impl>(
      Impl{scheme, wire, compute, rank, ranks, std::move(channels), {}, {}, {}});
}

Attention::~Attention() = default;

void Attention::set_batch(const attention::Mask& mask, const Layout& layout) {
  LONGHAUL_CHECK(mask.tokens() == layout.tokens(), "mask of ", mask.tokens(), " tokens, layout of ",
                 layout.tokens());
  LONGHAUL_CHECK(layout.ranks() == impl_->ranks, "layout over ", layout.ranks(), " ranks on ",
                 impl_->ranks);
  impl_->mask = mask;
  impl_->layout = layout;
}

namespace {
Shapes shapes_of(ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  LONGHAUL_CHECK(q.dims() == 3 && k.dims() == 3 && v.dims() == 3,
                 "q, k and v are [rows, heads, dim]; got ", q.dims(), ", ", k.dims(), " and ",
                 v.dims(), " dims");
  return {static_cast<int>(q.size(1)), static_cast<int>(k.size(1)), q.size(2), v.size(2),
          q.dtype()};
}
}  // namespace

std::unique_ptr<AttentionCall> Attention::forward(ConstTensorView q, ConstTensorView k,
                                                  ConstTensorView v, float scale, TensorView out,
                                                  TensorView lse) {
  return impl_->call(Direction::forward, shapes_of(q, k, v), scale,
                     {{"q", {unconst(q)}}, {"kv", {unconst(k), unconst(v)}}, {"out", {out, lse}}});
}

std::unique_ptr<AttentionCall> Attention::backward(const BackwardInputs& in, float scale,
                                                   TensorView dq, TensorView dk, TensorView dv) {
  return impl_->call(
      Direction::backward, shapes_of(in.q, in.k, in.v), scale,
      {{"q_bundle", {unconst(in.q), unconst(in.dout), unconst(in.lse), unconst(in.delta)}},
       {"kv", {unconst(in.k), unconst(in.v)}},
       {"dq", {dq}},
       {"dkv", {dk, dv}}});
}

std::int64_t Attention::sent_bytes() const {
  std::int64_t bytes = 0;
  for (const Channel& channel : impl_->channels) bytes += channel.communicator->sent_bytes();
  return bytes;
}

}  // namespace longhaul::parallel
