#include "parallel/frame.h"

namespace longhaul::parallel {

using runtime::ConstTensorView;

FieldViews<ConstTensorView> ReadFields::now() const {
  if (!borrowed()) return fields_;
  FieldViews<ConstTensorView> fields;
  for (const auto& whole : loan_) {
    fields.push_back(
        whole->slice(0, view_.row_begin, view_.row_end).slice(1, view_.head_begin, view_.head_end));
  }
  return fields;
}

std::vector<std::shared_ptr<const ConstTensorView>> Frame::lent(const View& view) const {
  std::vector<std::shared_ptr<const ConstTensorView>> fields;
  const Loan& loan = parts_.loans[static_cast<std::size_t>(view.slot)];
  for (const auto& borrowed : loan) fields.push_back(borrowed);
  if (loan.size() > 0) return fields;
  for (const ConstTensorView& field : inputs(view))
    fields.push_back(std::make_shared<const ConstTensorView>(field));
  return fields;
}

std::vector<std::shared_ptr<ConstTensorView>> Frame::borrowed(const View& view) const {
  const Loan& loan = parts_.loans[static_cast<std::size_t>(view.slot)];
  return {loan.begin(), loan.end()};
}

}  // namespace longhaul::parallel
