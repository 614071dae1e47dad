#include "parallel/executor.h"

#include "runtime/error.h"
#include "runtime/purpose.h"
#include "runtime/trace_range.h"

namespace longhaul::parallel {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

namespace {

void check_tensor(const ConstTensorView& view, const Field& field, const Slot& slot) {
  LONGHAUL_CHECK(view.dims() == (field.number ? 2 : 3) && view.size(0) == slot.rows &&
                     view.size(1) == slot.heads && (field.number || view.size(2) == field.width) &&
                     view.dtype() == field.dtype,
                 "tensor '", field.name, "' of slot '", slot.name, "' has ", view.dims(), " dims, ",
                 view.dims() > 0 ? view.size(0) : 0, " rows, ", view.dims() > 1 ? view.size(1) : 0,
                 " heads, dtype ", runtime::name(view.dtype()), "; expected ", slot.rows, " rows, ",
                 slot.heads, " heads, dtype ", runtime::name(field.dtype));
}

/// A field of a slot in the arena, or in what is kept.
TensorView memory_view(std::byte* data, const Field& field, const Slot& slot,
                       const Stream& compute) {
  if (field.number) return {data, field.dtype, compute.device(), {slot.rows, slot.heads}};
  return {data, field.dtype, compute.device(), {slot.rows, slot.heads, field.width}};
}

}  // namespace

Execution::Execution(std::shared_ptr<const Loaded> call, std::span<const ConstTensorView> inputs,
                     std::span<const TensorView> outputs, const Stream& compute,
                     const std::vector<Channel>& channels, std::byte* saved,
                     runtime::WorkClock* clock)
    : call_(std::move(call)),
      prepared_(*call_->prepared),
      compute_(compute),
      channels_(channels),
      clock_(clock),
      read_(prepared_.program().slots.size()),
      written_(prepared_.program().slots.size()),
      loans_(prepared_.program().slots.size()),
      events_(prepared_.program().steps.size()) {
  LONGHAUL_CHECK(prepared_.channels() <= static_cast<int>(channels.size()), "the program needs ",
                 prepared_.channels(), " channels, ", channels.size(), " given");
  LONGHAUL_CHECK(inputs.size() == prepared_.inputs() && outputs.size() == prepared_.outputs(),
                 inputs.size(), " inputs and ", outputs.size(), " outputs bound; expected ",
                 prepared_.inputs(), " and ", prepared_.outputs());
  LONGHAUL_CHECK((saved != nullptr) == (prepared_.saved_bytes() > 0), "memory for what is kept is ",
                 saved == nullptr ? "missing" : "given", ", and the call keeps ",
                 prepared_.saved_bytes(), " bytes");
  bind(inputs, outputs);
  place(Role::saved, saved);
}

void Execution::bind(std::span<const ConstTensorView> inputs, std::span<const TensorView> outputs) {
  for (std::size_t index = 0; index < read_.size(); ++index) {
    const Slot& slot = prepared_.program().slots[index];
    if (slot.role == Role::borrowed) {
      for (const Field& field : slot.record.fields)
        loans_[index].push_back(std::make_shared<ConstTensorView>(
            memory_view(nullptr, field, slot, compute_)));  // of its sizes, nowhere yet
    }
    if (slot.role != Role::input && slot.role != Role::output) continue;
    const auto& places = prepared_.places()[index];
    for (std::size_t f = 0; f < places.size(); ++f) {
      if (slot.role == Role::input) {
        read_[index].push_back(inputs[places[f].tensor]);
      } else {
        written_[index].push_back(outputs[places[f].tensor]);
        read_[index].push_back(written_[index].back());
      }
      check_tensor(read_[index].back(), slot.record.fields[f], slot);
    }
  }
}

void Execution::place(Role role, std::byte* memory) {
  for (std::size_t index = 0; index < read_.size(); ++index) {
    const Slot& slot = prepared_.program().slots[index];
    if (slot.role != role) continue;
    const auto& places = prepared_.places()[index];
    for (std::size_t f = 0; f < places.size(); ++f) {
      written_[index].push_back(
          memory_view(memory + places[f].begin, slot.record.fields[f], slot, compute_));
      read_[index].push_back(written_[index].back());
    }
  }
}

Execution::~Execution() {
  if (phases_ == 0 || phases_ > 2) return;
  // Given up between phases, by an error: the arena must outlive what channels do with it.
  try {
    for (const Channel& channel : channels_) compute_.wait(channel.stream.record());
  } catch (const std::exception&) {  // streams that have failed do nothing more
  }
}

void Execution::start() {
  if (phases_ > 0) return;
  const runtime::Purpose purpose("slots of an attention call");
  arena_ = compute_.allocate(prepared_.arena_bytes());
  place(Role::scratch, arena_.data());
  // Inputs, and whoever used this memory before, lie earlier on the compute stream.
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
  for (const std::size_t last : prepared_.last_of_channels()) compute_.wait(events_[last]);
}

void Execution::enqueue_phase(int phase) {
  phases_ = phase + 1;
  const auto& steps = prepared_.program().steps;
  for (std::size_t index = 0; index < steps.size(); ++index) {
    if (steps[index].phase == phase) enqueue(index);
  }
}

void Execution::enqueue(std::size_t index) {
  const Step& step = prepared_.program().steps[index];
  const Channel* channel =
      step.stream == kCompute ? nullptr : &channels_[static_cast<std::size_t>(step.stream - 1)];
  const Stream& stream = channel == nullptr ? compute_ : channel->stream;
  const runtime::TraceRange trace(name(step.operation));
  for (const int wait : step.waits) stream.wait(events_[static_cast<std::size_t>(wait)]);
  run(prepared_.step(index),
      Frame({prepared_.program(), read_, written_, loans_, arena_.data() + prepared_.slots_bytes(),
             call_->tables.data(), compute_, channel}));
  if (prepared_.awaited(index)) events_[index] = stream.record();
}

void Execution::run(const PreparedStep& step, const Frame& frame) {
  const Attended attended = step.attended();
  if (clock_ == nullptr || attended.pairs == 0) return step.run(frame);
  if (attended.pretended_seconds > 0) {
    step.run(frame);
    clock_->add(compute_, {attended.pretended_seconds, attended.pretended_seconds, attended.pairs});
    return;
  }
  clock_->start(compute_);
  step.run(frame);
  clock_->stop(compute_, attended.pairs);
}

}  // namespace longhaul::parallel
