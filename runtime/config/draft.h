#pragma once
// A configuration being loaded: its values so far, where each came from, and what is wrong with it.
// A program derives its draft from this one and adds its rules, so that all problems are shown
// together.

#include <initializer_list>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

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
  /// `schema` outlives the draft.
  ConfigDraft(const ConfigSchema& schema, std::string file)
      : schema_(&schema), file_(std::move(file)) {}
  virtual ~ConfigDraft() = default;

  const ConfigSchema& schema() const { return *schema_; }
  const std::string& file() const { return file_; }
  /// Where values go: what the schema is about.
  virtual Configuration& configuration() = 0;

  ConfigPlace in_file(TextPosition position) const;
  /// Later calls for a section or key win.
  void note_section(const std::string& section, const ConfigPlace& place);
  void set(const std::string& path, TomlValue value, const ConfigPlace& place);
  /// A key that is missing, unless another problem explains that.
  void missing(const std::string& path);
  /// A required key whose absence another problem already explains.
  void excuse(const std::string& path) { excused_.insert(path); }

  /// Defaults, then what was set; reports wrong types, values and missing keys. `stored`: a key
  /// that is absent takes what held before it existed.
  void fill(bool stored = false);
  /// What the file or an override gives a key, good or not, retired or not; nullptr for nothing.
  const TomlValue* given(const std::string& path) const;
  bool is_set(const std::string& path) const { return given(path) != nullptr; }
  /// Nothing gives the key, and no problem says what was meant by it.
  bool is_absent(const std::string& path) const {
    return !is_set(path) && !excused_.contains(path);
  }
  /// All of these keys have good values, so a rule over them can be judged. Never where the file is
  /// no TOML.
  bool good(std::initializer_list<const char*> paths) const;
  /// Nothing is wrong so far.
  bool ok() const { return problems_.empty(); }

  /// Adds a problem at a place.
  void problem(const ConfigPlace& place, const std::string& message);
  /// Adds "path = value: message" at the key, or at its section when the file does not give the
  /// key.
  void key_problem(const std::string& path, const std::string& value, const std::string& message);
  /// The same of element `index` of a list, at the element.
  void element_problem(const std::string& path, std::size_t index, const std::string& message);
  /// The same of a list of words, whose element is none of `choices`.
  void unknown_word(const std::string& path, std::size_t index,
                    std::span<const std::string> choices);
  /// Throws Error(config) if there are problems, with all of them, one a line, in file order and
  /// then override order.
  void check() const;

 protected:
  ConfigDraft(const ConfigDraft&) = default;
  ConfigDraft(ConfigDraft&&) = default;

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
  /// What is wrong with a value that the draft holds, or with element "[2]" of it.
  void value_problem(const std::string& path, const TomlValue& value, const std::string& element,
                     const std::string& message);

  const ConfigSchema* schema_;
  std::string file_;
  bool filled_ = false;
  std::map<std::string, ConfigPlace> sections_;
  std::map<std::string, SetValue> values_;
  std::set<std::string> bad_, excused_;
  std::vector<Problem> problems_;
};

/// Paths of the keys in a file that the schema does not have, nor had.
std::vector<std::string> unknown_keys(const ConfigSchema& schema,
                                      std::span<const TomlSection> sections);

/// Reads the draft's file, applies the overrides ("section.key=value", later ones win) and judges
/// every key. Problems stay in the draft until its check(); throws Error(config) for a file that
/// cannot be read.
void read_config(ConfigDraft& draft, const std::vector<std::string>& overrides);
/// The same of a text that stands for the file.
void read_config_text(ConfigDraft& draft, const std::string& text,
                      const std::vector<std::string>& overrides = {});
/// The same of a text that this program, or an older one, has stored beside a state.
void read_stored_config(ConfigDraft& draft, const std::string& text);

}  // namespace longhaul::runtime
