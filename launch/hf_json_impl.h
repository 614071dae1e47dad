#pragma once
// Private to the files about Hugging Face folders: their JSON, which is hostile until it is read.

#include <nlohmann/json.hpp>
#include <string>

#include "runtime/config/toml_document.h"

namespace longhaul::launch {

/// Names stay in the order of the text.
using HfJson = nlohmann::ordered_json;

/// The object that a text is. `where` names the text in errors. Throws Error(data) for what is no
/// JSON, no object, nested deeper than 32, or has an object of more than 4096 names or with one
/// twice.
HfJson parse_hf_json(const std::string& text, const std::string& where);

/// As what a key of a configuration is set to.
runtime::TomlValue toml_value(const HfJson& value);

/// Whether two values say the same: numbers by value, objects in any order.
bool same_json(const HfJson& a, const HfJson& b);
/// Sets a key of an object; one that says the same stays as it is written.
void put_json(HfJson& object, const std::string& key, const HfJson& value);

/// In a line of an error, shortened.
std::string shown_json(const HfJson& value);

}  // namespace longhaul::launch
