#pragma once
// Private to runtime/io: how often each token occurs, for the entropy that a corpus carries.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace longhaul::runtime {

class UnigramCounts {
 public:
  explicit UnigramCounts(std::int64_t vocabulary_size);
  /// Ids in [0, vocabulary_size).
  void add(std::span<const std::int32_t> tokens);
  /// Nats a token; 0 without tokens. The same bits whatever the order of the tokens.
  double entropy() const;

 private:
  std::vector<std::int64_t> dense_;  // by id, where the vocabulary is not too large for that
  std::unordered_map<std::int32_t, std::int64_t> sparse_;
  std::int64_t tokens_ = 0;
};

}  // namespace longhaul::runtime
