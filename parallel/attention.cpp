#include "parallel/attention.h"

#include <bit>
#include <deque>
#include <mutex>

#include "parallel/executor.h"
#include "parallel/halo.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::parallel {
using runtime::ConstTensorView;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// What a call is, apart from its batch and direction: the scheme that spreads it and its sizes, or
/// a halo.
struct CallKind {
  const Expression* scheme = nullptr;
  std::string_view scheme_text = "halo";
  Shapes shapes = {};
  attention::Scoring scoring = {};
  HaloShape halo = {};
};

/// One word for each that differs.
std::string text_of(const AttentionServers& servers) {
  std::string text =
      runtime::concat(name(servers.mode), " ", servers.count, " ", servers.buffer_bytes);
  for (const std::int64_t speed : servers.speeds) text += " " + std::to_string(speed);
  return text;
}

}  // namespace

struct AttentionBatch::Impl {
  /// A call of this batch.
  struct Call {
    std::string scheme;
    Direction direction;
    Shapes shapes;
    attention::Scoring scoring;
    HaloShape halo;
    std::shared_ptr<const Prepared> prepared;
    std::shared_ptr<const Loaded> loaded = {};  // once it was called
    bool is(const CallKind& kind, Direction way) const {
      return direction == way && shapes == kind.shapes && scoring == kind.scoring &&
             halo == kind.halo && scheme == kind.scheme_text;
    }
  };

  attention::HeadMasks masks;
  Layout layout;
  AttentionServers servers{};
  std::string digests =
      runtime::concat(masks.digest(), " ", layout.digest(), " ", text_of(servers));
  std::mutex mutex{};
  std::vector<Call> calls{};
  std::vector<std::int64_t> documents{};  // once a convolution asked
  std::map<std::pair<int, std::int64_t>, std::shared_ptr<const attention::ConvRows>> conv_rows{};

  /// With the lock held.
  const std::vector<std::int64_t>& documents_of_masks() {
    if (documents.empty()) documents = attention::independent_parts(masks);
    return documents;
  }
};

AttentionBatch::AttentionBatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionBatch::~AttentionBatch() = default;
const attention::HeadMasks& AttentionBatch::masks() const { return impl_->masks; }
const Layout& AttentionBatch::layout() const { return impl_->layout; }
const AttentionServers& AttentionBatch::servers() const { return impl_->servers; }

std::uint64_t AttentionBatch::task_digest() const {
  std::lock_guard lock(impl_->mutex);
  std::uint64_t digest = 0;
  for (const auto& call : impl_->calls) {
    const std::uint64_t own = call.prepared->program().task_digest;
    if (own != 0) digest = digest * 0x9E3779B97F4A7C15 + own;
  }
  return digest;
}

