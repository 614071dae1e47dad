#include "launch/legality.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <vector>

#include "attention/named_masks.h"
#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::launch {
namespace {

using parallel::Combination;
using parallel::Expression;
using parallel::LayoutKind;

/// Rows of one scheme; labels with equal cells share one.
class Rows {
 public:
  void add(const std::string& label, const std::string& cells) {
    const auto same = std::ranges::find(rows_, cells, &Row::cells);
    if (same == rows_.end()) {
      rows_.push_back({label, cells});
    } else {
      same->labels += ", " + label;
    }
  }
  std::string text(const std::string& scheme) const {
    std::string text;
    for (const Row& row : rows_) {
      text +=
          fmt::format("| {} | {} |{}\n", scheme, rows_.size() == 1 ? "all" : row.labels, row.cells);
    }
    return text;
  }

 private:
  struct Row {
    std::string labels, cells;
  };
  std::vector<Row> rows_;
};

std::string heading(const std::string& label, const std::vector<std::string>& columns) {
  std::string text = "| scheme | " + label + " |", rule = "|---|---|";
  for (const std::string& column : columns) {
    text += " " + column + " |";
    rule += "---|";
  }
  return text + "\n" + rule + "\n";
}

struct MaskTable {
  std::string table, refusals;
};

/// Every scheme x mask x layout, and why not.
MaskTable mask_table() {
  MaskTable result;
  const auto layouts = parallel::layout_kinds();
  std::vector<std::string> names;
  for (const LayoutKind layout : layouts) names.emplace_back(parallel::name(layout));
  result.table = heading("mask", names);
  for (const std::string& name : parallel::scheme_names()) {
    Rows rows;
    for (const attention::MaskRule& mask : attention::mask_rules()) {
      std::string cells;
      for (const LayoutKind layout : layouts) {
        // One head a rank suits every rule on heads, so that mask and layout decide.
        const Combination combination{
            name, 4, 4, 4, layout, mask.causal, parallel::Family::softmax, mask.sees_whole_past()};
        const auto refusal = parallel::refuse(combination);
        // What a list of slices or blocks sees is known only once it is there.
        const auto would_do = [&](bool whole_past) {
          return refusal && !mask.trainable() &&
                 !parallel::refuse(
                     {name, 4, 4, 4, layout, true, parallel::Family::softmax, whole_past});
        };
        cells += would_do(false)  ? " if causal |"
                 : would_do(true) ? " if documents |"
                 : refusal        ? " no |"
                                  : " yes |";
        const std::string why = refusal ? fmt::format("- `{}`: {}; use {}\n", name, refusal->reason,
                                                      parallel::advice(combination, *refusal))
                                        : "";
        if (result.refusals.find(why) == std::string::npos) result.refusals += why;
      }
      rows.add(mask.name, cells);
    }
    result.table += rows.text("`" + name + "`");
  }
  return result;
}

struct Heads {
  const char* kind;
  int heads, kv_heads;
};
/// Query heads with enough divisors to meet every side of the rules.
constexpr Heads kHeads[] = {{"MHA", 24, 24}, {"4:1", 24, 6}, {"MQA", 24, 1}};
constexpr int kRanks[] = {1, 2, 3, 4, 5, 6, 7, 8, 16, 32};

/// "yes", "no", or what the scheme chooses when it is not given: "outer=2, inner=4".
std::string heads_cell(const Expression& scheme, int ranks, const Heads& heads) {
  const Combination combination{scheme, ranks, heads.heads, heads.kv_heads};
  if (parallel::refuse(combination)) return " no |";
  const Expression resolved = parallel::resolved(combination);
  std::string chosen;
  for (const parallel::GivenArgument& argument : resolved.arguments) {
    if (const auto* integer = std::get_if<std::int64_t>(&argument.value))
      chosen += fmt::format("{}{}={}", chosen.empty() ? "" : ", ", argument.name, *integer);
  }
  return chosen.empty() ? " yes |" : " " + chosen + " |";
}

/// The scheme, and it with each word that it takes in place of a default.
std::vector<Expression> variants(const std::string& name) {
  std::vector<Expression> all{name};
  for (const parallel::Argument& argument : parallel::scheme_from_name(name).arguments) {
    for (const std::string& choice : argument.choices) {
      const Expression variant = parallel::canonical(all[0].with(argument.name, choice));
      if (variant != all[0]) all.push_back(variant);
    }
  }
  return all;
}

/// Schemes whose legality or degrees follow from heads and ranks; the others below. Variants that
/// are as the scheme itself are left out.
std::string heads_table() {
  std::vector<std::string> columns;
  for (const int ranks : kRanks) columns.push_back(fmt::format("{}", ranks));
  columns[0] = "P = " + columns[0];
  std::string table = heading("H / H_kv", columns), others;
  for (const std::string& name : parallel::scheme_names()) {
    std::set<std::string> shown;
    for (const Expression& scheme : variants(name)) {
      Rows rows;
      bool always = true;
      for (const Heads& heads : kHeads) {
        std::string cells;
        for (const int ranks : kRanks) {
          const std::string cell = heads_cell(scheme, ranks, heads);
          always = always && cell == " yes |";
          cells += cell;
        }
        rows.add(fmt::format("{}/{}", heads.heads, heads.kv_heads), cells);
      }
      if (!shown.insert(rows.text("")).second) continue;
      if (always) {
        others += fmt::format("{}`{}`", others.empty() ? "" : ", ", scheme.text());
      } else {
        table += rows.text(fmt::format("`{}`", scheme.text()));
      }
    }
  }
  std::string kinds;
  for (const Heads& heads : kHeads) {
    kinds += fmt::format("{}{}/{} ({})", kinds.empty() ? "" : ", ", heads.heads, heads.kv_heads,
                         heads.kind);
  }
  return fmt::format(
      "Heads and ranks: H query and H_kv key/value heads, {}, over P ranks. Numbers: legal, "
      "and what the scheme chooses when they are not given:\n\n{}\nEvery H, H_kv and P: {}.\n",
      kinds, table, others);
}

std::string rules_of(parallel::Family family) {
  std::string rules;
  for (const std::string& name : parallel::scheme_names(family))
    rules += fmt::format("- `{}`: {}.\n", parallel::signature(parallel::scheme_from_name(name)),
                         parallel::scheme_from_name(name).legality);
  return rules;
}

}  // namespace

std::string legality_table() {
  const MaskTable masks = mask_table();
  return fmt::format(
      "{}\n{}\nRules, for H query heads, H_kv key/value heads and P ranks:\n\n{}\nWhy not:\n\n{}\n"
      "Linear layers, under masks causal and causal_document, over every layout but striped "
      "(`longhaul attention --kind linear` under full too: lasp2):\n\n{}",
      masks.table, heads_table(), rules_of(parallel::Family::softmax), masks.refusals,
      rules_of(parallel::Family::linear));
}

}  // namespace longhaul::launch
