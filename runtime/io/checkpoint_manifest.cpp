#include "runtime/io/checkpoint_manifest_impl.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/hash.h"

// How the manifest's parts look in JSON: objects of their fields.
namespace longhaul::runtime {

static void to_json(nlohmann::json& out, DType dtype) { out = name(dtype); }
static void from_json(const nlohmann::json& in, DType& dtype) {
  dtype = dtype_from_name(in.get<std::string>());
}
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointMetadata, step, tokens, cursor, optimizer_step, seed,
                                   config, corpus_digest, extra)

}  // namespace longhaul::runtime

namespace longhaul::runtime::checkpoint {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SliceEntry, file, dataset, start, count)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TensorEntry, name, dtype, sizes, slices)

namespace {

using nlohmann::json;

constexpr std::string_view kBodyBegin = "{\"body\": ";
constexpr std::string_view kDigestBegin = ",\n\"xxh3_128\": \"";
constexpr std::string_view kDigestEnd = "\"}\n";
constexpr std::size_t kDigestDigits = 32;
constexpr std::int64_t kMaxManifestBytes = std::int64_t{1} << 28;

/// The text before the digest, or Error(data).
std::string_view signed_text(const std::filesystem::path& path, std::string_view text) {
  const std::size_t tail = kDigestBegin.size() + kDigestDigits + kDigestEnd.size();
  const bool shaped = text.size() > tail + kBodyBegin.size() && text.starts_with(kBodyBegin) &&
                      text.ends_with(kDigestEnd) &&
                      text.substr(text.size() - tail, kDigestBegin.size()) == kDigestBegin;
  if (!shaped)
    fail(ExitCode::data, path.string(), ": is damaged or cut short: no digest at its end");
  const std::string_view digest =
      text.substr(text.size() - kDigestEnd.size() - kDigestDigits, kDigestDigits);
  const std::string_view body = text.substr(0, text.size() - tail);
  if (const std::string actual = xxh3_128(body); actual != digest) {
    fail(ExitCode::data, path.string(), ": is damaged: its digest is ", actual, ", it says ",
         digest);
  }
  return body;
}

void check_extents(const TensorEntry& tensor, const auto& bad) {
  if (tensor.sizes.empty() || tensor.sizes.size() > kMaxDims) {
    bad("tensor '", tensor.name, "' has ", tensor.sizes.size(), " dims; expected 1 to ", kMaxDims);
  }
  std::int64_t bytes = size_bytes(tensor.dtype);
  for (const std::int64_t size : tensor.sizes) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) {
      bad("tensor '", tensor.name, "' has a size of ", size);
    }
  }
  for (const SliceEntry& slice : tensor.slices) {
    if (slice.start.size() != tensor.sizes.size() || slice.count.size() != tensor.sizes.size()) {
      bad("a slice of tensor '", tensor.name, "' has the wrong number of dims");
    }
    for (std::size_t dim = 0; dim < tensor.sizes.size(); ++dim) {
      const std::int64_t start = slice.start[dim], count = slice.count[dim];
      if (start < 0 || count < 1 || count > tensor.sizes[dim] ||
          start > tensor.sizes[dim] - count) {
        bad("a slice of tensor '", tensor.name, "' spans ", start, " + ", count, " in dim ", dim,
            " of size ", tensor.sizes[dim]);
      }
    }
  }
}

std::int64_t elements(const std::vector<std::int64_t>& sizes) {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes) product *= size;
  return product;
}

bool overlap(const SliceEntry& a, const SliceEntry& b) {
  for (std::size_t dim = 0; dim < a.start.size(); ++dim) {
    if (a.start[dim] >= b.start[dim] + b.count[dim] ||
        b.start[dim] >= a.start[dim] + a.count[dim]) {
      return false;
    }
  }
  return true;
}

/// Disjoint slices whose elements add up to the tensor's cover it exactly.
void check_cover(const TensorEntry& tensor, const auto& bad) {
  std::vector<const SliceEntry*> order;
  std::int64_t covered = 0;
  for (const SliceEntry& slice : tensor.slices) {
    order.push_back(&slice);
    if (__builtin_add_overflow(covered, elements(slice.count), &covered)) {
      bad("slices of tensor '", tensor.name, "' overlap");
    }
  }
  std::ranges::sort(order, {}, [](const SliceEntry* slice) { return slice->start[0]; });
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::int64_t end = order[i]->start[0] + order[i]->count[0];
    for (std::size_t j = i + 1; j < order.size() && order[j]->start[0] < end; ++j) {
      if (overlap(*order[i], *order[j])) bad("slices of tensor '", tensor.name, "' overlap");
    }
  }
  if (covered != elements(tensor.sizes)) {
    bad("slices of tensor '", tensor.name, "' hold ", covered, " elements; it has ",
        elements(tensor.sizes));
  }
}

bool valid_file_name(const std::string& name, std::size_t rank, std::size_t ranks) {
  // One form only, so that no manifest can point outside its folder.
  return name == rank_file_name(static_cast<int>(rank), static_cast<int>(ranks));
}

}  // namespace

void tensors_to_json(const std::vector<TensorEntry>& tensors, json& out) { out = tensors; }
std::vector<TensorEntry> tensors_from_json(const json& list) {
  return list.get<std::vector<TensorEntry>>();
}

