#pragma once
// What a step of a running program sees: the tensors of its views, and where it runs.

#include <array>
#include <memory>
#include <span>

#include "attention/block.h"
#include "parallel/schedule.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace longhaul::parallel {

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
  const Tensor* begin() const { return views_.data(); }
  const Tensor* end() const { return views_.data() + size_; }

 private:
  std::array<Tensor, 4> views_;
  std::size_t size_ = 0;
};

class Frame {
 public:
  struct Parts {
    const Program& program;
    /// By slot.
    std::span<const FieldViews<runtime::ConstTensorView>> read;
    std::span<const FieldViews<runtime::TensorView>> written;  ///< empty for inputs
    const attention::Scoring& scoring;
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
  const Slot& slot(const View& view) const { return parts_.program.slot(view); }
  const Record& record(const View& view) const { return slot(view).record; }
  const attention::Scoring& scoring() const { return parts_.scoring; }
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

}  // namespace longhaul::parallel
