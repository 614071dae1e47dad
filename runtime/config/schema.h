#pragma once
// The schema: every key of the configuration, declared once. Loading, checking, printing and the
// reference table all walk it.

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/config/config.h"

namespace longhaul::runtime {

/// Where a key's value lives; its alternative is the key's type.
using ConfigSlot = std::variant<std::int64_t*, double*, bool*, std::string*, DType*, Resume*,
                                std::optional<std::int64_t>*>;

struct ConfigKey {
  const char* section;
  const char* name;
  ConfigSlot (*slot)(TrainConfig&);
  const char* explanation;
  /// A TOML value; nullopt with `derived_default` empty: the key is required.
  std::optional<std::string> default_value = std::nullopt;
  /// How an absent key gets its value from others; empty for none.
  const char* derived_default = "";
  std::vector<std::string> choices = {};  ///< of strings and dtypes; empty: anything
  /// Texts that might be tried and why they are no choice; for errors only.
  std::vector<std::pair<std::string, std::string>> not_choices = {};
  /// Numbers: inclusive bounds. `also` is one more legal value (such as -1).
  double minimum = std::numeric_limits<double>::lowest();
  double maximum = std::numeric_limits<double>::max();
  bool above_minimum = false;  ///< the minimum itself is excluded
  bool below_maximum = false;
  std::optional<std::int64_t> also = std::nullopt;

  bool required() const { return !default_value && *derived_default == '\0'; }
  /// "section.key".
  std::string path() const;
};

std::span<const ConfigKey> config_schema();
/// nullptr when there is none.
const ConfigKey* find_config_key(std::string_view section, std::string_view name);
/// Section names in order.
std::span<const std::string> config_sections();

/// "an integer of at least 1", "one of \"mpi\", \"loopback\"": what a value of this key must be.
std::string expectation(const ConfigKey& key);

}  // namespace longhaul::runtime