std::shared_ptr<const attention::ConvRows> AttentionBatch::conv_rows(int rank,
                                                                     std::int64_t width) const {
  std::lock_guard lock(impl_->mutex);
  auto& rows = impl_->conv_rows[{rank, width}];
  if (!rows) {
    rows = std::make_shared<const attention::ConvRows>(
        attention::conv_rows(impl_->layout.runs(rank), impl_->documents_of_masks(), width));
  }
  return rows;
}

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
        linear_scheme(options.linear_scheme),
        linear_text(linear_scheme.text()),
        context(std::move(ranks)),
        compute(stream),
        transport(options.transport),
        place(attention::place_of(stream)) {
    place.kernels = options.kernels;
    place.deterministic = options.deterministic;
    place.pretence = options.pretence;
    lends = options.lend && context->lends() && !place.pretence && in_host_memory(place);
    if (options.wire_dtype != runtime::DType::float32) wire_dtype = options.wire_dtype;
    open_channels();
  }

  Expression scheme;
  std::string scheme_text;
  Expression linear_scheme;
  std::string linear_text;
  std::int64_t unprepared_calls = 0;
  std::optional<runtime::DType> wire_dtype;
  std::unique_ptr<runtime::Communicator> context;
  runtime::Stream compute;
  std::shared_ptr<TaskTransport> transport;
  attention::BlockPlace place;  ///< of its blocks
  bool lends = false;
  std::vector<Channel> channels;
  mutable Cache cache;
  mutable runtime::WorkClock clock;

  void open_channels() {
    const int most = std::max(scheme_from_name(scheme.name).channels,
                              scheme_from_name(linear_scheme.name).channels);
    const auto wanted = static_cast<std::size_t>(most);
    while (channels.size() < wanted) {
      const std::string name = runtime::concat(context->name(), ".", channels.size());
      channels.push_back({compute.sibling(name), context->split(0, context->rank(), name)});
    }
  }

  /// With the batch's lock held.
  std::shared_ptr<const Prepared> prepare(AttentionBatch::Impl& batch, const CallKind& kind,
                                          Direction direction) const {
    const attention::Scoring& scoring = kind.scoring;
    const HaloShape& halo = kind.halo;
    const std::string key =
        runtime::concat(kind.scheme_text, " ", name(direction), " ", parallel::key(kind.shapes),
                        " ", std::bit_cast<std::uint32_t>(scoring.scale), " ",
                        std::bit_cast<std::uint32_t>(scoring.softcap), " ",
                        std::bit_cast<std::uint32_t>(scoring.bias), " ", halo.width, " ",
                        halo.channels, " ", name(halo.activation), " ", batch.digests);
    if (auto found = cache.find(key)) return found;
    const int rank = context->rank();
    Program program;
    Signature signature = halo_signature();
    if (kind.scheme == nullptr) {
      const HaloInputs inputs{batch.layout,    batch.documents_of_masks(),
                              halo.width,      halo.channels,
                              halo.activation, direction};
      program = parallel::prepare_halo(inputs)(rank);
    } else {
      const SchemeInputs inputs{batch.masks, batch.layout, kind.shapes,   direction,
                                wire_dtype,  *kind.scheme, batch.servers, lends};
      program = parallel::prepare(inputs)(rank);
      signature = parallel::signature(kind.shapes, direction);
    }
    auto made =
        std::make_shared<const Prepared>(std::move(program), signature, scoring, place, transport);
    cache.add(key, made);
    return made;
  }

  /// The batch's call, prepared; sets `made` where it was not. With `lock` held on the batch, so
  /// that whoever comes second finds it made.
  AttentionBatch::Impl::Call& find(AttentionBatch::Impl& batch, const std::unique_lock<std::mutex>&,
                                   const CallKind& kind, Direction direction, bool& made) const {
    for (auto& call : batch.calls) {
      if (call.is(kind, direction)) return call;
    }
    made = true;
    return batch.calls.emplace_back(
        AttentionBatch::Impl::Call{std::string(kind.scheme_text), direction, kind.shapes,
                                   kind.scoring, kind.halo, prepare(batch, kind, direction)});
  }

  /// With the batch's lock held.
  void load(AttentionBatch::Impl::Call& call) const {
    if (call.loaded) return;
    call.loaded = std::make_shared<const Loaded>(call.prepared, compute);
    reserve(*call.prepared, compute, channels);
  }

  /// The call, ready to be bound.
  std::shared_ptr<const Loaded> loaded(const AttentionBatch& batch, const CallKind& kind,
                                       Direction direction) {
    std::unique_lock lock(batch.impl_->mutex);
    bool late = false;
    auto& found = find(*batch.impl_, lock, kind, direction, late);
    unprepared_calls += late ? 1 : 0;
    load(found);
    return found.loaded;
  }

  std::unique_ptr<Execution> bind(std::shared_ptr<const Loaded> call,
                                  std::initializer_list<ConstTensorView> inputs,
                                  std::initializer_list<TensorView> outputs,
                                  std::byte* saved = nullptr) const {
    return std::make_unique<Execution>(std::move(call), std::span(inputs.begin(), inputs.size()),
                                       std::span(outputs.begin(), outputs.size()), compute,
                                       channels, saved, &clock);
  }

  /// Memory for what a call saves; nullptr where that is nothing.
  std::byte* keep(const Prepared& call, AttentionKept* kept) const {
    const std::int64_t bytes = call.saved_bytes();
    if (kept != nullptr) kept->saved = {};
    if (bytes == 0) return nullptr;
    LONGHAUL_CHECK(kept != nullptr, "scheme ", scheme_text, " saves ", bytes,
                   " bytes for backward; the call has no place for them");
    kept->saved = Tensor({bytes}, runtime::DType::uint8, compute);
    return static_cast<std::byte*>(kept->saved.view().data());
  }

  CallKind softmax(const Shapes& shapes, const attention::Scoring& scoring) const {
    return {&scheme, scheme_text, shapes, scoring, {}};
  }
  CallKind linear(const attention::LinearInputs& inputs, const LinearCall& call) const {
    const auto &q = inputs.q, &v = inputs.v;
    LONGHAUL_CHECK(q.dims() == 3 && v.dims() == 3, "q and v are [rows, heads, dim]; got ", q.dims(),
                   " and ", v.dims(), " dims");
    Shapes shapes{static_cast<int>(v.size(1)), static_cast<int>(q.size(1)), q.size(2), v.size(2),
                  q.dtype()};
    shapes.linear = call;
    return {&linear_scheme, linear_text, shapes, {}, {}};
  }
  static CallKind halo(const HaloShape& shape) { return {.halo = shape}; }
};

