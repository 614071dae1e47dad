#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "launch/weight_source.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
namespace safetensors = runtime::safetensors;
using runtime::ExitCode;
using runtime::fail;
using safetensors::Element;
using safetensors::shown;

namespace {

constexpr std::size_t kMostTold = 12;

/// Buffers that old files hold and that follow from the configuration.
bool is_derived(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

bool is_computed_on(Element element) {
  return element == Element::f32 || element == Element::bf16 || element == Element::f16;
}

std::string sizes_text(std::span<const std::int64_t> sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

HfConfig read_config(const fs::path& folder) {
  const fs::path path = folder / kHfConfigName;
  return parse_hf_config(runtime::read_file(path, kMostHfConfigBytes), path.string());
}

[[noreturn]] void fail_with(const fs::path& path, const std::vector<std::string>& wrong) {
  std::string text = fmt::format("{}: {} with its tensors:", path.string(),
                                 runtime::counted(std::ssize(wrong), "problem"));
  for (std::size_t i = 0; i < std::min(wrong.size(), kMostTold); ++i) text += "\n  " + wrong[i];
  if (wrong.size() > kMostTold) text += fmt::format("\n  and {} more", wrong.size() - kMostTold);
  fail(ExitCode::data, text);
}

}  // namespace

HfFolder::HfFolder(const fs::path& folder)
    : path_(fs::absolute(folder).lexically_normal()),
      config_(read_config(folder)),
      weights_(folder) {}

std::string HfFolder::text() const {
  return fmt::format("{} in {} of a Hugging Face folder",
                     runtime::counted(std::ssize(weights_.tensors()), "tensor"),
                     runtime::counted(std::ssize(weights_.files()), "file"));
}

std::string HfFolder::digest() const {
  runtime::Digest digest;
  digest.update(config_.text);
  for (const safetensors::File& file : weights_.files()) {
    digest.update(fmt::format("\n{} {}", file.path().filename().string(), file.bytes()));
    for (const safetensors::Entry& entry : file.entries())
      digest.update(fmt::format("\n{} {} {} {}", entry.name, safetensors::name(entry.element),
                                sizes_text(entry.sizes), entry.begin));
  }
  return digest.hex();
}

std::optional<HfOrigin> HfFolder::origin() const {
  HfOrigin origin{path_.string(), config_.text, {}, weights_.index_text()};
  for (const safetensors::File& file : weights_.files()) {
    HfOrigin::File& kept = origin.files.emplace_back();
    kept.name = file.path().filename().string();
    kept.metadata = file.metadata();
    for (const safetensors::Entry& entry : file.entries()) {
      if (!is_derived(entry.name)) kept.tensors.push_back({entry.name, entry.element, {}});
    }
  }
  return origin;
}

std::vector<std::string> HfFolder::left_out() const {
  std::vector<std::string> names;
  for (const safetensors::Weights::Place& place : weights_.tensors()) {
    if (is_derived(place.entry->name)) names.push_back(place.entry->name);
  }
  return names;
}

/// A head that equals the embedding says nothing; one that does not would be lost.
void HfFolder::compare_head(const safetensors::Weights::Place& head,
                            const parallel::Parameter& embedding,
                            std::vector<std::string>& wrong) const {
  if (head.entry->sizes != embedding.sizes || !is_computed_on(head.entry->element)) {
    wrong.push_back(fmt::format("{} is {} {}, and tie_word_embeddings says that it is {}",
                                shown(kHeadName), safetensors::name(head.entry->element),
                                sizes_text(head.entry->sizes), shown(embedding.name)));
    return;
  }
  const std::int64_t row = row_elements(embedding);
  std::vector<float> a, b;
  for_each_rows(embedding, [&](std::int64_t begin, std::int64_t end) {
    a.resize(static_cast<std::size_t>((end - begin) * row));
    b.resize(a.size());
    read(embedding, begin, end, a);
    head.file->read_floats(*head.entry, begin * row, b);
    if (!wrong.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return;
    wrong.push_back(fmt::format(
        "{} differs from {}, and tie_word_embeddings says that they are one; set it to false in "
        "config.json to keep both, or take the head out",
        shown(kHeadName), shown(embedding.name)));
  });
}

void HfFolder::require(const parallel::ParameterTable& table) const {
  std::vector<std::string> wrong;
  const bool tied = model().tie_word_embeddings == true;
  for (const parallel::Parameter& parameter : table.parameters()) {
    const safetensors::Entry* entry = weights_.find(parameter.name).entry;
    if (entry == nullptr) {
      wrong.push_back(
          fmt::format("{} {} is missing", shown(parameter.name), sizes_text(parameter.sizes)));
    } else if (entry->sizes != parameter.sizes) {
      wrong.push_back(fmt::format("{} is {}; the configuration makes it {}", shown(parameter.name),
                                  sizes_text(entry->sizes), sizes_text(parameter.sizes)));
    } else if (!is_computed_on(entry->element)) {
      wrong.push_back(fmt::format("{} is {}; expected F32, BF16 or F16", shown(parameter.name),
                                  safetensors::name(entry->element)));
    }
  }
  std::vector<std::string> names;
  for (const parallel::Parameter& parameter : table.parameters()) names.push_back(parameter.name);
  std::ranges::sort(names);
  for (const safetensors::Weights::Place& place : weights_.tensors()) {
    const std::string& name = place.entry->name;
    if (is_derived(name) || std::ranges::binary_search(names, name)) continue;
    if (tied && name == kHeadName) {
      if (wrong.empty()) compare_head(place, table.parameters().front(), wrong);
    } else {
      wrong.push_back(fmt::format("{} {} is no tensor of this model", shown(name),
                                  sizes_text(place.entry->sizes)));
    }
  }
  for (const std::string& name : weights_.absent()) {
    if (!(tied && name == kHeadName) && !is_derived(name))
      wrong.push_back(
          fmt::format("{} is in {} and in no file", shown(name), safetensors::kIndexName));
  }
  for (const std::string& name : weights_.unlisted())
    wrong.push_back(
        fmt::format("{} lies in another file than {} says", shown(name), safetensors::kIndexName));
  if (!wrong.empty()) fail_with(path_, wrong);
}

void HfFolder::read(const parallel::Parameter& parameter, std::int64_t begin, std::int64_t end,
                    std::span<float> out) const {
  const safetensors::Weights::Place place = weights_.find(parameter.name);
  LONGHAUL_CHECK(place.entry != nullptr, "no tensor ", parameter.name);
  const std::int64_t row = row_elements(parameter);
  LONGHAUL_CHECK(std::ssize(out) == (end - begin) * row, "rows [", begin, ", ", end, ") of ",
                 parameter.name, " read to ", out.size(), " floats");
  place.file->read_floats(*place.entry, begin * row, out);
}

}  // namespace longhaul::launch