void check(const Manifest& manifest, ExitCode code, const std::string& where) {
  const auto bad = [&](const auto&... parts) { fail(code, where, ": ", parts...); };
  for (std::size_t index = 0; index < manifest.files.size(); ++index) {
    const FileEntry& file = manifest.files[index];
    if (!valid_file_name(file.name, index, manifest.files.size())) {
      bad("names file '", file.name, "'; expected '",
          rank_file_name(static_cast<int>(index), static_cast<int>(manifest.files.size())), "'");
    }
  }
  std::set<std::pair<std::int64_t, std::string>> datasets;
  const std::string* previous = nullptr;
  for (const TensorEntry& tensor : manifest.tensors) {
    if (!valid_tensor_name(tensor.name)) bad("tensor name '", tensor.name, "' is not allowed");
    if (previous != nullptr && !(*previous < tensor.name)) {
      bad("tensor '", tensor.name, "' is listed twice or out of order");
    }
    previous = &tensor.name;
    check_extents(tensor, bad);
    for (const SliceEntry& slice : tensor.slices) {
      if (slice.file < 0 || slice.file >= std::ssize(manifest.files)) {
        bad("tensor '", tensor.name, "' lies in file number ", slice.file, " of ",
            manifest.files.size());
      }
      if (!datasets.emplace(slice.file, slice.dataset).second) {
        bad("dataset '", slice.dataset, "' is used twice");
      }
    }
    check_cover(tensor, bad);
  }
}

std::string to_text(const Manifest& manifest) {
  json files = json::array();
  for (const FileEntry& file : manifest.files) {
    files.push_back(
        {{"name", file.name}, {"bytes", file.digest.bytes}, {"xxh3_128", file.digest.xxh3_128}});
  }
  json body{{"format_version", kCheckpointFormatVersion},
            {"metadata", manifest.metadata},
            {"files", std::move(files)}};
  tensors_to_json(manifest.tensors, body["tensors"]);
  try {
    std::string text(kBodyBegin);
    text += body.dump(1);
    const std::string digest = xxh3_128(text);
    return text.append(kDigestBegin).append(digest).append(kDigestEnd);
  } catch (const json::exception& error) {
    fail(ExitCode::internal, "checkpoint metadata cannot be written as JSON: ", error.what());
  }
}

Manifest from_text(const std::filesystem::path& path, const std::string& text) {
  const std::string_view with_prefix = signed_text(path, text);
  try {
    const json body = json::parse(with_prefix.substr(kBodyBegin.size()));
    const auto version = body.at("format_version").get<std::int64_t>();
    if (version != kCheckpointFormatVersion) {
      fail(ExitCode::data, path.string(), ": format_version is ", version,
           "; this build reads version ", kCheckpointFormatVersion);
    }
    Manifest manifest;
    body.at("metadata").get_to(manifest.metadata);
    for (const json& item : body.at("files")) {
      FileEntry& file = manifest.files.emplace_back();
      item.at("name").get_to(file.name);
      item.at("bytes").get_to(file.digest.bytes);
      item.at("xxh3_128").get_to(file.digest.xxh3_128);
    }
    manifest.tensors = tensors_from_json(body.at("tensors"));
    check(manifest, ExitCode::data, path.string());
    return manifest;
  } catch (const json::exception& error) {
    fail(ExitCode::data, path.string(), ": is not a manifest: ", error.what());
  } catch (const Error& error) {
    if (error.code() == ExitCode::data) throw;
    fail(ExitCode::data, path.string(), ": ", error.what());  // e.g. an unknown dtype
  }
}

bool valid_tensor_name(std::string_view name) {
  return !name.empty() && name.size() <= 200 && name != "." && name != ".." &&
         std::ranges::all_of(name, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

hdf5::Element element_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return hdf5::Element::float32;
    case DType::bfloat16:
      return hdf5::Element::uint16;
    case DType::float64:
      return hdf5::Element::float64;
    case DType::int32:
      return hdf5::Element::int32;
    case DType::int64:
      return hdf5::Element::int64;
    case DType::uint8:
      return hdf5::Element::uint8;
  }
  fail(ExitCode::internal, "dtype without an HDF5 element");
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestName;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path))) {
    fail(ExitCode::data, path.string(), ": is missing");
  }
  return from_text(path, read_file(path, kMaxManifestBytes, false));
}

void check_file_size(const std::filesystem::path& folder, const FileEntry& entry) {
  const std::filesystem::path path = folder / entry.name;
  const auto status = std::filesystem::symlink_status(path);
  if (!std::filesystem::exists(status)) fail(ExitCode::data, path.string(), ": is missing");
  if (!std::filesystem::is_regular_file(status)) {
    fail(ExitCode::data, path.string(), ": is not a regular file");
  }
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  if (bytes != entry.digest.bytes) {
    fail(ExitCode::data, path.string(), ": holds ", bytes, " bytes; the manifest says ",
         entry.digest.bytes);
  }
}

void verify_file(const std::filesystem::path& folder, const FileEntry& entry) {
  check_file_size(folder, entry);
  const std::filesystem::path path = folder / entry.name;
  if (const FileDigest digest = digest_file(path); digest != entry.digest) {
    fail(ExitCode::data, path.string(), ": is damaged: its XXH3-128 is ", digest.xxh3_128,
         ", the manifest says ", entry.digest.xxh3_128);
  }
}

}  // namespace longhaul::runtime::checkpoint