Attention::Attention(const AttentionOptions& options,
                     std::unique_ptr<runtime::Communicator> context, const runtime::Stream& compute)
    : impl_(std::make_unique<Impl>(options, std::move(context), compute)) {}

Attention::~Attention() = default;
int Attention::rank() const { return impl_->context->rank(); }

std::shared_ptr<const AttentionBatch> Attention::batch(attention::HeadMasks masks, Layout layout,
                                                       AttentionServers servers) const {
  LONGHAUL_CHECK(masks.tokens() == layout.tokens(), "mask of ", masks.tokens(),
                 " tokens, layout of ", layout.tokens());
  LONGHAUL_CHECK(layout.ranks() == impl_->context->size(), "layout over ", layout.ranks(),
                 " ranks on ", impl_->context->size());
  return std::shared_ptr<const AttentionBatch>(
      new AttentionBatch(std::make_unique<AttentionBatch::Impl>(std::move(masks), std::move(layout),
                                                                std::move(servers))));
}

void Attention::prepare(const AttentionBatch& batch, const Expression& scheme, const Shapes& shapes,
                        const attention::Scoring& scoring) const {
  const std::string text = shapes.linear ? impl_->linear_text : scheme.text();
  const CallKind kind{shapes.linear ? &impl_->linear_scheme : &scheme, text, shapes, scoring, {}};
  std::unique_lock lock(batch.impl_->mutex);
  bool made = false;
  for (const Direction direction : {Direction::forward, Direction::backward})
    impl_->find(*batch.impl_, lock, kind, direction, made);
}

void Attention::prepare_again(const AttentionBatch& batch, Shapes shapes) const {
  shapes.linear->states_given = true;
  const CallKind kind{&impl_->linear_scheme, impl_->linear_text, shapes, {}, {}};
  std::unique_lock lock(batch.impl_->mutex);
  bool made = false;
  impl_->find(*batch.impl_, lock, kind, Direction::forward, made);
}

void Attention::prepare_halo(const AttentionBatch& batch, const HaloShape& shape) const {
  std::unique_lock lock(batch.impl_->mutex);
  bool made = false;
  for (const Direction direction : {Direction::forward, Direction::backward})
    impl_->find(*batch.impl_, lock, Impl::halo(shape), direction, made);
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
  const bool linear = scheme_from_name(scheme.name).family == Family::linear;
  (linear ? impl_->linear_scheme : impl_->scheme) = scheme;
  (linear ? impl_->linear_text : impl_->scheme_text) = scheme.text();
  impl_->open_channels();
}

const Expression& Attention::linear_scheme() const { return impl_->linear_scheme; }

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
                                              TensorView lse, AttentionKept* kept) {
  auto call = impl_->loaded(batch, impl_->softmax(shapes_of(q, k, v, scoring), scoring),
                            Direction::forward);
  std::byte* const saved = impl_->keep(*call->prepared, kept);
  if (scoring.weighting == attention::Weighting::sigmoid)
    return impl_->bind(std::move(call), {q, k, v}, {out}, saved);
  return impl_->bind(std::move(call), {q, k, v}, {out, lse}, saved);
}

