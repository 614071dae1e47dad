#pragma once
// A program prepared: compiled once a batch, bound once a layer.

#include <memory>
#include <string_view>
#include <vector>

#include "parallel/frame.h"

namespace longhaul::parallel {

/// Everything of a call that depends on masks, layout, shapes, scoring and device, and not on a
/// layer's tensors: plans, lists of rows, and where its memory lies in one arena. Immutable; made
/// on any thread, without a stream, and shared by as many calls as there are.
class Prepared {
 public:
  /// Throws Error for what could not run.
  Prepared(Program program, const Signature& signature, const attention::Scoring& scoring,
           const attention::BlockPlace& place, std::shared_ptr<TaskTransport> transport = {});
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  const Program& program() const { return program_; }
  int channels() const { return channels_; }
  const PreparedStep& step(std::size_t index) const { return *steps_[index]; }
  /// Whether a step of another stream waits for it, or the call's end.
  bool awaited(std::size_t index) const { return awaited_[index]; }

  /// The last step of each channel that has any.
  const std::vector<std::size_t>& last_of_channels() const { return last_; }

  /// The arena of a call: its scratch slots, then what kernels overwrite.
  std::int64_t arena_bytes() const { return slots_bytes_ + kernel_bytes_; }
  std::int64_t slots_bytes() const { return slots_bytes_; }
  /// Of the slots that are kept from forward to its backward; the same both ways.
  std::int64_t saved_bytes() const { return saved_bytes_; }
  /// Of the exchanges of each channel, the most of each, channel 0 first.
  const std::vector<runtime::GroupBytes>& exchanged() const { return exchanged_; }

  /// Where a field of a slot is.
  struct Place {
    Role role = Role::scratch;
    std::size_t tensor = 0;  ///< inputs and outputs: its number among those of the signature
    std::int64_t begin = 0;  ///< scratch: in the arena; saved: in what is kept
  };
  /// By slot, then field.
  const std::vector<std::vector<Place>>& places() const { return places_; }
  std::size_t inputs() const { return inputs_; }
  std::size_t outputs() const { return outputs_; }

  /// What the device gets a copy of; empty on the CPU.
  std::span<const std::byte> tables() const { return tables_; }

 private:
  void place_slots(const Signature& signature);

  const Program program_;
  std::vector<std::unique_ptr<const PreparedStep>> steps_;
  std::vector<bool> awaited_;
  std::vector<std::size_t> last_;
  std::vector<std::vector<Place>> places_;
  std::size_t inputs_, outputs_;
  std::int64_t slots_bytes_ = 0, kernel_bytes_ = 0, saved_bytes_ = 0;
  std::vector<runtime::GroupBytes> exchanged_;
  std::vector<std::byte> tables_;
  int channels_ = 0;
};

/// A prepared program whose tables are where a compute stream's work reads them: uploaded once.
struct Loaded {
  Loaded(std::shared_ptr<const Prepared> of, const runtime::Stream& compute);
  std::shared_ptr<const Prepared> prepared;
  runtime::Buffer tables;  ///< of the compute stream, on a device
};

/// Takes from the system what a call's arena and messages need, before its first exchange: so that
/// no stream waits for another rank meanwhile. Throws Error(memory).
void reserve(const Prepared& prepared, const runtime::Stream& compute,
             const std::vector<Channel>& channels);

}  // namespace longhaul::parallel
