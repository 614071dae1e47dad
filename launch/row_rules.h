#pragma once
// Documents, positions and labels: what a configuration makes of them. The README's table says it
// of every mask.

#include <string>

#include "launch/train_config.h"
#include "runtime/io/corpus.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// data.positions with `auto` decided: "document" or "sequence".
std::string resolved_positions(const DataConfig& data);
/// How the mask and data.positions number and label rows.
runtime::RowRules row_rules(const DataConfig& data);
/// The sequences that a configuration takes from one corpus, which must outlive them.
runtime::Sequences make_sequences(const TrainConfig& config, const runtime::Corpus& corpus);
/// "apart; positions restart at each; labels stay inside": how console lines tell it.
std::string documents_text(const DataConfig& data);

}  // namespace longhaul::launch
