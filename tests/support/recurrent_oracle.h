#pragma once
// Blocks around a recurrence in plain double loops, token by token, written from their definitions:
// the oracle of their tests. Forward only; gradients are differences of it. Shares no code with
// models/ but the shapes and names.

#include <cstdint>
#include <vector>

#include "models/gated_delta_net_block.h"
#include "models/kda_block.h"
#include "models/lightning_block.h"
#include "models/linear_llama_block.h"
#include "models/mamba2_block.h"
#include "tests/support/llama_oracle.h"

namespace longhaul::test {

/// One sequence axis: row r belongs to document documents[r], whose rows are neighbours.
struct OracleRows {
  std::vector<std::int64_t> documents, positions;
};

/// From the normalised rows [n,h], what joins the residual stream [n,h]. Parameters by their names
/// behind the prefix.
std::vector<double> oracle_mixer(const models::GatedDeltaNetShape& shape, const NamedValues& p,
                                 const std::vector<double>& normed, const OracleRows& rows);
std::vector<double> oracle_mixer(const models::KdaShape& shape, const NamedValues& p,
                                 const std::vector<double>& normed, const OracleRows& rows);
std::vector<double> oracle_mixer(const models::Mamba2Shape& shape, const NamedValues& p,
                                 const std::vector<double>& normed, const OracleRows& rows);
std::vector<double> oracle_mixer(const models::LightningShape& shape, const NamedValues& p,
                                 const std::vector<double>& normed, const OracleRows& rows);
/// `rope_theta`: of kind decay, which turns all dims.
std::vector<double> oracle_mixer(const models::LinearLlamaShape& shape, double rope_theta,
                                 const NamedValues& p, const std::vector<double>& normed,
                                 const OracleRows& rows);

/// RMSNorm of rows as wide as the weight.
std::vector<double> oracle_norm(const std::vector<double>& x, const std::vector<double>& weight,
                                double eps);

}  // namespace longhaul::test
