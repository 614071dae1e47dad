#include "launch/hf_origin.h"

#include <algorithm>

#include "launch/hf_json_impl.h"
#include "runtime/error.h"

namespace longhaul::launch {

using runtime::ExitCode;
using runtime::fail;
namespace safetensors = runtime::safetensors;

namespace {

/// Of those that we compute on.
constexpr safetensors::Element kElements[] = {safetensors::Element::f32, safetensors::Element::bf16,
                                              safetensors::Element::f16};

safetensors::Element element_named(const std::string& name) {
  const auto found = std::ranges::find_if(
      kElements, [&](safetensors::Element element) { return name == safetensors::name(element); });
  if (found == std::end(kElements)) fail(ExitCode::data, "element type '", name, "' is unknown");
  return *found;
}

HfOrigin::File file_of(const HfJson& json) {
  HfOrigin::File file;
  file.name = json.at("name").get<std::string>();
  // It is written again, inside of a folder and nowhere else.
  if (file.name.find('/') != file.name.npos || !file.name.ends_with(".safetensors"))
    fail(ExitCode::data, "'", file.name, "' is the name of no file of weights");
  if (const HfJson& metadata = json.at("metadata"); !metadata.is_null()) {
    file.metadata.emplace();
    for (const auto& [name, value] : metadata.items())
      file.metadata->push_back({name, value.get<std::string>()});
  }
  for (const auto& [name, element] : json.at("tensors").items())
    file.tensors.push_back({name, element_named(element.get<std::string>()), {}});
  return file;
}

}  // namespace

std::string to_text(const HfOrigin& origin) {
  HfJson files = HfJson::array();
  for (const HfOrigin::File& file : origin.files) {
    HfJson::object_t tensors;
    for (const safetensors::TensorInfo& tensor : file.tensors)
      tensors.emplace_back(tensor.name, safetensors::name(tensor.element));
    HfJson metadata;
    if (file.metadata) {
      metadata = HfJson::object();
      for (const auto& [name, value] : *file.metadata) metadata[name] = value;
    }
    HfJson entry = HfJson::object({{"name", file.name}, {"metadata", std::move(metadata)}});
    entry["tensors"] = std::move(tensors);
    files.push_back(std::move(entry));
  }
  const HfJson json = HfJson::object({{"folder", origin.folder},
                                      {"config", origin.config},
                                      {"index", origin.index ? HfJson(*origin.index) : HfJson()},
                                      {"files", std::move(files)}});
  return json.dump(-1, ' ', false, HfJson::error_handler_t::replace);
}

std::optional<HfOrigin> origin_of(const std::map<std::string, std::string>& extra,
                                  const std::string& path) {
  const auto found = extra.find(kOriginKey);
  if (found == extra.end()) return std::nullopt;
  try {
    const HfJson json = HfJson::parse(found->second);
    HfOrigin origin;
    origin.folder = json.at("folder").get<std::string>();
    origin.config = json.at("config").get<std::string>();
    if (!json.at("index").is_null()) origin.index = json.at("index").get<std::string>();
    for (const HfJson& file : json.at("files")) origin.files.push_back(file_of(file));
    return origin;
  } catch (const std::exception& error) {
    fail(ExitCode::data, path, ": what it says of the folder that its weights come from cannot be ",
         "read: ", error.what());
  }
}

}  // namespace longhaul::launch
