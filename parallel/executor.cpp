#include "parallel/executor.h"

#include <algorithm>
#include <limits>

#include "runtime/error.h"

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

/// The tensor given for a field.
template <class Tensor>
const Tensor& find(const Field& field, const std::vector<std::string_view>& names,
                   std::span<const Tensor> tensors) {
  const auto at = std::ranges::find(names, field.name) - names.begin();
  LONGHAUL_CHECK(at < std::ssize(tensors), "no tensor bound to field '", field.name, "'");
  return tensors[static_cast<std::size_t>(at)];
}

}  // namespace

Execution::Execution(std::shared_ptr<const Program> program, const Signature& signature,
                     const attention::Scoring& scoring, std::span<const ConstTensorView> inputs,
                     std::span<const TensorView> outputs, const Stream& compute,
                     const std::vector<Channel>& channels)
    : program_(std::move(program)),
      scoring_(scoring),
      compute_(compute),
      channels_(channels),
      read_(program_->slots.size()),
      written_(program_->slots.size()),
      awaited_(program_->steps.size(), false),
      events_(program_->steps.size()) {
  for (const Step& step : program_->steps) {
    for (const int wait : step.waits) awaited_[static_cast<std::size_t>(wait)] = true;
    LONGHAUL_CHECK(step.stream <= static_cast<int>(channels.size()), "the program needs channel ",
                   step.stream - 1, ", ", channels.size(), " given");
  }
  for (std::size_t index = 0; index < program_->slots.size(); ++index) {
    const Slot& slot = program_->slots[index];
    for (const Field& field : slot.record.fields) {
      if (slot.role == Role::input) {
        read_[index].push_back(find(field, signature.inputs, inputs));
      } else if (slot.role == Role::output) {
        written_[index].push_back(find(field, signature.outputs, outputs));
        read_[index].push_back(*(written_[index].end() - 1));
      } else {
        continue;
      }
      check_tensor(*(read_[index].end() - 1), field, slot);
    }
  }
}

void Execution::start() {
  if (started_) return;
  started_ = true;
  for (std::size_t index = 0; index < program_->slots.size(); ++index) {
    const Slot& slot = program_->slots[index];
    if (slot.role != Role::scratch) continue;
    for (const Field& field : slot.record.fields) {
      std::vector<std::int64_t> sizes{slot.rows, slot.heads};
      if (!field.number) sizes.push_back(field.width);
      scratch_.emplace_back(sizes, field.dtype, compute_);
      written_[index].push_back(scratch_.back());
      read_[index].push_back(scratch_.back());
    }
  }
  // Inputs, and whoever used this scratch memory before, lie earlier on the compute stream.
  const runtime::Event before = compute_.record();
  for (const Channel& channel : channels_) channel.stream.wait(before);
  enqueue_until(0);
}

void Execution::advance() {
  start();
  enqueue_until(std::numeric_limits<int>::max());
}

void Execution::finish() {
  advance();
  if (finished_) return;
  finished_ = true;
  for (const Channel& channel : channels_) compute_.wait(channel.stream.record());
}

void Execution::enqueue_until(int phase) {
  const auto& steps = program_->steps;
  while (next_ < static_cast<int>(steps.size()) &&
         steps[static_cast<std::size_t>(next_)].phase <= phase)
    enqueue(next_++);
}

const Stream& Execution::stream_of(int stream) const {
  return stream == kCompute ? compute_ : channels_[static_cast<std::size_t>(stream - 1)].stream;
}

void Execution::enqueue(int index) {
  const auto i = static_cast<std::size_t>(index);
  const Step& step = program_->steps[i];
  const Stream& stream = stream_of(step.stream);
  for (const int wait : step.waits) stream.wait(events_[static_cast<std::size_t>(wait)]);
  const Channel* channel =
      step.stream == kCompute ? nullptr : &channels_[static_cast<std::size_t>(step.stream - 1)];
  const Frame frame({*program_, read_, written_, scoring_, compute_, channel});
  std::visit([&](const auto& operation) { run(operation, frame); }, step.operation);
  if (awaited_[i]) events_[i] = stream.record();
}

}  // namespace longhaul::parallel
