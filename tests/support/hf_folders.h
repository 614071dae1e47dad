#pragma once
// Small Hugging Face folders, made by hand, and what is in them.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/io/safetensors.h"

namespace longhaul::test {

/// A Llama of two layers, vocabulary 31, as transformers wrote its config.json before version 5;
/// `changes`: keys in JSON, an empty value takes one out.
std::string llama_config(const std::map<std::string, std::string>& changes = {});
/// `text` with such changes.
std::string changed(const std::string& text, const std::map<std::string, std::string>& changes);

/// A tensor to be written, of values that follow from its name.
struct HfTensor {
  std::string name;
  std::vector<std::int64_t> sizes;
  runtime::safetensors::Element element = runtime::safetensors::Element::f32;
  std::string values_of = "";  ///< another name whose values it has
};
/// Those of llama_config(), with the head, by their published names.
std::vector<HfTensor> llama_tensors();

/// One safetensors file.
void write_safetensors(const std::filesystem::path& path, const std::vector<HfTensor>& tensors,
                       const runtime::safetensors::Metadata& metadata = {{{"format", "pt"}}});
/// A folder of config.json, model.safetensors and a tokenizer's files.
void write_hf_folder(const std::filesystem::path& folder, const std::string& config,
                     const std::vector<HfTensor>& tensors);
/// The same with tensors dealt in turn to so many files, and an index of an older version.
void write_sharded_folder(const std::filesystem::path& folder, const std::string& config,
                          const std::vector<HfTensor>& tensors, std::size_t files);

/// Names and contents of a folder's files, but README.md.
std::map<std::string, std::string> contents_of(const std::filesystem::path& folder);

}  // namespace longhaul::test
