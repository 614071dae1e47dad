// From a file and overrides to a draft: which keys are known, where each value came from.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "runtime/config/draft.h"
#include "runtime/config/suggest.h"
#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kMaxConfigBytes = 1 << 20;

std::string read_config_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) {
    text.resize(kMaxConfigBytes + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<std::streamsize>(0, file.gcount())));
  }
  if (!file.is_open() || file.bad() || (file.fail() && !file.eof())) {
    const int code = errno;
    fail(ExitCode::config, path, ": cannot be read", code != 0 ? ": " : "",
         code != 0 ? std::strerror(code) : "");
  }
  if (text.size() > kMaxConfigBytes) {
    fail(ExitCode::config, path, ": larger than ", kMaxConfigBytes,
         " bytes; this is no configuration");
  }
  return text;
}

std::vector<std::string> key_names(const ConfigSchema& schema, const std::string& section) {
  std::vector<std::string> names;
  for (const ConfigKey& key : schema.keys()) {
    if (section == key.section) names.emplace_back(key.name);
  }
  return names;
}

// A key of exactly this name in some section; nullptr when there is none.
const ConfigKey* key_of_name(const ConfigSchema& schema, const std::string& name) {
  for (const ConfigKey& key : schema.keys()) {
    if (name == key.name) return &key;
  }
  return nullptr;
}

// Nothing for a word that is like none: a far one would only mislead.
std::string suggestion_text(const Suggestion& near) {
  return near.close ? fmt::format("; did you mean '{}'?", near.word) : "; no key has such a name";
}

// Where what stands under this name in a section (empty: in none) belongs: "; it belongs in
// [data]". Empty when nobody says so.
std::string directions(ConfigDraft& draft, const std::string& section, const std::string& name) {
  const auto [synonym, of_this_section] = draft.schema().synonyms().find_key(section, name);
  const ConfigKey* same = key_of_name(draft.schema(), name);
  if (same != nullptr && !of_this_section) {
    draft.excuse(same->path());
    return fmt::format("; it belongs in [{}]", same->section);
  }
  if (synonym == nullptr) return "";
  if (*synonym->path == '\0') return fmt::format("; {}", synonym->note);
  const ConfigKey* key = draft.schema().find(synonym->path);
  LONGHAUL_CHECK(key != nullptr, "the synonym ", name, " leads to ", synonym->path);
  // A key of that name in the section itself is rather the one that was meant.
  if (const ConfigKey* own = draft.schema().find(section, key->name); own != nullptr) key = own;
  draft.excuse(key->path());
  return fmt::format("; here it is called '{}'{}{}{}", key->name,
                     section == key->section ? "" : fmt::format(" in [{}]", key->section),
                     *synonym->note != '\0' ? ": " : "", synonym->note);
}

void report_unknown_key(ConfigDraft& draft, const std::string& section, const std::string& name,
                        const ConfigPlace& place) {
  const std::string start = fmt::format("unknown key '{}' in [{}]", name, section);
  if (const std::string text = directions(draft, section, name); !text.empty()) {
    draft.problem(place, start + text);
    return;
  }
  const Suggestion near = nearest(name, key_names(draft.schema(), section));
  if (near.close) {
    draft.excuse(section + "." + near.word);
  } else {  // a key of another section may be the one that was meant
    for (const ConfigKey& key : draft.schema().keys()) {
      const std::vector<std::string> candidate = {key.name};
      const Suggestion other = nearest(name, candidate);
      if (!other.close || other.distance >= near.distance) continue;
      draft.excuse(key.path());
      draft.problem(place,
                    fmt::format("{}; did you mean '{}' in [{}]?", start, key.name, key.section));
      return;
    }
  }
  draft.problem(place, start + suggestion_text(near));
}

// Returns the known section that was probably meant, or an empty text.
std::string report_unknown_section(ConfigDraft& draft, const std::string& name,
                                   const ConfigPlace& place) {
  if (const auto* synonym = draft.schema().synonyms().find_section(name)) {
    draft.problem(
        place, fmt::format("unknown section [{}]; here it is called [{}]", name, synonym->section));
    return synonym->section;
  }
  const Suggestion near = nearest(name, draft.schema().sections());
  std::string hint;
  if (near.close) {
    hint = fmt::format("; did you mean [{}]?", near.word);
  } else {
    for (const std::string& known : draft.schema().sections())
      hint += fmt::format("{}[{}]", hint.empty() ? "; there are " : ", ", known);
  }
  draft.problem(place, fmt::format("unknown section [{}]{}", name, hint));
  return near.close ? near.word : "";
}

bool known_section(const ConfigDraft& draft, const std::string& name) {
  return std::ranges::count(draft.schema().sections(), name) != 0;
}

