#include "launch/row_rules.h"

#include <fmt/format.h>

#include "attention/mask_rules.h"
#include "runtime/error.h"

namespace longhaul::launch {

using attention::MaskScope;

namespace {
MaskScope scope_of(const DataConfig& data) { return attention::mask_rule(data.mask).scope; }
}  // namespace

std::string resolved_positions(const DataConfig& data) {
  if (data.positions != "auto") return data.positions;
  return scope_of(data) == MaskScope::sequence ? "sequence" : "document";
}

runtime::RowRules row_rules(const DataConfig& data) {
  const std::string positions = resolved_positions(data);
  LONGHAUL_CHECK(positions == "document" || positions == "sequence", "data.positions = \"",
                 positions, "\"");
  const MaskScope scope = scope_of(data);
  runtime::RowRules rules;
  rules.positions_restart = positions == "document";
  rules.labels_cross = scope == MaskScope::sequence;
  if (scope == MaskScope::answer) {
    LONGHAUL_CHECK(data.prefix && data.block, "mask ", data.mask, " without its numbers");
    rules.branches = {*data.prefix, *data.block};
  }
  return rules;
}

runtime::Sequences make_sequences(const TrainConfig& config, const runtime::Corpus& corpus) {
  return {corpus, config.training.seq_len, static_cast<std::uint64_t>(config.debug.seed),
          row_rules(config.data)};
}

std::string documents_text(const DataConfig& data) {
  const runtime::RowRules rules = row_rules(data);
  const bool answers = rules.branches.has_value();
  const char* positions = !rules.positions_restart ? "run from 0 to seq_len - 1"
                          : answers ? "restart at each, those of an answer at its question's end"
                                    : "restart at each";
  const char* labels = rules.labels_cross ? "cross"
                       : answers          ? "stay inside answers"
                                          : "stay inside";
  return fmt::format("attention {} documents; positions {}; labels {}",
                     rules.labels_cross ? "crosses" : "stays inside", positions, labels);
}

}  // namespace longhaul::launch
