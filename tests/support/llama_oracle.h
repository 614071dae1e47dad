#pragma once
// A Llama, and the families that grew from it, in plain double loops, written
// from the definitions (layers with a state: recurrent_oracle.h): the oracle of the model tests.
// Forward only; gradients are central differences of it. Shares no code with models/ but the
// configuration, complete, and names.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "models/model_config.h"

namespace longhaul::test {

using NamedValues = std::map<std::string, std::vector<double>>;

struct OracleBatch {
  std::vector<std::int64_t> tokens, labels, positions;
  std::vector<std::int64_t> documents;  ///< row r sees rows s <= r of its own document
  /// Where given, what row r sees instead, in a sliding layer too.
  std::function<bool(std::int64_t layer, std::size_t r, std::size_t s)> sees = {};
  std::vector<double> label_weights = {};  ///< empty: 1 each
};

/// logits [rows, V].
std::vector<double> oracle_logits(const models::ModelConfig& config, const NamedValues& parameters,
                                  const OracleBatch& batch);
/// The sum of token losses, by their weights.
double oracle_loss(const models::ModelConfig& config, const NamedValues& parameters,
                   const OracleBatch& batch);
/// d loss / d parameter of every element, by fourth-order central differences.
NamedValues oracle_gradients(const models::ModelConfig& config, NamedValues parameters,
                             const OracleBatch& batch);

}  // namespace longhaul::test