std::unique_ptr<Execution> Attention::backward(const AttentionBatch& batch,
                                               const BackwardInputs& in,
                                               const attention::Scoring& scoring, TensorView dq,
                                               TensorView dk, TensorView dv) {
  auto call = impl_->loaded(batch, impl_->softmax(shapes_of(in.q, in.k, in.v, scoring), scoring),
                            Direction::backward);
  // Read only, as every saved slot of a backward program is.
  std::byte* const saved = in.kept == nullptr || in.kept->saved.empty()
                               ? nullptr
                               : static_cast<std::byte*>(in.kept->saved.view().data());
  if (scoring.weighting == attention::Weighting::sigmoid)
    return impl_->bind(std::move(call), {in.q, in.dout, in.k, in.v}, {dq, dk, dv}, saved);
  return impl_->bind(std::move(call), {in.q, in.dout, in.lse, in.delta, in.k, in.v}, {dq, dk, dv},
                     saved);
}

namespace {

/// What a prepared call's slot of states, or transitions, is bound to.
Tensor kept_tensor(const Prepared& call, std::string_view name, const runtime::Stream& compute) {
  for (const Slot& slot : call.program().slots) {
    if (slot.name == name)
      return Tensor({slot.rows, slot.heads, slot.record.fields[0].width}, runtime::DType::float32,
                    compute);
  }
  return {};
}

}  // namespace

std::unique_ptr<Execution> Attention::linear_forward(const AttentionBatch& batch,
                                                     const LinearCall& call, const LinearForward& t,
                                                     LinearKept& kept) {
  auto loaded = impl_->loaded(batch, impl_->linear(t.inputs, call), Direction::forward);
  kept.states = kept_tensor(*loaded->prepared, "states", impl_->compute);
  kept.transitions = kept_tensor(*loaded->prepared, "transitions", impl_->compute);
  return impl_->bind(
      std::move(loaded),
      {t.inputs.q, t.inputs.k, t.inputs.v, t.inputs.log_decay, t.inputs.beta, t.initial_state},
      {t.out, kept.states, kept.transitions, t.final_state});
}

std::unique_ptr<Execution> Attention::linear_again(const AttentionBatch& batch, LinearCall call,
                                                   const LinearForward& t, const LinearKept& kept) {
  call.states_given = true;
  return impl_->bind(impl_->loaded(batch, impl_->linear(t.inputs, call), Direction::forward),
                     {t.inputs.q, t.inputs.k, t.inputs.v, t.inputs.log_decay, t.inputs.beta,
                      t.initial_state, kept.states},
                     {t.out, t.final_state});
}

std::unique_ptr<Execution> Attention::linear_backward(const AttentionBatch& batch,
                                                      const LinearCall& call,
                                                      const LinearBackward& t,
                                                      const LinearKept& kept) {
  return impl_->bind(impl_->loaded(batch, impl_->linear(t.inputs, call), Direction::backward),
                     {t.inputs.q, t.inputs.k, t.inputs.v, t.inputs.log_decay, t.inputs.beta,
                      t.initial_state, kept.states, kept.transitions, t.dout, t.dfinal_state},
                     {t.dq, t.dk, t.dv, t.dlog_decay, t.dbeta, t.dinitial_state});
}

std::unique_ptr<Execution> Attention::halo(const AttentionBatch& batch, const HaloShape& shape,
                                           Direction direction, ConstTensorView rows,
                                           TensorView halo) {
  auto call = impl_->loaded(batch, Impl::halo(shape), direction);
  // The schedule's rows have heads: one.
  return impl_->bind(std::move(call), {rows.reshape({rows.size(0), 1, rows.size(1)})},
                     {halo.reshape({halo.size(0), 1, halo.size(1)})});
}

std::int64_t Attention::peak_staging_bytes() const {
  std::int64_t bytes = 0;
  for (const Channel& channel : impl_->channels) bytes += channel.stream.memory().peak_bytes;
  return bytes;
}

void Attention::reset_peak() const {
  for (const Channel& channel : impl_->channels) channel.stream.reset_peak();
}

AttendTimes Attention::attend_times() const {
  const runtime::WorkTimes times = impl_->clock.times();
  return {times.seconds, times.cpu_seconds, times.work};
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
