#include "launch/schemes.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "attention/named_masks.h"
#include "runtime/error.h"

namespace longhaul::launch {

using parallel::Combination;
using parallel::LayoutKind;
using parallel::SchemeOptions;
using runtime::ExitCode;
using runtime::fail;

SchemeOptions scheme_options(const std::string& name, const std::string& degrees,
                             const std::string& nesting, const std::string& around,
                             const std::string& backward) {
  SchemeOptions options;
  options.name = parallel::scheme_from_name(name).name;
  parallel::set_degrees(options, degrees);
  options.nesting = parallel::nesting_from_name(nesting);
  options.around = around;
  options.backward = parallel::backward_ring_from_name(backward);
  return options;
}

std::vector<SchemeChange> scheme_changes(const runtime::TrainConfig& config) {
  const runtime::ParallelismConfig& p = config.parallelism;
  // An option that one scheme of the run has a use for is kept from those that have none.
  bool degrees_used = false, usp_used = false, double_ring_used = false;
  const auto options = [&](const std::string& name) {
    const bool degrees = parallel::takes_degrees(name), usp = name == "usp",
               double_ring =
                   name == "double_ring" || (usp && p.context_parallel_around == "double_ring");
    degrees_used |= degrees;
    usp_used |= usp;
    double_ring_used |= double_ring;
    return scheme_options(
        name, degrees && p.context_parallel_degrees != "auto" ? p.context_parallel_degrees : "",
        usp ? p.context_parallel_nesting : "heads_inside", usp ? p.context_parallel_around : "ring",
        double_ring ? p.context_parallel_backward : "auto");
  };
  std::vector<SchemeChange> changes{{1, options(p.context_parallel_scheme)}};
  const std::string text = p.context_parallel_switch == "none" ? "" : p.context_parallel_switch;
  for (std::size_t at = 0; at <= text.size() && !text.empty();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    at = end + 1;
    const std::size_t colon = part.find(':');
    std::int64_t step = 0;
    const char* digits_end = part.data() + std::min(colon, part.size());
    const auto [parsed, error] = std::from_chars(part.data(), digits_end, step);
    if (colon == std::string::npos || error != std::errc() || parsed != digits_end ||
        step <= changes.back().step || step > config.training.steps) {
      fail(ExitCode::config, "parallelism.context_parallel_switch = \"", text, "\": '", part,
           "' is no STEP:SCHEME with a step above ", changes.back().step, " and up to ",
           config.training.steps, "; expected, for example, \"5:burst,10:group_cast\"");
    }
    changes.push_back({step, options(part.substr(colon + 1))});
  }
  const auto refuse_unused = [](const char* key, const std::string& value,
                                const std::string& default_value, bool used, const char* who) {
    if (used || value == default_value) return;
    fail(ExitCode::config, "parallelism.", key, " = \"", value,
         "\": no scheme of this run has a use for it; remove it, or use ", who);
  };
  refuse_unused("context_parallel_degrees", p.context_parallel_degrees, "auto", degrees_used,
                "double_ring or usp");
  refuse_unused("context_parallel_nesting", p.context_parallel_nesting, "heads_inside", usp_used,
                "usp");
  refuse_unused("context_parallel_around", p.context_parallel_around, "ring", usp_used, "usp");
  refuse_unused("context_parallel_backward", p.context_parallel_backward, "auto", double_ring_used,
                "double_ring, or for one ring scheme ring, burst or auto");
  return changes;
}

void check_schemes(const runtime::TrainConfig& config) {
  const std::int64_t ranks = config.parallelism.context_parallel_degree;
  for (const SchemeChange& change : scheme_changes(config)) {
    Combination combination{change.scheme,
                            static_cast<int>(ranks),
                            static_cast<int>(config.model.num_attention_heads),
                            static_cast<int>(config.model.num_key_value_heads),
                            parallel::layout_from_name(config.parallelism.context_parallel_layout),
                            attention::mask_rule(config.data.mask).causal};
    if (ranks < 1) {  // not known yet: what holds for any number
      combination.ranks = 1;
      combination.options.outer = combination.options.inner = 0;
    }
    parallel::check_legal(combination);
  }
}

std::string legality_table() {
  const auto layouts = parallel::layout_kinds();
  std::string text = "| scheme | mask |", rule = "|---|---|", rules, refusals;
  for (const LayoutKind layout : layouts) {
    text += fmt::format(" {} |", parallel::name(layout));
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (const std::string& name : parallel::scheme_names()) {
    SchemeOptions options;
    options.name = name;
    // Masks whose rows are equal share one.
    std::vector<std::pair<std::string, std::string>> rows;  // cells, masks
    for (const attention::MaskRule& mask : attention::mask_rules()) {
      std::string cells;
      for (const LayoutKind layout : layouts) {
        // One head a rank suits every rule on heads, so that mask and layout decide.
        const auto refusal = parallel::refuse({options, 4, 4, 4, layout, mask.causal});
        // What a list of slices or blocks sees is known only once it is there.
        const bool if_causal =
            refusal && !mask.trainable() && !parallel::refuse({options, 4, 4, 4, layout, true});
        cells += if_causal ? " if causal |" : refusal ? " no |" : " yes |";
        const std::string why =
            refusal ? fmt::format("- `{}`: {}; use {}\n", name, refusal->reason, refusal->nearest)
                    : "";
        if (refusals.find(why) == std::string::npos) refusals += why;
      }
      const auto same = std::ranges::find(rows, cells, &std::pair<std::string, std::string>::first);
      if (same == rows.end()) {
        rows.emplace_back(cells, mask.name);
      } else {
        same->second += std::string(", ") + mask.name;
      }
    }
    for (const auto& [cells, masks] : rows) {
      text += fmt::format("| `{}` | {} |{}\n", name, rows.size() == 1 ? "all" : masks, cells);
    }
    rules += fmt::format("- `{}`: {}.\n", name, parallel::scheme_from_name(name).legality);
  }
  return fmt::format(
      "{}\nRules, for H query heads, H_kv key/value heads and P ranks:\n\n{}\n"
      "Why not:\n\n{}",
      text, rules, refusals);
}

}  // namespace longhaul::launch
