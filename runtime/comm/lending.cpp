#include "runtime/comm/lending.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::runtime::detail {
namespace {
constexpr std::int64_t kBytes = sizeof(LentWords);
}  // namespace

LentWords LentWords::of(const ConstTensorView& view) {
  LentWords words;
  words.dtype = static_cast<std::int64_t>(view.dtype());
  words.dims = view.dims();
  for (int dim = 0; dim < view.dims(); ++dim) {
    words.sizes[static_cast<std::size_t>(dim)] = view.size(dim);
    words.strides[static_cast<std::size_t>(dim)] = view.stride(dim);
  }
  return words;
}

bool LentWords::fits(const LentWords& other) const {
  return dtype == other.dtype && dims == other.dims && sizes == other.sizes;
}

std::string LentWords::text() const {
  std::string text = concat(name(static_cast<DType>(dtype)), " [");
  for (std::int64_t dim = 0; dim < dims; ++dim)
    text += concat(dim > 0 ? ", " : "", sizes[static_cast<std::size_t>(dim)]);
  return text + "]";
}

void Lending::lend(int peer, const std::vector<std::shared_ptr<const ConstTensorView>>& views) {
  for (const auto& view : views) lent_.push_back({peer, view, {}});
}
void Lending::borrow(int peer, const std::vector<std::shared_ptr<ConstTensorView>>& views) {
  for (const auto& view : views) borrowed_.push_back({peer, view, {}});
}

void Lending::check(const std::string& what, const Stream& stream) const {
  LONGHAUL_CHECK(empty() || stream.device().kind == DeviceKind::cpu, what, " lends on stream '",
                 stream.name(), "' of ", to_string(stream.device()),
                 ": only memory of CPU streams is shared");
  const auto lent = std::ranges::count(lent_, self_, &Lent::peer),
             borrowed = std::ranges::count(borrowed_, self_, &Borrowed::peer);
  LONGHAUL_CHECK(lent == borrowed, what, " lends ", lent, " views to itself and borrows ",
                 borrowed);
}

void Lending::append(const Transport& transport, std::vector<Outgoing>& sends,
                     std::vector<Incoming>& receives) {
  for (Lent& lent : lent_) {
    lent.words = LentWords::of(*lent.view);
    if (lent.peer == self_) continue;
    if (lent.view->elements() > 0) lent.words.place = transport.place_of(lent.view->data());
    sends.push_back({lent.peer, reinterpret_cast<const std::byte*>(&lent.words), kBytes});
  }
  for (Borrowed& borrowed : borrowed_) {
    if (borrowed.peer != self_)
      receives.push_back({borrowed.peer, reinterpret_cast<std::byte*>(&borrowed.words), kBytes});
  }
}

void Lending::arrive(const Transport& transport, const std::string& what) const {
  auto own = lent_.begin();  // the next view that is lent to oneself
  for (const Borrowed& borrowed : borrowed_) {
    const bool is_own = borrowed.peer == self_;
    if (is_own) own = std::ranges::find(own, lent_.end(), self_, &Lent::peer);
    const LentWords& words = is_own ? own->words : borrowed.words;
    ConstTensorView& view = *borrowed.view;
    LONGHAUL_CHECK(words.fits(LentWords::of(view)), "rank ", self_, " borrows ",
                   LentWords::of(view).text(), " of rank ", borrowed.peer, " in '", what,
                   "', which lends ", words.text());
    const std::byte* const data = view.elements() == 0 ? nullptr
                                  : is_own             ? own->view->data()
                                                       : transport.at(words.place);
    view.assign(data, view.dtype(), view.device(), view.dims(), words.sizes, words.strides);
    if (is_own) ++own;
  }
}

}  // namespace longhaul::runtime::detail
