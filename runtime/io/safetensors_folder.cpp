#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/json_reader_impl.h"
#include "runtime/io/safetensors_impl.h"

namespace longhaul::runtime::safetensors {

/// Which file holds which tensor, as the index says.
struct Weights::Index {
  std::map<std::string, std::int64_t> files;  // by name, numbered as they come
  struct Listed {
    std::string tensor;
    std::int64_t file = 0;
  };
  std::vector<Listed> tensors;  // sorted by name
  static Index read(const FileHandle& file);

 private:
  void read_weight_map(JsonReader& json);
};

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostIndexBytes = std::int64_t{16} << 20;

bool there(const fs::path& path) {
  std::error_code ignored;  // what cannot be asked for is not there
  return fs::exists(path, ignored);
}

/// Only files of the folder itself: an index cannot point elsewhere.
bool valid_file_name(std::string_view name) {
  return name.ends_with(".safetensors") && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

[[noreturn]] void refuse_without(const fs::path& folder) {
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (there(folder / other)) {
      fail(ExitCode::data, folder.string(), ": holds ", other,
           ", which can run code and is not read; save the model again as safetensors");
    }
  }
  fail(ExitCode::data, folder.string(), ": holds neither ", kWeightsName, " nor ", kIndexName);
}

std::string_view tensor_name(const Weights::Place& place) { return place.entry->name; }

}  // namespace

void Weights::Index::read_weight_map(JsonReader& json) {
  std::int64_t kept = 0;
  const auto left = [&] { return (kMostKeptBytes - kept) / 3; };
  json.object(left(), [&](std::string tensor) {
    kept += kept_bytes(tensor) + 3 * static_cast<std::int64_t>(sizeof(Listed));
    const std::string file = json.string(left());
    if (!valid_file_name(file)) {
      json.refuse("tensor ", shown(tensor), " is said to lie in ", shown(file),
                  "; expected the name of a .safetensors file of the same folder");
    }
    const auto [at, is_new] = files.emplace(file, std::ssize(files));
    if (is_new) kept += kept_bytes(file) + 3 * static_cast<std::int64_t>(sizeof *at);
    tensors.push_back({std::move(tensor), at->second});
    if (kept > kMostKeptBytes) {
      json.refuse("what weight_map lists takes more than ", kMostKeptBytes, " bytes of memory");
    }
  });
  if (tensors.empty()) json.refuse("weight_map names no tensor");
  std::ranges::sort(tensors, {}, &Listed::tensor);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &Listed::tensor);
  if (twice != tensors.end()) {
    json.refuse("weight_map has tensor ", shown(twice->tensor), " twice");
  }
}

Weights::Index Weights::Index::read(const FileHandle& file) {
  const std::int64_t bytes = file.size();
  if (bytes > kMostIndexBytes) {
    fail(ExitCode::data, file.path().string(), ": holds ", bytes, " bytes; at most ",
         kMostIndexBytes, " are read");
  }
  JsonReader json(file, 0, bytes, "index");
  Index index;
  bool metadata = false, weight_map = false;
  json.object(std::int64_t{1} << 10, [&](const std::string& key) {
    if (key == "metadata") {
      if (std::exchange(metadata, true)) json.refuse("metadata is there twice");
      if (json.peek() != '{') json.refuse("expected an object as metadata");
      json.skip_value();
    } else if (key == "weight_map") {
      if (std::exchange(weight_map, true)) json.refuse("weight_map is there twice");
      index.read_weight_map(json);
    } else {
      json.skip_value();
    }
  });
  json.expect_end();
  if (!metadata) json.refuse("there is no metadata, which other readers need");
  if (!weight_map) json.refuse("there is no weight_map");
  return index;
}

