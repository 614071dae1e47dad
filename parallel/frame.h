#pragma once
// How a step is prepared, and what it sees when it runs.

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "attention/block_plan.h"
#include "parallel/schedule.h"
#include "runtime/comm/communicator.h"
#include "runtime/rows.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

class TaskTransport;

/// A communication stream and the communicator that only it uses.
struct Channel {
  runtime::Stream stream;
  std::unique_ptr<runtime::Communicator> communicator;
};

/// The tensors of a view, one a field, in order.
template <class Tensor>
class FieldViews {
 public:
  void push_back(const Tensor& view) { views_.at(size_++) = view; }
  std::size_t size() const { return size_; }
  const Tensor& operator[](std::size_t field) const { return views_[field]; }
  const Tensor& back() const { return views_[size_ - 1]; }
  const Tensor* begin() const { return views_.data(); }
  const Tensor* end() const { return views_.data() + size_; }

 private:
  std::array<Tensor, 4> views_;
  std::size_t size_ = 0;
};

/// Of a slot that is borrowed: where its fields lie, once its loan has come.
using Loan = FieldViews<std::shared_ptr<runtime::ConstTensorView>>;

/// The tensors of a view that a step reads, for the work that it enqueues: those of a borrowed slot
/// are known only when the work runs.
class ReadFields {
 public:
  explicit ReadFields(const FieldViews<runtime::ConstTensorView>& known) : fields_(known) {}
  ReadFields(const Loan& loan, const View& view) : loan_(loan), view_(view) {}
  bool borrowed() const { return loan_.size() > 0; }
  FieldViews<runtime::ConstTensorView> now() const;

 private:
  FieldViews<runtime::ConstTensorView> fields_;
  Loan loan_;
  View view_;
};

/// A call in flight, as a step that runs sees it.
class Frame {
 public:
  struct Parts {
    const Program& program;
    /// By slot.
    std::span<const FieldViews<runtime::ConstTensorView>> read;
    std::span<const FieldViews<runtime::TensorView>> written;  ///< empty for inputs
    std::span<const Loan> loans;
    std::byte* scratch;
    const std::byte* tables;
    const runtime::Stream& compute;
    const Channel* channel;  ///< of a transfer
  };
  explicit Frame(const Parts& parts) : parts_(parts) {}

  FieldViews<runtime::ConstTensorView> inputs(const View& view) const {
    return resolve(parts_.read, view);
  }
  FieldViews<runtime::TensorView> outputs(const View& view) const {
    return resolve(parts_.written, view);
  }
  /// inputs(), of a slot that may be borrowed.
  ReadFields reads(const View& view) const {
    const Loan& loan = parts_.loans[static_cast<std::size_t>(view.slot)];
    return loan.size() > 0 ? ReadFields(loan, view) : ReadFields(inputs(view));
  }
  /// The fields of a view to lend (one that is borrowed is lent on), and of a slot that borrows.
  std::vector<std::shared_ptr<const runtime::ConstTensorView>> lent(const View& view) const;
  std::vector<std::shared_ptr<runtime::ConstTensorView>> borrowed(const View& view) const;
  const Slot& slot(const View& view) const { return parts_.program.slot(view); }
  /// PreparedStep::scratch_bytes() of the step.
  std::byte* scratch() const { return parts_.scratch; }
  /// The device's copy of a table; nullptr on the CPU.
  const std::byte* table(std::int64_t offset) const {
    return parts_.tables == nullptr ? nullptr : parts_.tables + offset;
  }
  const runtime::Stream& compute() const { return parts_.compute; }
  const Channel& channel() const { return *parts_.channel; }

 private:
  template <class Tensor>
  static FieldViews<Tensor> resolve(std::span<const FieldViews<Tensor>> slots, const View& view) {
    FieldViews<Tensor> fields;
    for (const Tensor& field : slots[static_cast<std::size_t>(view.slot)]) {
      fields.push_back(
          field.slice(0, view.row_begin, view.row_end).slice(1, view.head_begin, view.head_end));
    }
    return fields;
  }
  Parts parts_;
};

/// What a step attends on its rank itself.
struct Attended {
  std::int64_t pairs = 0;  ///< visible (query, key) pairs, summed over query heads
  /// What it is pretended to take; 0: it is measured.
  double pretended_seconds = 0;
};

/// A step with everything that does not depend on a layer's tensors. Immutable, and refers to the
/// step that it was made of.
class PreparedStep {
 public:
  virtual ~PreparedStep() = default;
  /// Enqueues. Allocates nothing on the host that grows with rows or bands.
  virtual void run(const Frame& frame) const = 0;
  /// Temporaries on the compute stream that it overwrites.
  virtual std::int64_t scratch_bytes() const { return 0; }
  /// Softmax attention's steps have some, and are timed (Attention::attend_times()).
  virtual Attended attended() const { return {}; }
};

/// What steps are prepared with.
class Preparation {
 public:
  Preparation(const Program& program, const attention::Scoring& scoring,
              const attention::BlockPlace& place, std::shared_ptr<TaskTransport> transport = {})
      : program_(program), scoring_(scoring), place_(place), transport_(std::move(transport)) {}

  const Program& program() const { return program_; }
  const Record& record(const View& view) const { return program_.slot(view).record; }
  const attention::Scoring& scoring() const { return scoring_; }
  const attention::BlockPlace& place() const { return place_; }
  /// To external servers; may be null.
  const std::shared_ptr<TaskTransport>& transport() const { return transport_; }
  /// Where the table will lie among those that the device gets a copy of. None on the CPU.
  std::int64_t add_table(std::span<const std::byte> table);
  std::vector<std::byte> take_tables() && { return std::move(tables_); }

 private:
  const Program& program_;
  const attention::Scoring& scoring_;
  const attention::BlockPlace& place_;
  const std::shared_ptr<TaskTransport> transport_;
  std::vector<std::byte> tables_;
};

}  // namespace longhaul::parallel
