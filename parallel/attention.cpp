#include "parallel/attention.h"

#include <algorithm>
#include <deque>
#include <mutex>

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

struct AttentionBatch::Impl {
  attention::HeadMasks masks;
  Layout layout;
  std::string digests = runtime::concat(masks.digest(), " ", layout.digest());
  std::mutex mutex{};
  std::map<std::string, std::shared_ptr<const Program>> programs{};  // by scheme, direction, shapes
};

AttentionBatch::AttentionBatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionBatch::~AttentionBatch() = default;
const attention::HeadMasks& AttentionBatch::masks() const { return impl_->masks; }
const Layout& AttentionBatch::layout() const { return impl_->layout; }

struct Attention::Impl {
  /// Programs of the batches seen lately, by what they are a function of; used by any thread.
  class Cache {
   public:
    std::shared_ptr<const Program> find(const std::string& key) const {
      std::lock_guard lock(mutex_);
      const auto found = programs_.find(key);
      return found == programs_.end() ? nullptr : found->second;
    }
    void add(const std::string& key, std::shared_ptr<const Program> program) {
      std::lock_guard lock(mutex_);
      if (!programs_.emplace(key, std::move(program)).second) return;
      oldest_.push_back(key);
      if (oldest_.size() <= kCached) return;
      programs_.erase(oldest_.front());
      oldest_.pop_front();
    }

   private:
    static constexpr std::size_t kCached = 16;
    mutable std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const Program>> programs_;
    std::deque<std::string> oldest_;  // its keys, in the order in which they came
  };

  Impl(const AttentionOptions& options, std::unique_ptr<runtime::Communicator> ranks,
       const runtime::Stream& stream)
      : scheme(options.scheme), context(std::move(ranks)), compute(stream) {
    if (options.wire_dtype != runtime::DType::float32) wire_dtype = options.wire_dtype;
    open_channels();
  }

  Expression scheme;
  std::optional<runtime::DType> wire_dtype;
  std::unique_ptr<runtime::Communicator> context;
  runtime::Stream compute;
  std::vector<Channel> channels;
  Cache cache;

  void open_channels() {
    const auto wanted = static_cast<std::size_t>(scheme_from_name(scheme.name).channels);
    while (channels.size() < wanted) {
      const std::string name = runtime::concat(context->name(), ".", channels.size());
      channels.push_back({compute.sibling(name), context->split(0, context->rank(), name)});
    }
  }

  std::shared_ptr<const Program> program(AttentionBatch::Impl& batch, Direction direction,
                                         const Shapes& shapes) {
    const std::string kind =
        runtime::concat(scheme.text(), " ", name(direction), " ", shapes.heads, " ",
                        shapes.kv_heads, " ", shapes.dim, " ", shapes.value_dim, " ",
                        name(shapes.activation), " ", static_cast<int>(shapes.weighting));
    std::lock_guard lock(batch.mutex);  // whoever comes second finds the program made
    std::shared_ptr<const Program>& program = batch.programs[kind];
    if (program) return program;
    const std::string key = kind + " " + batch.digests;
    program = cache.find(key);
    if (program) return program;
    const SchemeInputs inputs{batch.masks, batch.layout, shapes, direction, wire_dtype, scheme};
    program = std::make_shared<const Program>(prepare(inputs)(context->rank()));
    cache.add(key, program);
    return program;
  }

  std::unique_ptr<AttentionCall> call(const AttentionBatch& batch, Direction direction,
                                      const Shapes& shapes, const attention::Scoring& scoring,
                                      std::vector<Binding> bindings) {
    // Schemes that send keys and values apart have a slot for each.
    const Binding& kv = *std::ranges::find(bindings, "kv", &Binding::slot);
    const auto k = kv.fields[0], v = kv.fields[1];
    bindings.push_back({"k", {k}});
    bindings.push_back({"v", {v}});
    return std::make_unique<ProgramCall>(Execution(program(*batch.impl_, direction, shapes), shapes,
                                                   scoring, std::move(bindings), compute,
                                                   channels));
  }
};

Attention::Attention(const AttentionOptions& options,
                     std::unique_ptr<runtime::Communicator> context, const runtime::Stream& compute)
    : impl_(std::make_unique<Impl>(options, std::move(context), compute)) {}

Attention::~Attention() = default;

std::shared_ptr<const AttentionBatch> Attention::batch(attention::HeadMasks masks,
                                                       Layout layout) const {
  LONGHAUL_CHECK(masks.tokens() == layout.tokens(), "mask of ", masks.tokens(),
                 " tokens, layout of ", layout.tokens());
  LONGHAUL_CHECK(layout.ranks() == impl_->context->size(), "layout over ", layout.ranks(),
                 " ranks on ", impl_->context->size());
  return std::shared_ptr<const AttentionBatch>(new AttentionBatch(
      std::make_unique<AttentionBatch::Impl>(std::move(masks), std::move(layout))));
}

void Attention::set_scheme(const Expression& scheme) {
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

/// `rest` after the fields that every weighting has.
std::vector<TensorView> with_softmax(std::vector<TensorView> common, std::vector<TensorView> rest,
                                     const attention::Scoring& scoring) {
  if (scoring.weighting == attention::Weighting::softmax)
    common.insert(common.end(), rest.begin(), rest.end());
  return common;
}
}  // namespace

std::unique_ptr<AttentionCall> Attention::forward(const AttentionBatch& batch, ConstTensorView q,
                                                  ConstTensorView k, ConstTensorView v,
                                                  const attention::Scoring& scoring, TensorView out,
                                                  TensorView lse) {
  return impl_->call(batch, Direction::forward, shapes_of(q, k, v, scoring), scoring,
                     {{"q", {unconst(q)}},
                      {"kv", {unconst(k), unconst(v)}},
                      {"out", with_softmax({out}, {lse}, scoring)}});
}

std::unique_ptr<AttentionCall> Attention::backward(const AttentionBatch& batch,
                                                   const BackwardInputs& in,
                                                   const attention::Scoring& scoring, TensorView dq,
                                                   TensorView dk, TensorView dv) {
  return impl_->call(batch, Direction::backward, shapes_of(in.q, in.k, in.v, scoring), scoring,
                     {{"q_bundle", with_softmax({unconst(in.q), unconst(in.dout)},
                                                {unconst(in.lse), unconst(in.delta)}, scoring)},
                      {"kv", {unconst(in.k), unconst(in.v)}},
                      {"dq", {dq}},
                      {"dkv", {dk, dv}}});
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
