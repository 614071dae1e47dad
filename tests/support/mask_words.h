#pragma once
// What the table of masks in attention/README.md says, for one pair of tokens. Knows nothing of
// slices; the oracle of whatever takes a mask by name.

#include <cstdint>
#include <string>
#include <vector>

#include "attention/named_masks.h"

namespace longhaul::test {

class MaskWords {
 public:
  /// Keeps a reference to `parameters`. Of any mask but `slices`; a mask for each head is head 0's.
  MaskWords(std::string name, const attention::MaskParameters& parameters, std::int64_t tokens)
      : name_(std::move(name)), p_(parameters), n_(parameters.numbers), tokens_(tokens) {}

  bool sees(std::int64_t query, std::int64_t key) const;
  /// The pairs as runs of keys, a slice each.
  attention::Mask mask() const;

 private:
  std::int64_t document(std::int64_t t) const;
  std::int64_t place(std::int64_t t) const;  ///< in its document, from 0
  std::int64_t prefix(std::int64_t t) const;
  bool in_prefix(std::int64_t t) const;
  std::int64_t answer(std::int64_t t) const;

  const std::string name_;
  const attention::MaskParameters& p_;
  const attention::MaskNumbers& n_;
  const std::int64_t tokens_;
};

/// A mask by name with parameters for it.
struct MaskSample {
  std::string name;
  attention::MaskParameters parameters;
};
/// Every mask by name over `tokens` tokens, any number of them, with parameters in proportion, once
/// without and once with those that it may have; then block_sparse and slices with a mask of its
/// own for each of `heads` query heads, if any. For products of masks with whatever takes them.
std::vector<MaskSample> mask_samples(std::int64_t tokens, std::int64_t heads = 0);

}  // namespace longhaul::test
