#include "launch/demanding_batches.h"

#include <algorithm>
#include <set>

#include "attention/mask_rules.h"
#include "launch/attention_axis.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kSequences = 64;  // that are looked at, or one micro-batch
constexpr std::size_t kLargest = 6;      // of all that are planned in full

struct Documents {
  double area = 0;  // sum of squared lengths: the largest that attention inside them can be
  std::int64_t longest = 0, count = 0;
};

Documents documents_of(const runtime::SequenceSource& sequences,
                       const std::vector<std::int64_t>& numbers) {
  Documents all;
  for (const std::int64_t number : numbers) {
    const std::vector<std::int64_t> offsets = sequences.documents(number).offsets;
    all.count += std::ssize(offsets) - 1;
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
      const std::int64_t length = offsets[d + 1] - offsets[d];
      all.area += static_cast<double>(length) * static_cast<double>(length);
      all.longest = std::max(all.longest, length);
    }
  }
  return all;
}

}  // namespace

std::vector<std::vector<std::int64_t>> demanding_batches(const TrainConfig& config,
                                                         const runtime::SequenceSource& sequences) {
  const std::int64_t size = attention_axis(config).sequences;
  std::vector<std::vector<std::int64_t>> batches;
  std::int64_t next = 0;
  do {
    std::vector<std::int64_t>& numbers = batches.emplace_back();
    for (std::int64_t i = 0; i < size; ++i) numbers.push_back(next++);
  } while (next + size <= kSequences &&
           attention::mask_rule(config.data.mask).takes(attention::MaskInput::documents));
  if (batches.size() == 1) return batches;

  std::vector<Documents> documents;
  std::vector<std::size_t> by_area;
  for (std::size_t i = 0; i < batches.size(); ++i) {
    documents.push_back(documents_of(sequences, batches[i]));
    by_area.push_back(i);
  }
  std::ranges::stable_sort(by_area, std::greater{},
                           [&](std::size_t i) { return documents[i].area; });
  by_area.resize(std::min(by_area.size(), kLargest));
  std::set<std::size_t> chosen(by_area.begin(), by_area.end());
  const auto add_most = [&](std::int64_t Documents::*what) {
    const auto most = std::ranges::max_element(documents, {}, what);
    chosen.insert(static_cast<std::size_t>(most - documents.begin()));
  };
  add_most(&Documents::longest);
  add_most(&Documents::count);
  std::vector<std::vector<std::int64_t>> demanding;
  for (const std::size_t i : chosen) demanding.push_back(std::move(batches[i]));
  return demanding;
}

}  // namespace longhaul::launch
