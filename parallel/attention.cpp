#include "parallel/attention.h"

#include <bit>
#include <deque>
#include <mutex>

#include "parallel/executor.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::parallel {
using runtime::ConstTensorView;
using runtime::TensorView;

struct AttentionBatch::Impl {
  /// A call of this batch.
  struct Call {
    std::string scheme;
    Direction direction;
    Shapes shapes;
    attention::Scoring scoring;
    std::shared_ptr<const Prepared> prepared;
    std::shared_ptr<const Loaded> loaded = {};  // once it was called
  };

  attention::HeadMasks masks;
  Layout layout;
  std::string digests = runtime::concat(masks.digest(), " ", layout.digest());
  std::mutex mutex{};
  std::vector<Call> calls{};
};

AttentionBatch::AttentionBatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionBatch::~AttentionBatch() = default;
const attention::HeadMasks& AttentionBatch::masks() const { return impl_->masks; }
const Layout& AttentionBatch::layout() const { return impl_->layout; }

struct Attention::Impl {
  /// Prepared calls of the batches seen lately, by what they are a function of; used by any thread.
  class Cache {
   public:
    std::shared_ptr<const Prepared> find(const std::string& key) const {
      std::lock_guard lock(mutex_);
      const auto found = calls_.find(key);
      return found == calls_.end() ? nullptr : found->second;
    }
    void add(const std::string& key, std::shared_ptr<const Prepared> call) {
      std::lock_guard lock(mutex_);
      if (!calls_.emplace(key, std::move(call)).second) return;
      oldest_.push_back(key);
      if (oldest_.size() <= kCached) return;
      calls_.erase(oldest_.front());
      oldest_.pop_front();
    }

   private:
    static constexpr std::size_t kCached = 16;
    mutable std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const Prepared>> calls_;
    std::deque<std::string> oldest_;  // its keys, in the order in which they came
  };
  Impl(const AttentionOptions& options, std::unique_ptr<runtime::Communicator> ranks,
       const runtime::Stream& stream)
      : scheme(options.scheme),
        scheme_text(scheme.text()),
        context(std::move(ranks)),
        compute(stream),
        place(attention::place_of(stream)) {
    place.kernels = options.kernels;
    place.deterministic = options.deterministic;
    if (options.wire_dtype != runtime::DType::float32) wire_dtype = options.wire_dtype;
    open_channels();
  }

  Expression scheme;
  std::string scheme_text;
  std::int64_t unprepared_calls = 0;
  std::optional<runtime::DType> wire_dtype;
  std::unique_ptr<runtime::Communicator> context;
  runtime::Stream compute;
  attention::BlockPlace place;  ///< of its blocks
  std::vector<Channel> channels;
  mutable Cache cache;

  void open_channels() {
    const auto wanted = static_cast<std::size_t>(scheme_from_name(scheme.name).channels);
    while (channels.size() < wanted) {
      const std::string name = runtime::concat(context->name(), ".", channels.size());
      channels.push_back({compute.sibling(name), context->split(0, context->rank(), name)});
    }
  }

  std::shared_ptr<const Prepared> prepare(const AttentionBatch::Impl& batch,
                                          const Expression& under, Direction direction,
                                          const Shapes& shapes,
                                          const attention::Scoring& scoring) const {
    const std::string key = runtime::concat(
        under.text(), " ", name(direction), " ", shapes.heads, " ", shapes.kv_heads, " ",
        shapes.dim, " ", shapes.value_dim, " ", name(shapes.activation), " ",
        static_cast<int>(shapes.weighting), " ", std::bit_cast<std::uint32_t>(scoring.scale), " ",
        std::bit_cast<std::uint32_t>(scoring.softcap), " ",
        std::bit_cast<std::uint32_t>(scoring.bias), " ", batch.digests);
    if (auto found = cache.find(key)) return found;
    const SchemeInputs inputs{batch.masks, batch.layout, shapes, direction, wire_dtype, under};
    const Signature signature = direction == Direction::forward
                                    ? forward_signature(shapes.weighting)
                                    : backward_signature(shapes.weighting);
    auto made = std::make_shared<const Prepared>(parallel::prepare(inputs)(context->rank()),
                                                 signature, scoring, place);
    cache.add(key, made);
    return made;
  }