Weights::Weights(const fs::path& folder) {
  std::error_code ignored;  // what cannot be asked for is no folder
  if (!fs::is_directory(folder, ignored)) {
    fail(ExitCode::io, folder.string(), ": is no folder; expected one with ", kWeightsName);
  }
  const bool single = there(folder / kWeightsName);
  Index index;
  if (there(folder / kIndexName)) {
    index = Index::read(FileHandle::read(folder / kIndexName));
    index_text_ = read_file(folder / kIndexName, kMostIndexBytes);
    if (single && !index.files.contains(kWeightsName)) {
      fail(ExitCode::data, folder.string(), ": holds ", kWeightsName, " and ", kIndexName,
           ", which does not name it: two models. Move one of them elsewhere");
    }
  } else if (single) {
    index.files.emplace(kWeightsName, 0);
  } else {
    refuse_without(folder);
  }
  files_.reserve(index.files.size());
  for (const auto& [name, number] : index.files) {
    if (!there(folder / name)) {
      fail(ExitCode::data, (folder / kIndexName).string(), ": names the file ", shown(name),
           ", which is not in the folder; fetch it, or all of the folder again");
    }
    files_.emplace_back(folder / name);
  }
  for (const File& file : files_) {
    for (const Entry& entry : file.entries()) tensors_.push_back({&file, &entry});
  }
  std::ranges::sort(tensors_, {}, tensor_name);
  if (const auto twice = std::ranges::adjacent_find(tensors_, {}, tensor_name);
      twice != tensors_.end()) {
    fail(ExitCode::data, folder.string(), ": tensor ", shown(twice->entry->name), " lies in ",
         twice[0].file->path().filename().string(), " and in ",
         twice[1].file->path().filename().string());
  }
  if (index_text_) compare(index);
}

void Weights::compare(const Index& index) {
  // Files are numbered as the index names them first, and both lists are sorted by name.
  std::vector<const File*> numbered(files_.size());
  for (std::size_t at = 0; const auto& [name, number] : index.files) {
    numbered[static_cast<std::size_t>(number)] = &files_[at++];
  }
  const auto said = [&](const Index::Listed& item) {
    return numbered[static_cast<std::size_t>(item.file)];
  };
  for (const Index::Listed& item : index.tensors) {
    if (find(item.tensor).file != said(item)) absent_.push_back(item.tensor);
  }
  for (const Place& place : tensors_) {
    const auto at =
        std::ranges::lower_bound(index.tensors, tensor_name(place), {}, &Index::Listed::tensor);
    const bool listed = at != index.tensors.end() && at->tensor == tensor_name(place);
    if (!listed || said(*at) != place.file) unlisted_.push_back(place.entry->name);
  }
}

Weights::Place Weights::find(std::string_view name) const {
  const auto at = std::ranges::lower_bound(tensors_, name, {}, tensor_name);
  return at != tensors_.end() && at->entry->name == name ? *at : Place{};
}

std::vector<Shard> deal_to_shards(std::span<const TensorInfo> tensors, std::int64_t most_bytes) {
  LONGHAUL_CHECK(most_bytes > 0, "shards of at most ", most_bytes, " bytes");
  std::vector<Shard> shards;
  Shard open;
  std::int64_t open_bytes = 0;
  for (const TensorInfo& tensor : tensors) {
    const std::int64_t bytes = tensor.bytes();
    if (bytes > most_bytes) {
      shards.push_back({"", {tensor}});
      continue;
    }
    if (open_bytes > most_bytes - bytes) {
      shards.push_back(std::exchange(open, {}));
      open_bytes = 0;
    }
    open.tensors.push_back(tensor);
    open_bytes += bytes;
  }
  if (!open.tensors.empty() || shards.empty()) shards.push_back(std::move(open));
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1
                         ? kWeightsName
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::string index_text(std::span<const Shard> shards) {
  nlohmann::json weight_map = nlohmann::json::object();
  std::int64_t elements = 0, bytes = 0;
  for (const Shard& shard : shards) {
    for (const TensorInfo& tensor : shard.tensors) {
      weight_map[tensor.name] = shard.file;
      elements += tensor.elements();
      bytes += tensor.bytes();
    }
  }
  const nlohmann::json index{{"metadata", {{"total_parameters", elements}, {"total_size", bytes}}},
                             {"weight_map", std::move(weight_map)}};
  constexpr int kIndent = 2;
  try {
    return index.dump(kIndent, ' ', true) + '\n';  // ASCII: others are escaped
  } catch (const nlohmann::json::exception& error) {
    fail(ExitCode::data, "an index of shards cannot be written: ", error.what());
  }
}

}  // namespace longhaul::runtime::safetensors