void report_stray_value(ConfigDraft& draft, const TomlSection& section, const ConfigPlace& place) {
  if (known_section(draft, section.name)) {
    draft.problem(place,
                  fmt::format("'{}' is a section: expected [{}] and its keys, got {}", section.name,
                              section.name, describe_type(*section.stray_value)));
  } else if (const std::string text = directions(draft, "", section.name); !text.empty()) {
    draft.problem(place, fmt::format("key '{}' outside of a section{}", section.name, text));
  } else {
    std::vector<std::string> names;
    for (const ConfigKey& known : draft.schema().keys()) names.push_back(known.path());
    draft.problem(place, fmt::format("unknown key '{}' outside of a section{}", section.name,
                                     suggestion_text(nearest(section.name, names))));
  }
}

void take_section(ConfigDraft& draft, const TomlSection& section) {
  const ConfigPlace place = draft.in_file(section.position);
  if (section.stray_value) return report_stray_value(draft, section, place);
  if (!known_section(draft, section.name)) {
    const std::string meant = report_unknown_section(draft, section.name, place);
    for (const TomlEntry& entry : section.entries) draft.excuse(meant + "." + entry.key);
    return;
  }
  draft.note_section(section.name, place);
  for (const TomlEntry& entry : section.entries) {
    const std::string path = section.name + "." + entry.key;
    if (known_section(draft, path)) {
      TomlSection inner{path, entry.key_position, std::nullopt, {}};
      if (const auto* table = std::get_if<TomlTable>(&entry.value.value)) {
        inner.entries = *table;
      } else {
        inner.stray_value = entry.value;
      }
      take_section(draft, inner);
    } else if (draft.schema().find(section.name, entry.key) != nullptr ||
               draft.schema().is_retired(path)) {
      draft.set(path, entry.value, draft.in_file(entry.value.position));
    } else {
      report_unknown_key(draft, section.name, entry.key, draft.in_file(entry.key_position));
    }
  }
}

bool is_text(const ConfigSlot& slot) {
  return std::holds_alternative<std::string*>(slot) ||
         std::holds_alternative<std::optional<std::string>*>(slot);
}

void take_override(ConfigDraft& draft, const std::string& text, std::size_t order) {
  const ConfigPlace place{order, {}, "--set " + text};
  const auto equals = text.find('=');
  const auto dot = text.substr(0, equals).rfind('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
    const std::string name = text.substr(0, equals);
    draft.problem(place, "expected section.key=value" + directions(draft, "", name));
    return;
  }
  const std::string section = text.substr(0, dot);
  const std::string name = text.substr(dot + 1, equals - dot - 1);
  const std::string raw = text.substr(equals + 1);
  const ConfigKey* key = draft.schema().find(section, name);
  const std::string path = section + "." + name;
  if (!known_section(draft, section)) {
    report_unknown_section(draft, section, place);
  } else if (key == nullptr && !draft.schema().is_retired(path)) {
    report_unknown_key(draft, section, name, place);
  } else if (raw.empty()) {
    draft.problem(place, "no value after '='");
  } else {
    std::string syntax;
    std::optional<TomlValue> value = parse_toml_value(raw, &syntax);
    const bool takes_text = key != nullptr && is_text(key->slot(draft.configuration()));
    if (!value && !takes_text && syntax.ends_with(kBeyond64Bits)) {
      draft.excuse(path);
      draft.problem(place, fmt::format("{}: {}", path, syntax));
      return;
    }
    // Bare words are strings, and so is anything for a key that takes a string: a folder named
    // 2026.
    if (!value || (takes_text && !std::holds_alternative<std::string>(value->value))) {
      value = TomlValue{raw, {}};
    }
    draft.set(path, std::move(*value), place);
  }
}

void read_text(ConfigDraft& draft, const std::string& text,
               const std::vector<std::string>& overrides, bool stored) {
  const auto parsed = parse_toml(text);
  const auto* syntax_error = std::get_if<TomlSyntaxError>(&parsed);
  if (syntax_error != nullptr) {
    draft.problem(draft.in_file(syntax_error->position), syntax_error->message);
  } else {
    for (const TomlSection& section : std::get<std::vector<TomlSection>>(parsed)) {
      take_section(draft, section);
    }
  }
  for (std::size_t i = 0; i < overrides.size(); ++i) take_override(draft, overrides[i], i + 1);
  if (syntax_error == nullptr) draft.fill(stored);  // otherwise most keys were never seen
}

}  // namespace

void read_config(ConfigDraft& draft, const std::vector<std::string>& overrides) {
  read_config_text(draft, read_config_file(draft.file()), overrides);
}

void read_config_text(ConfigDraft& draft, const std::string& text,
                      const std::vector<std::string>& overrides) {
  read_text(draft, text, overrides, false);
}

void read_stored_config(ConfigDraft& draft, const std::string& text) {
  read_text(draft, text, {}, true);
}

}  // namespace longhaul::runtime
