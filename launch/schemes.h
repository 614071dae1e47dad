#pragma once
// The attention schemes that a configuration asks for.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/config.h"
#include "models/block.h"
#include "parallel/policy.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::launch {

/// From `step` on, counted from 1, attention is spread by `scheme`.
struct SchemeChange {
  std::int64_t step = 1;
  parallel::Expression scheme;
};
/// Whether calls are of the sequences of all data ranks (parallel::Scheme::spans_data).
bool spans_data(const parallel::Expression& scheme);
/// In step order; the first is of step 1; what a policy chooses in place of its name. Of a
/// configuration that check_schemes() found nothing wrong with.
std::vector<SchemeChange> scheme_changes(const TrainConfig& config);
/// The same, with the degrees that each scheme chooses for this number of ranks written out, where
/// that is known: what runs, by name.
std::vector<SchemeChange> resolved_schemes(const TrainConfig& config);
/// The scheme of the model's recurrences, with the degrees that it chooses written out, and why a
/// policy chose it; nothing where the model has none. The number of ranks is known.
std::optional<parallel::LinearChoice> linear_choice(const TrainConfig& config);
/// All schemes that calls of a kind are made under in the run.
std::vector<parallel::Expression> schemes_of(const TrainConfig& config,
                                             const models::AttentionCall& call);
/// Of softmax attention: "burst (chosen by auto), from step 5 usp(heads=2)", or "none".
std::string schemes_text(const TrainConfig& config);
/// Of linear layers, where there are any: "lasp2 (chosen by auto: why)".
std::optional<std::string> linear_text(const TrainConfig& config);

/// Adds to the draft what is wrong with the schemes of the run, each at the key to blame:
/// expressions, changes between steps, and schemes that do not suit ranks, heads, layout or mask,
/// with the reason and the nearest legal choice; and keys that expressions have replaced. What is
/// not known, such as a context degree of -1, is taken to suit: check again once it is. Brings what
/// is right into canonical form.
void check_schemes(TrainDraft& draft);

}  // namespace longhaul::launch
