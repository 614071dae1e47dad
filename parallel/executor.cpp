#include "parallel/executor.h"

#include <algorithm>

#include "attention/block.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

Execution::Execution(std::shared_ptr<const Program> program, const Shapes& shapes,
                     const attention::Scoring& scoring, std::vector<Binding> bindings,
                     const Stream& compute, std::vector<Channel>& channels)
    : program_(std::move(program)),
      shapes_(shapes),
      scoring_(scoring),
      compute_(compute),
      channels_(channels),
      slots_(program_->slots.size()),
      awaited_(program_->steps.size(), false),
      events_(program_->steps.size()),
      last_(channels.size()) {
  LONGHAUL_CHECK(scoring.weighting == shapes.weighting,
                 "the program was made for another weighting");
  for (std::size_t index = 0; index < awaited_.size(); ++index) {
    const Step& step = program_->steps[index];
    for (const int wait : step.waits) awaited_[static_cast<std::size_t>(wait)] = true;
    LONGHAUL_CHECK(step.stream <= static_cast<int>(channels.size()), "the program needs channel ",
                   step.stream - 1, ", ", channels.size(), " given");
    if (step.stream != kCompute) last_[static_cast<std::size_t>(step.stream - 1)] = index;
  }
  for (const auto& last : last_) {
    if (last) awaited_[*last] = true;
  }
  bind(bindings);
}

void Execution::bind(const std::vector<Binding>& bindings) {
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& slot = program_->slots[index];
    if (slot.role == Role::scratch) continue;
    const auto found = std::ranges::find(bindings, slot.name, &Binding::slot);
    LONGHAUL_CHECK(found != bindings.end(), "no tensors bound to slot '", slot.name, "'");
    const auto expected = fields(slot.kind, shapes_);
    LONGHAUL_CHECK(found->fields.size() == expected.size(), "slot '", slot.name, "' has ",
                   expected.size(), " fields, ", found->fields.size(), " bound");
    for (std::size_t f = 0; f < expected.size(); ++f) {
      const TensorView& view = found->fields[f];
      const bool one = expected[f].width == FieldWidth::one;
      const DType dtype = expected[f].activation ? shapes_.activation : DType::float32;
      LONGHAUL_CHECK(
          view.dims() == (one ? 2 : 3) && view.size(0) == slot.rows && view.size(1) == slot.heads &&
              (one || view.size(2) == width(expected[f].width, shapes_)) && view.dtype() == dtype,
          "tensor '", expected[f].name, "' of slot '", slot.name, "' has ", view.dims(), " dims, ",
          view.size(0), " rows, ", view.size(1), " heads, dtype ", runtime::name(view.dtype()),
          "; expected ", slot.rows, " rows, ", slot.heads, " heads, dtype ", runtime::name(dtype));
    }
    slots_[index] = found->fields;
  }
}

void Execution::start() {
  if (phases_ > 0) return;
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& slot = program_->slots[index];
    if (slot.role != Role::scratch) continue;
    for (const Field& field : fields(slot.kind, shapes_)) {
      const DType dtype = field.activation ? shapes_.activation : DType::float32;
      if (field.width == FieldWidth::one) {
        scratch_.emplace_back(std::initializer_list<std::int64_t>{slot.rows, slot.heads}, dtype,
                              compute_);
      } else {
        scratch_.emplace_back(
            std::initializer_list<std::int64_t>{slot.rows, slot.heads, width(field.width, shapes_)},
            dtype, compute_);
      }
      slots_[index].push_back(scratch_.back());
    }
  }
  // Inputs, and whoever used this scratch memory before, lie earlier on the compute stream.
  const runtime::Event before = compute_.record();
  for (const Channel& channel : channels_) channel.stream.wait(before);
  enqueue_phase(0);
}

void Execution::advance() {
  start();
  if (phases_ == 1) enqueue_phase(1);
}

void Execution::finish() {
  advance();
  if (phases_ > 2) return;
  enqueue_phase(2);
  // Of the channels' work only this call's: another call may have been enqueued behind it.
  for (const auto& last : last_) {
    if (last) compute_.wait(events_[*last]);
  }
}

void Execution::enqueue_phase(int phase) {
  phases_ = phase + 1;
  for (std::size_t index = 0; index < awaited_.size(); ++index) {
    if (program_->steps[index].phase == phase) enqueue(static_cast<int>(index));
  }
}

