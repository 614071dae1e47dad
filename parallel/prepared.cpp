#include "parallel/prepared.h"

#include <algorithm>

#include "runtime/error.h"
#include "runtime/ops/host_copy.h"
#include "runtime/purpose.h"
#include "runtime/reserve.h"

namespace longhaul::parallel {

std::int64_t Preparation::add_table(std::span<const std::byte> table) {
  if (place_.device.kind == runtime::DeviceKind::cpu) return 0;
  const std::int64_t begin = aligned(std::ssize(tables_));
  tables_.resize(static_cast<std::size_t>(begin));
  tables_.insert(tables_.end(), table.begin(), table.end());
  return begin;
}

Prepared::Prepared(Program program, const Signature& signature, const attention::Scoring& scoring,
                   const attention::BlockPlace& place, std::shared_ptr<TaskTransport> transport)
    : program_(std::move(program)),
      awaited_(program_.steps.size(), false),
      inputs_(signature.inputs.size()),
      outputs_(signature.outputs.size()) {
  Preparation with(program_, scoring, place, std::move(transport));
  for (const Step& step : program_.steps) {
    steps_.push_back(std::visit([&](const auto& of) { return prepare(of, with); }, step.operation));
    kernel_bytes_ = std::max(kernel_bytes_, steps_.back()->scratch_bytes());
    channels_ = std::max(channels_, step.stream);
    for (const int wait : step.waits) awaited_[static_cast<std::size_t>(wait)] = true;
  }
  for (int stream = 1; stream <= channels_; ++stream) {
    const auto last =
        std::ranges::find(program_.steps.rbegin(), program_.steps.rend(), stream, &Step::stream);
    if (last == program_.steps.rend()) continue;
    last_.push_back(static_cast<std::size_t>(program_.steps.rend() - last) - 1);
    awaited_[last_.back()] = true;
  }
  tables_ = std::move(with).take_tables();
  place_slots(signature);
  exchanged_.resize(static_cast<std::size_t>(channels_));
  for (const auto& [channel, group] : count(program_).exchanged)
    exchanged_[static_cast<std::size_t>(channel)] = group;
}

void Prepared::place_slots(const Signature& signature) {
  const auto number = [](const Field& field, const std::vector<std::string_view>& names) {
    const auto found = std::ranges::find(names, field.name);
    LONGHAUL_CHECK(found != names.end(), "the call binds no tensor to the field '", field.name,
                   "'");
    return static_cast<std::size_t>(found - names.begin());
  };
  for (const Slot& slot : program_.slots) {
    auto& fields = places_.emplace_back();
    for (const Field& field : slot.record.fields) {
      Place place{slot.role};
      if (slot.role == Role::input) {
        place.tensor = number(field, signature.inputs);
      } else if (slot.role == Role::output) {
        place.tensor = number(field, signature.outputs);
      } else if (slot.role != Role::borrowed) {
        std::int64_t& bytes = slot.role == Role::saved ? saved_bytes_ : slots_bytes_;
        place.begin = bytes;
        bytes += field_bytes(slot, field);
      }
      fields.push_back(place);
    }
  }
}

Loaded::Loaded(std::shared_ptr<const Prepared> of, const runtime::Stream& compute)
    : prepared(std::move(of)) {
  const std::span<const std::byte> from = prepared->tables();
  if (from.empty()) return;
  tables = compute.allocate(std::ssize(from));
  runtime::ops::upload_bytes(from, tables.data(), compute);
}

void reserve(const Prepared& prepared, const runtime::Stream& compute,
             const std::vector<Channel>& channels) {
  const runtime::Purpose purpose("slots and messages of an attention call");
  runtime::reserve_memory(compute, prepared.arena_bytes());
  for (std::size_t number = 0; number < prepared.exchanged().size(); ++number) {
    const Channel& channel = channels[number];
    const runtime::MessageMemory memory =
        channel.communicator->memory_of(prepared.exchanged()[number], channel.stream.device().kind);
    runtime::reserve_memory(channel.stream, memory.stream_bytes, memory.buffers);
    runtime::reserve_host_memory(channel.stream, memory.host_bytes, memory.buffers);
  }
}

}  // namespace longhaul::parallel
