#pragma once
// Views that a group of messages lends and borrows, instead of sending what they hold.

#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/transport.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::detail {

/// What travels of a view that is lent.
struct LentWords {
  SharedPlace place;
  std::int64_t dtype = 0, dims = 0;
  Sizes sizes = {}, strides = {};

  static LentWords of(const ConstTensorView& view);
  /// Whether sizes and dtype are the same.
  bool fits(const LentWords& other) const;
  /// "float32 [2, 3]"
  std::string text() const;
};

/// Of one exchange, which it outlives: messages are received into it. Ranks are world ranks.
class Lending {
 public:
  explicit Lending(int self) : self_(self) {}
  void lend(int peer, const std::vector<std::shared_ptr<const ConstTensorView>>& views);
  void borrow(int peer, const std::vector<std::shared_ptr<ConstTensorView>>& views);
  bool empty() const { return lent_.empty() && borrowed_.empty(); }
  /// Throws Error(internal) for what can be seen before anything travels.
  void check(const std::string& what, const Stream& stream) const;

  /// Adds a message for every view to those of the exchange.
  void append(const Transport& transport, std::vector<Outgoing>& sends,
              std::vector<Incoming>& receives);
  /// After the exchange: what is borrowed points to where it lies. Throws Error(internal) where
  /// something else is lent.
  void arrive(const Transport& transport, const std::string& what) const;

 private:
  struct Lent {
    int peer = 0;
    std::shared_ptr<const ConstTensorView> view;
    LentWords words;
  };
  struct Borrowed {
    int peer = 0;
    std::shared_ptr<ConstTensorView> view;
    LentWords words;
  };

  const int self_;
  std::vector<Lent> lent_;
  std::vector<Borrowed> borrowed_;
};

}  // namespace longhaul::runtime::detail
