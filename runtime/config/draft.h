#pragma once
// A configuration being loaded: its values so far, where each came from, and what is wrong with it.
// Rooms to the right add their rules to it, so that all problems are shown together.

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "runtime/config/config.h"
#include "runtime/config/schema.h"
#include "runtime/config/toml_document.h"

namespace longhaul::runtime {

/// A place in the file, or an override (order counts them from 1).
struct ConfigPlace {
  std::size_t override_order = 0;
  TextPosition position;
  std::string text;  ///< "file:line:column" or "--set section.key=value"
};

class ConfigDraft {
 public:
  explicit ConfigDraft(std::string file) : file_(std::move(file)) {}

  TrainConfig config;

  ConfigPlace in_file(TextPosition position) const;
  /// Later calls for a section or key win.
  void note_section(const std::string& section, const ConfigPlace& place);
  void set(const ConfigKey& key, TomlValue value, const ConfigPlace& place);
  /// A required key whose absence another problem already explains.
  void excuse(const std::string& path) { excused_.insert(path); }

  /// Defaults, then what was set; reports wrong types, values and missing keys.
  void fill();
  bool is_set(const std::string& path) const { return values_.contains(path); }
  /// All of these keys have good values, so a rule over them can be judged. Never where the file is
  /// no TOML.
  bool good(std::initializer_list<const char*> paths) const;

  /// Adds a problem at a place.
  void problem(const ConfigPlace& place, const std::string& message);
  /// Adds "path = value: message" at the key, or at its section when the file does not give the
  /// key.
  void key_problem(const std::string& path, const std::string& value, const std::string& message);
  /// Throws Error(config) if there are problems, with all of them, one a line, in file order and
  /// then override order.
  void check() const;

 private:
  struct SetValue {
    TomlValue value;
    ConfigPlace place;
  };
  struct Problem {
    ConfigPlace place;
    std::string message;
  };
  ConfigPlace place_of(const std::string& path) const;

  std::string file_;
  bool filled_ = false;
  std::map<std::string, ConfigPlace> sections_;
  std::map<std::string, SetValue> values_;
  std::set<std::string> bad_, excused_;
  std::vector<Problem> problems_;
};

/// Reads the file, applies the overrides ("section.key=value", later ones win) and judges every key
/// and the rules over several. With `world_size` the grid must fill it exactly, and a
/// context_parallel_degree of -1 is resolved. Touches nothing on disk. Problems stay in the draft
/// until its check(); throws Error(config) for a file that cannot be read.
ConfigDraft read_config(const std::string& path, const std::vector<std::string>& overrides,
                        std::optional<std::int64_t> world_size = std::nullopt);

/// Cross-key rules over the keys that are good (rules.cpp).
void check_rules(ConfigDraft& draft, std::optional<std::int64_t> world_size);

}  // namespace longhaul::runtime
