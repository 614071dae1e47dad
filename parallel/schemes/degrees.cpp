#include "parallel/schemes/degrees.h"

#include <charconv>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;
using runtime::ExitCode;

}  // namespace

void set_degrees(SchemeOptions& options, const std::string& text) {
  options.outer = options.inner = 0;
  if (text == "auto") return;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, comma - at);
    const std::size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    int* degree = key == "outer" ? &options.outer : key == "inner" ? &options.inner : nullptr;
    int value = 0;
    const char *begin = part.data() + (equals == std::string::npos ? part.size() : equals + 1),
               *end = part.data() + part.size();
    const auto [parsed, error] = std::from_chars(begin, end, value);
    if (degree == nullptr || *degree != 0 || error != std::errc() || parsed != end || value < 1) {
      runtime::fail(ExitCode::config, "degrees '", text, "' are not understood at '", part,
                    "'; expected, for example, outer=2,inner=4, either alone, or auto");
    }
    *degree = value;
    at = comma + 1;
  }
}

std::vector<Degrees> legal_degrees(int ranks, const LegalDegrees& legal) {
  std::vector<Degrees> known;
  for (int inner = 1; inner <= ranks; ++inner) {
    if (ranks % inner == 0 && legal({ranks / inner, inner}))
      known.push_back({ranks / inner, inner});
  }
  return known;
}

std::optional<Degrees> resolve_degrees(const SchemeOptions& options, int ranks,
                                       const LegalDegrees& legal) {
  std::optional<Degrees> best;  // inner: the largest up to the root, else the least above it
  for (const Degrees& known : legal_degrees(ranks, legal)) {
    const bool asked = (options.outer == 0 || options.outer == known.outer) &&
                       (options.inner == 0 || options.inner == known.inner);
    if (asked && (!best || static_cast<std::int64_t>(known.inner) * known.inner <= ranks))
      best = known;
  }
  return best;
}

std::optional<Refusal> refuse_degrees(const Combination& c, const LegalDegrees& legal) {
  if (resolve_degrees(c.options, c.ranks, legal)) return {};
  Refusal refusal{{}, {}, SchemeOption::degrees};
  for (const auto& [outer, inner] : legal_degrees(c.ranks, legal)) {
    Combination& known = refusal.nearest.emplace_back(c);
    known.options.outer = outer;
    known.options.inner = inner;
  }
  if (refusal.nearest.empty()) refusal.nearest.push_back(under_scheme(c, "ring"));
  const auto& options = c.options;
  const std::string asked = options.inner == 0 ? concat("outer=", options.outer)
                            : options.outer == 0
                                ? concat("inner=", options.inner)
                                : concat("outer=", options.outer, ",inner=", options.inner);
  if (!is_set(options, SchemeOption::degrees)) {
    refusal.reason = concat("no degrees that make up ", c.ranks, " ranks are legal");
  } else if (resolve_degrees(options, c.ranks)) {
    refusal.reason = concat("degrees ", asked, " do not suit the heads");
  } else {
    refusal.reason = concat("degrees ", asked, " do not make up ", c.ranks, " ranks");
  }
  return refusal;
}

std::optional<Degrees> automatic_degrees(const Combination& combination) {
  if (!reads(combination.options, SchemeOption::degrees)) return {};
  SchemeOptions none = combination.options;
  none.outer = none.inner = 0;
  return resolve_degrees(none, combination.ranks, [&](const Degrees& degrees) {
    Combination tried = combination;
    tried.options.outer = degrees.outer;
    tried.options.inner = degrees.inner;
    return !refuse(tried);
  });
}

}  // namespace longhaul::parallel