const Stream& Execution::stream_of(int stream) const {
  return stream == kCompute ? compute_ : channels_[static_cast<std::size_t>(stream - 1)].stream;
}

void Execution::enqueue(int index) {
  const Step& step = program_->steps[static_cast<std::size_t>(index)];
  const Stream& stream = stream_of(step.stream);
  for (const int wait : step.waits) stream.wait(events_[static_cast<std::size_t>(wait)]);
  std::visit(
      [&](const auto& operation) {
        if constexpr (std::is_same_v<std::decay_t<decltype(operation)>, Transfer>) {
          run(operation, step);
        } else {
          run(operation);
        }
      },
      step.operation);
  if (awaited_[static_cast<std::size_t>(index)])
    events_[static_cast<std::size_t>(index)] = stream.record();
}

Execution::Fields Execution::resolve(const View& view) const {
  Fields views = slots_[static_cast<std::size_t>(view.slot)];
  for (TensorView& field : views) {
    field = field.slice(0, view.row_begin, view.row_end).slice(1, view.head_begin, view.head_end);
  }
  return views;
}

/// k and v, from one slot or from two.
Execution::Fields Execution::resolve_keys(const View& kv, const std::optional<View>& v) const {
  Fields fields = resolve(kv);
  if (v) fields.push_back(resolve(*v)[0]);
  return fields;
}

void Execution::run(const Attend& a) {
  const Fields q = resolve(a.q), kv = resolve_keys(a.kv, a.v), partial = resolve(a.partial);
  attention::block_forward(q[0], kv[0], kv[1], a.bands, scoring_, partial[0],
                           partial.size() > 1 ? partial[1] : TensorView(), a.mode, compute_);
}

void Execution::run(const AttendBackward& a) {
  const Fields q = resolve(a.q_bundle), kv = resolve_keys(a.kv, a.v), dq = resolve(a.dq),
               dkv = resolve(a.dkv);
  attention::BlockBackwardInputs inputs{q[0], kv[0], kv[1], q[1], {}, {}};
  if (q.size() > 2) {
    inputs.lse = q[2];
    inputs.delta = q[3];
  }
  attention::block_backward(inputs, a.bands, scoring_, dq[0], a.dq_mode, dkv[0], dkv[1], a.dkv_mode,
                            compute_);
}

void Execution::run(const Accumulate& a) {
  const Fields src = resolve(a.src), dst = resolve(a.dst);
  const SlotKind kind = program_->slots[static_cast<std::size_t>(a.dst.slot)].kind;
  if (kind == SlotKind::partial && shapes_.weighting == attention::Weighting::softmax) {
    attention::merge(src[0], src[1], dst[0], dst[1], compute_);
    return;
  }
  for (std::size_t f = 0; f < dst.size(); ++f) runtime::accumulate(src[f], dst[f], compute_);
}

void Execution::run(const Copy& c) {
  const Fields src = resolve(c.src), dst = resolve(c.dst);
  for (std::size_t f = 0; f < dst.size(); ++f) runtime::copy(src[f], dst[f], compute_);
}

void Execution::run(const Transfer& transfer, const Step& step) {
  const Channel& channel = channels_[static_cast<std::size_t>(step.stream - 1)];
  std::vector<runtime::SendMessage> sends;
  std::vector<runtime::ReceiveMessage> receives;
  std::string what;
  for (const Message& message : transfer.sends) {
    runtime::SendMessage send{message.peer, {}, message.wire_dtype};
    for (const View& view : message.views) {
      for (const TensorView& field : resolve(view)) send.views.emplace_back(field);
      what = program_->slots[static_cast<std::size_t>(view.slot)].name;
    }
    sends.push_back(std::move(send));
  }
  for (const Message& message : transfer.receives) {
    runtime::ReceiveMessage receive{message.peer, {}, message.wire_dtype};
    for (const View& view : message.views) {
      for (const TensorView& field : resolve(view)) receive.views.push_back(field);
      what = program_->slots[static_cast<std::size_t>(view.slot)].name;
    }
    receives.push_back(std::move(receive));
  }
  channel.communicator->exchange(std::move(sends), std::move(receives), "attention " + what,
                                 channel.stream);
}

}  // namespace longhaul::parallel