  /// The batch's call under a scheme, whose text is `text`, prepared; sets `made` where it was not.
  /// With `lock` held on the batch, so that whoever comes second finds it made.
  AttentionBatch::Impl::Call& find(AttentionBatch::Impl& batch, const std::unique_lock<std::mutex>&,
                                   const Expression& under, const std::string& text,
                                   Direction direction, const Shapes& shapes,
                                   const attention::Scoring& scoring, bool& made) const {
    for (auto& call : batch.calls) {
      if (call.direction == direction && call.shapes == shapes && call.scoring == scoring &&
          call.scheme == text)
        return call;
    }
    made = true;
    return batch.calls.emplace_back(AttentionBatch::Impl::Call{
        text, direction, shapes, scoring, prepare(batch, under, direction, shapes, scoring)});
  }

  /// With the batch's lock held.
  void load(AttentionBatch::Impl::Call& call) const {
    if (call.loaded) return;
    call.loaded = std::make_shared<const Loaded>(call.prepared, compute);
    reserve(*call.prepared, compute, channels);
  }

  std::unique_ptr<Execution> call(const AttentionBatch& batch, Direction direction,
                                  const Shapes& shapes, const attention::Scoring& scoring,
                                  std::initializer_list<ConstTensorView> inputs,
                                  std::initializer_list<TensorView> outputs) {
    std::unique_lock lock(batch.impl_->mutex);
    bool late = false;
    auto& found = find(*batch.impl_, lock, scheme, scheme_text, direction, shapes, scoring, late);
    unprepared_calls += late ? 1 : 0;
    load(found);
    return std::make_unique<Execution>(found.loaded, std::span(inputs.begin(), inputs.size()),
                                       std::span(outputs.begin(), outputs.size()), compute,
                                       channels);
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

void Attention::prepare(const AttentionBatch& batch, const Expression& scheme, const Shapes& shapes,
                        const attention::Scoring& scoring) const {
  const std::string text = scheme.text();
  std::unique_lock lock(batch.impl_->mutex);
  bool made = false;
  for (const Direction direction : {Direction::forward, Direction::backward})
    impl_->find(*batch.impl_, lock, scheme, text, direction, shapes, scoring, made);
}

void Attention::load(const AttentionBatch& batch) const {
  std::unique_lock lock(batch.impl_->mutex);
  for (auto& call : batch.impl_->calls) impl_->load(call);
}

std::int64_t Attention::arena_bytes(const AttentionBatch& batch) const {
  std::unique_lock lock(batch.impl_->mutex);
  std::int64_t most = 0;
  for (const auto& call : batch.impl_->calls) most = std::max(most, call.prepared->arena_bytes());
  return most;
}

std::int64_t Attention::unprepared_calls() const { return impl_->unprepared_calls; }

void Attention::set_scheme(const Expression& scheme) {
  impl_->scheme = scheme;
  impl_->scheme_text = scheme.text();
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

std::unique_ptr<Execution> Attention::forward(const AttentionBatch& batch, ConstTensorView q,
                                              ConstTensorView k, ConstTensorView v,
                                              const attention::Scoring& scoring, TensorView out,
                                              TensorView lse) {
  const Shapes shapes = shapes_of(q, k, v, scoring);
  if (scoring.weighting == attention::Weighting::sigmoid)
    return impl_->call(batch, Direction::forward, shapes, scoring, {q, k, v}, {out});
  return impl_->call(batch, Direction::forward, shapes, scoring, {q, k, v}, {out, lse});
}

std::unique_ptr<Execution> Attention::backward(const AttentionBatch& batch,
                                               const BackwardInputs& in,
                                               const attention::Scoring& scoring, TensorView dq,
                                               TensorView dk, TensorView dv) {
  const Shapes shapes = shapes_of(in.q, in.k, in.v, scoring);
  if (scoring.weighting == attention::Weighting::sigmoid)
    return impl_->call(batch, Direction::backward, shapes, scoring, {in.q, in.dout, in.k, in.v},
                       {dq, dk, dv});
  return impl_->call(batch, Direction::backward, shapes, scoring,
                     {in.q, in.dout, in.lse, in.delta, in.k, in.v}, {dq, dk, dv});
}

std::int64_t Attention::peak_staging_bytes() const {
  std::int64_t bytes = 0;
  for (const Channel& channel : impl_->channels) bytes += channel.stream.memory().peak_bytes;
  return bytes;
}

void Attention::reset_peak() const {
  for (const Channel& channel : impl_->channels) channel.stream.reset_peak();
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
