#include "parallel/schemes/degrees.h"

#include <charconv>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;
using runtime::ExitCode;

std::string show(const Degrees& degrees) {
  return concat("outer=", degrees.outer, ",inner=", degrees.inner);
}

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

std::variant<Degrees, Refusal> resolve_degrees(const SchemeOptions& options, int ranks,
                                               const std::function<bool(const Degrees&)>& legal) {
  Degrees best{0, 0};  // inner: the largest legal up to the root, else the least above it
  std::string known;
  for (int inner = 1; inner <= ranks; ++inner) {
    if (ranks % inner != 0 || !legal({ranks / inner, inner})) continue;
    if (best.inner == 0 || static_cast<std::int64_t>(inner) * inner <= ranks)
      best = {ranks / inner, inner};
    known += concat(known.empty() ? "" : " or ", show({ranks / inner, inner}));
  }
  Degrees asked{options.outer, options.inner};
  if (asked.outer == 0 && asked.inner == 0) {
    if (best.inner != 0) return best;
    return Refusal{concat("no degrees that make up ", ranks, " ranks are legal"),
                   "another scheme, such as ring"};
  }
  if (asked.outer == 0 && ranks % asked.inner == 0) asked.outer = ranks / asked.inner;
  if (asked.inner == 0 && ranks % asked.outer == 0) asked.inner = ranks / asked.outer;
  if (static_cast<std::int64_t>(asked.outer) * asked.inner != ranks) {
    return Refusal{concat("degrees outer=", options.outer, ",inner=", options.inner,
                          " (0: not given) do not make up ", ranks, " ranks"),
                   known.empty() ? "another scheme, such as ring" : "degrees " + known,
                   SchemeOption::degrees};
  }
  if (!legal(asked)) {
    return Refusal{concat("degrees ", show(asked), " do not suit the heads"),
                   known.empty() ? "another scheme, such as ring" : "degrees " + known,
                   SchemeOption::degrees};
  }
  return asked;
}

std::optional<Degrees> automatic_degrees(const Combination& combination) {
  if (!reads(combination.options, SchemeOption::degrees)) return {};
  SchemeOptions none = combination.options;
  none.outer = none.inner = 0;
  const auto resolved = resolve_degrees(none, combination.ranks, [&](const Degrees& degrees) {
    Combination tried = combination;
    tried.options.outer = degrees.outer;
    tried.options.inner = degrees.inner;
    return !refuse(tried);
  });
  const Degrees* found = std::get_if<Degrees>(&resolved);
  return found ? std::optional(*found) : std::nullopt;
}

}  // namespace longhaul::parallel
