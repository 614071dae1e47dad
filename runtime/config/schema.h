#pragma once
// A schema: every key of a program's configuration, declared once. Loading, checking, printing and
// the reference table all walk it. The program owns the structs that the values live in.

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/dtype.h"

namespace longhaul::runtime {

/// What a program's configuration derives from: a struct with a struct a section.
struct Configuration {};

/// One of the key's choices, or an integer.
struct WordOrInteger {
  std::string word;          ///< empty: the integer counts
  std::int64_t integer = 0;  ///< 0 beside a word
  bool operator==(const WordOrInteger&) const = default;
};

/// A list of tables that have the same keys, the columns of the key that the list is
/// (ConfigKey::columns).
class ConfigTables {
 public:
  virtual ~ConfigTables() = default;
  virtual std::int64_t size() const = 0;
  virtual void resize(std::int64_t size) = 0;
  /// What the columns' slots are of.
  virtual Configuration& row(std::int64_t index) = 0;

 protected:
  ConfigTables() = default;
  ConfigTables(const ConfigTables&) = default;
  ConfigTables& operator=(const ConfigTables&) = default;
};

/// The same as a vector; Row derives from Configuration.
template <class Row>
struct ConfigRows final : ConfigTables {
  std::vector<Row> rows;

  std::int64_t size() const override { return static_cast<std::int64_t>(rows.size()); }
  void resize(std::int64_t size) override { rows.resize(static_cast<std::size_t>(size)); }
  Configuration& row(std::int64_t index) override {
    return rows.at(static_cast<std::size_t>(index));
  }
};

/// Where a key's value lives; its alternative is the key's type. Choices and bounds of a list hold
/// for each element.
using ConfigSlot =
    std::variant<std::int64_t*, double*, bool*, std::string*, DType*, WordOrInteger*,
                 std::optional<std::int64_t>*, std::optional<double>*, std::optional<bool>*,
                 std::optional<std::string>*, std::vector<std::string>*, std::vector<std::int64_t>*,
                 std::vector<double>*, ConfigTables*>;

/// What it means for work that goes on from a stored state, made under another value of a key.
enum class OnResume {
  meaning,  ///< the state would mean something else: refused
  run,      ///< the run goes on in another way: told
  free      ///< the run goes on as before: not worth a word
};

struct ConfigKey {
  const char* section;  ///< "model"; "model.linear_attn_config" for a table in a section
  const char* name;
  /// Of a configuration of the type that the schema is about.
  ConfigSlot (*slot)(Configuration&);
  OnResume on_resume = OnResume::meaning;
  /// A TOML value: what held before the key existed, where that is not the default; for states that
  /// were stored then.
  std::optional<std::string> before_it_existed = std::nullopt;
  std::string explanation;
  /// A TOML value; nullopt with `derived_default` empty: the key is required.
  std::optional<std::string> default_value = std::nullopt;
  /// How an absent key gets its value from others; empty for none.
  std::string derived_default = "";
  std::vector<std::string> choices = {};  ///< of strings and dtypes; empty: anything
  bool is_path = false;                   ///< a string whose ~ and $NAME are expanded (expand.h)
  /// Texts that might be tried and why they are no choice; for errors only.
  std::vector<std::pair<std::string, std::string>> not_choices = {};
  /// Numbers: inclusive bounds. `also` is one more legal value (such as -1).
  double minimum = std::numeric_limits<double>::lowest();
  double maximum = std::numeric_limits<double>::max();
  bool above_minimum = false;  ///< the minimum itself is excluded
  bool below_maximum = false;
  std::optional<std::int64_t> also = std::nullopt;
  /// Of a list of tables: the keys of each, whose section is not used.
  std::vector<ConfigKey> columns = {};

  bool required() const { return !default_value && derived_default.empty(); }
  /// "section.key".
  std::string path() const;
};

/// Words of other programs and what they are called here. They are named in errors, never accepted.
struct ConfigSynonyms {
  /// Words are in lower case, with _ for - and a space between them.
  struct Key {
    const char* path;  ///< of the key that they mean; "" where there is none: the note says why
    /// "section.word" where a word means it in one section only.
    const char* words;
    const char* note = "";  ///< where the two do not mean quite the same
  };
  struct Section {
    const char* section;
    const char* words;
  };
  std::span<const Key> keys = {};
  std::span<const Section> sections = {};

  /// What stands in `section` (empty: outside of any) under this name; nullptr for nothing.
  struct Found {
    const Key* key = nullptr;
    bool of_this_section = false;  ///< not as a word that means the same everywhere
  };
  Found find_key(std::string_view section, std::string_view name) const;
  const Section* find_section(std::string_view name) const;
};

/// Section, name and slot of a key, from one mention of the member of `config_`.
#define LONGHAUL_CONFIG_KEY(config_, section_, name_)                                             \
  .section = #section_, .name = #name_,                                                           \
  .slot = [](::longhaul::runtime::Configuration& configuration) {                                 \
    return ::longhaul::runtime::ConfigSlot(&static_cast<config_&>(configuration).section_.name_); \
  }

/// Name and slot of a column, from the member of the row type `row_`.
#define LONGHAUL_CONFIG_COLUMN(row_, name_)                                            \
  .section = "", .name = #name_, .slot = [](::longhaul::runtime::Configuration& row) { \
    return ::longhaul::runtime::ConfigSlot(&static_cast<row_&>(row).name_);            \
  }

class ConfigSchema {
 public:
  /// Keys of a section stand together. `retired`: paths of keys that exist no more; what a
  /// configuration gives them is kept for a rule of the program to answer (ConfigDraft::given).
  explicit ConfigSchema(std::vector<ConfigKey> keys, std::set<std::string> retired = {},
                        ConfigSynonyms synonyms = {});

  std::span<const ConfigKey> keys() const { return keys_; }
  /// nullptr when there is none.
  const ConfigKey* find(std::string_view section, std::string_view name) const;
  const ConfigKey* find(std::string_view path) const;
  bool is_retired(const std::string& path) const { return retired_.contains(path); }
  /// Section names in order.
  std::span<const std::string> sections() const { return sections_; }
  const ConfigSynonyms& synonyms() const { return synonyms_; }

 private:
  std::vector<ConfigKey> keys_;
  std::set<std::string> retired_;
  std::vector<std::string> sections_;
  ConfigSynonyms synonyms_;
};

/// "an integer of at least 1", "one of \"mpi\", \"loopback\"": what a value of this key must be.
std::string expectation(const ConfigKey& key, const ConfigSlot& slot);

/// A key's value in TOML; nullopt when it has none. The configuration is only read.
std::optional<std::string> value_text(const ConfigKey& key, Configuration& config);

/// Every key with its value, as TOML that loads to the same configuration. Canonical: equal
/// configurations give equal text. The configuration is only read.
std::string to_toml(const ConfigSchema& schema, Configuration& config);
/// The same as one JSON object, {"section": {"key": value}}.
std::string to_json(const ConfigSchema& schema, Configuration& config);
/// Markdown table of all keys: name, type, default and explanation. `config` is any that the schema
/// is about.
std::string config_reference(const ConfigSchema& schema, Configuration& config);

}  // namespace longhaul::runtime
