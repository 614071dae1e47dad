// A checkpoint becomes a Hugging Face folder: beside its place first, forced to the disk, read back
// and compared, then renamed.

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "launch/config_changes.h"
#include "launch/convert.h"
#include "launch/export_readme.h"
#include "launch/metrics.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
namespace safetensors = runtime::safetensors;
using runtime::ExitCode;
using runtime::fail;
using safetensors::Element;

namespace {

/// One file of weights to be written.
struct ShardPlan {
  std::string name;
  safetensors::Metadata metadata;
  std::vector<safetensors::TensorInfo> tensors;
};

struct ExportPlan {
  std::vector<ShardPlan> files;
  std::optional<std::string> index;
  std::string dtype;       ///< of most elements
  bool as_source = false;  ///< every element has the dtype that it had there
};

Element element_named(const std::string& dtype) {
  if (dtype == "float32") return Element::f32;
  if (dtype == "bfloat16") return Element::bf16;
  if (dtype == "float16") return Element::f16;
  fail(ExitCode::usage, "--dtype ", dtype, ": expected float32, bfloat16 or float16");
}

std::string dtype_named(Element element) {
  return element == Element::f32 ? "float32" : element == Element::bf16 ? "bfloat16" : "float16";
}

/// As a state dict has them: of a layer, attention, MLP, then norms.
std::vector<const parallel::Parameter*> in_state_order(const parallel::ParameterTable& table) {
  std::vector<const parallel::Parameter*> order;
  for (const parallel::Parameter& parameter : table.parameters()) order.push_back(&parameter);
  const auto rank = [](const parallel::Parameter* p) {
    const auto holds = [&](const char* part) { return p->name.find(part) != p->name.npos; };
    return std::pair(p->group, holds(".self_attn.") ? 0 : holds(".mlp.") ? 1 : 2);
  };
  std::ranges::stable_sort(order, {}, rank);
  return order;
}

/// The files of the folder that the weights come from, or those that transformers would write.
ExportPlan make_plan(const parallel::ParameterTable& table, const std::optional<HfOrigin>& origin,
                     const std::optional<std::string>& dtype) {
  ExportPlan plan;
  if (dtype) element_named(*dtype);
  if (!origin) {
    plan.dtype = dtype.value_or("float32");
    std::vector<safetensors::TensorInfo> tensors;
    for (const parallel::Parameter* parameter : in_state_order(table))
      tensors.push_back({parameter->name, element_named(plan.dtype), parameter->sizes});
    const std::vector<safetensors::Shard> shards = safetensors::deal_to_shards(tensors);
    for (const safetensors::Shard& shard : shards)
      plan.files.push_back({shard.file, {{{"format", "pt"}}}, shard.tensors});
    if (shards.size() > 1) plan.index = safetensors::index_text(shards);
    return plan;
  }
  plan.as_source = true;
  std::int64_t elements[3] = {0, 0, 0};  // of F32, BF16 and F16
  std::vector<safetensors::Shard> shards;
  for (const HfOrigin::File& file : origin->files) {
    ShardPlan& shard = plan.files.emplace_back(ShardPlan{file.name, file.metadata, file.tensors});
    for (safetensors::TensorInfo& tensor : shard.tensors) {
      // The one that is no parameter is the head of a tied embedding.
      tensor.sizes = tensor.name == kHeadName ? table.parameters().front().sizes
                                              : table.find(tensor.name).sizes;
      if (dtype && tensor.element != element_named(*dtype)) {
        tensor.element = element_named(*dtype);
        plan.as_source = false;
      }
      elements[tensor.element == Element::f32    ? 0
               : tensor.element == Element::bf16 ? 1
                                                 : 2] += tensor.elements();
    }
    shards.push_back({shard.name, shard.tensors});
  }
  const auto most = std::ranges::max_element(elements) - std::begin(elements);
  plan.dtype = dtype_named(most == 0 ? Element::f32 : most == 1 ? Element::bf16 : Element::f16);
  if (origin->index) plan.index = plan.as_source ? *origin->index : safetensors::index_text(shards);
  return plan;
}

/// The parameter whose values a tensor of the plan has.
const parallel::Parameter& values_of(const parallel::ParameterTable& table,
                                     const std::string& tensor) {
  for (const parallel::Parameter& parameter : table.parameters()) {
    if (parameter.name == tensor) return parameter;
  }
  return table.parameters().front();
}

/// Every parameter is in the plan, and nothing else but a head.
void require_complete(const CheckpointWeights& source, const parallel::ParameterTable& table,
                      const ExportPlan& plan) {
  std::set<std::string> names;
  for (const ShardPlan& file : plan.files) {
    for (const safetensors::TensorInfo& tensor : file.tensors) names.insert(tensor.name);
  }
  std::set<std::string> expected;
  for (const parallel::Parameter& parameter : table.parameters()) expected.insert(parameter.name);
  if (source.model().tie_word_embeddings == true && names.contains(kHeadName))
    expected.insert(kHeadName);
  if (names != expected)
    fail(ExitCode::data, source.path().string(),
         ": the folder that its weights come from held other tensors than its model has");
}

void write_weights(const fs::path& folder, const CheckpointWeights& source,
                   const parallel::ParameterTable& table, const ExportPlan& plan) {
  std::vector<float> rows;
  for (const ShardPlan& file : plan.files) {
    safetensors::Writer writer(folder / file.name, file.tensors, file.metadata);
    while (const safetensors::Entry* entry = writer.next()) {
      const parallel::Parameter& parameter = values_of(table, entry->name);
      const std::int64_t row = row_elements(parameter);
      for_each_rows(parameter, [&](std::int64_t begin, std::int64_t end) {
        rows.resize(static_cast<std::size_t>((end - begin) * row));
        source.read(parameter, begin, end, rows);
        writer.append_floats(rows);
      });
    }
    writer.finish();
  }
  if (plan.index) runtime::write_new_file(folder / safetensors::kIndexName, *plan.index);
}

/// A model that saw something else than all earlier tokens would see them in transformers.
void require_causal(const CheckpointWeights& source) {
  const DataConfig data = checkpoint_data(source.checkpoint().metadata(), source.path().string());
  const bool causal = data.mask == "causal" || data.mask == "causal_document";
  if (causal && !data.window) return;
  fail(ExitCode::config, source.path().string(), ": was trained with data.mask = \"", data.mask,
       "\"", data.window ? fmt::format(" and data.window = {}", *data.window) : "",
       "; a model of transformers sees all earlier tokens, of a document or of the sequence, and "
       "would be another one");
}

/// What lies on the disk is what the checkpoint holds.
void compare_weights(const fs::path& folder, const CheckpointWeights& source,
                     const parallel::ParameterTable& table, const ExportPlan& plan) {
  const safetensors::Weights written(folder);
  std::vector<float> rows;
  std::vector<std::byte> expected, found;
  for (const ShardPlan& file : plan.files) {
    for (const safetensors::TensorInfo& tensor : file.tensors) {
      const safetensors::Weights::Place place = written.find(tensor.name);
      const parallel::Parameter& parameter = values_of(table, tensor.name);
      bool same = place.entry != nullptr && place.entry->sizes == tensor.sizes &&
                  place.entry->element == tensor.element;
      const std::int64_t row = row_elements(parameter), width = size_bytes(tensor.element);
      for_each_rows(parameter, [&](std::int64_t begin, std::int64_t end) {
        if (!same) return;
        rows.resize(static_cast<std::size_t>((end - begin) * row));
        expected.resize(rows.size() * static_cast<std::size_t>(width));
        found.resize(expected.size());
        source.read(parameter, begin, end, rows);
        safetensors::from_floats(tensor.element, rows, expected);
        place.file->read(*place.entry, begin * row * width, found);
        same = std::memcmp(expected.data(), found.data(), found.size()) == 0;
      });
      if (!same)
        fail(ExitCode::io, (folder / file.name).string(), ": tensor ",
             safetensors::shown(tensor.name), " reads back differently from what was written");
    }
  }
}

/// What goes over as it is: the tokenizer, how text is generated, and the terms of use.
bool goes_over(const std::string& name) {
  constexpr std::string_view kBegins[] = {"tokenizer", "vocab",  "merges",    "chat_template",
                                          "LICENSE",   "NOTICE", "USE_POLICY"};
  constexpr std::string_view kNames[] = {"special_tokens_map.json", "added_tokens.json",
                                         "generation_config.json"};
  return std::ranges::count(kNames, name) != 0 || name.ends_with(".tiktoken") ||
         std::ranges::any_of(kBegins,
                             [&](std::string_view begin) { return name.starts_with(begin); });
}

/// Copies what goes over from the folder that the weights come from; says what it did.
std::string copy_others(const fs::path& from, const fs::path& to) {
  std::error_code error;
  if (!fs::is_directory(from, error))
    return fmt::format("no tokenizer: {} is gone; copy its files from where you have them",
                       from.string());
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (goes_over(name) && entry.is_regular_file()) names.push_back(name);
  }
  std::ranges::sort(names);
  for (const std::string& name : names) {
    fs::copy_file(from / name, to / name, error);
    if (error)
      fail(ExitCode::io, (from / name).string(), ": cannot be copied to ", (to / name).string(),
           ": ", error.message());
    if (runtime::digest_file(fs::canonical(from / name)) != runtime::digest_file(to / name))
      fail(ExitCode::io, (to / name).string(), ": reads back differently from what was copied");
    runtime::sync_and_drop_cache(to / name);
  }
  return names.empty() ? fmt::format("no tokenizer: there is none in {}", from.string())
                       : fmt::format("{} from {}", fmt::join(names, ", "), from.string());
}

/// The folder takes its name, unless something has it by now.
void publish(const fs::path& finished, const fs::path& output) {
  constexpr unsigned kNoReplace = 1;  // RENAME_NOREPLACE
  int result = static_cast<int>(
      ::syscall(SYS_renameat2, AT_FDCWD, finished.c_str(), AT_FDCWD, output.c_str(), kNoReplace));
  if (result != 0 && (errno == EINVAL || errno == ENOSYS) && !fs::exists(output))
    result = ::rename(finished.c_str(), output.c_str());
  if (result != 0)
    fail(errno == EEXIST ? ExitCode::usage : ExitCode::io, "--output ", output.string(), ": ",
         std::strerror(errno));
  runtime::sync_folder(output.parent_path());
}

std::string config_text(const CheckpointWeights& source, const std::optional<HfOrigin>& origin,
                        const ExportPlan& plan, std::int64_t trained_length) {
  const bool as_it_was =
      origin && plan.as_source && source.runs().empty() &&
      compare_models(parse_hf_config(origin->config, kHfConfigName).model, source.model()).empty();
  if (as_it_was) return origin->config;
  return hf_config_text(source.model(), {origin ? origin->config : "", plan.dtype, trained_length});
}

}  // namespace

void export_checkpoint(const CheckpointWeights& source, const ConvertOptions& options) {
  const fs::path output = fs::absolute(options.output).lexically_normal();
  const fs::path target = output.filename().empty() ? output.parent_path() : output;
  if (fs::exists(fs::symlink_status(target)))
    fail(ExitCode::usage, "--output ", target.string(), ": exists already; name another folder");
  const parallel::ParameterTable table = parameter_table(source.model());
  source.require(table);
  require_causal(source);
  const std::optional<HfOrigin> origin = source.origin();
  const ExportPlan plan = make_plan(table, origin, options.dtype);
  require_complete(source, table, plan);
  const ExportFacts facts = export_facts(source, origin);
  const std::string config = config_text(source, origin, plan, facts.trained_length);

  std::error_code error;
  fs::create_directories(target.parent_path(), error);
  const fs::path attempt =
      target.parent_path() /
      fmt::format("{}.tmp-{}", target.filename().string(), runtime::unique_suffix());
  if (!fs::create_directory(attempt, error))
    fail(ExitCode::io, attempt.string(), ": cannot be created: ", error.message());
  runtime::Cleanup unfinished([&] { fs::remove_all(attempt, error); });
  write_weights(attempt, source, table, plan);
  runtime::write_new_file(attempt / kHfConfigName, config);
  std::string others = "no tokenizer: these weights come from no Hugging Face folder";
  if (origin) others = copy_others(origin->folder, attempt);
  runtime::write_new_file(attempt / "README.md",
                          readme_text(target.filename().string(), facts, plan.dtype));
  runtime::sync_folder(attempt);

  compare_weights(attempt, source, table, plan);
  const HfConfig read =
      parse_hf_config(runtime::read_file(attempt / kHfConfigName, kMostHfConfigBytes),
                      (attempt / kHfConfigName).string());
  for (const ModelDifference& difference : compare_models(source.model(), read.model)) {
    // Both say what has been true before as well.
    if (!difference.key.ends_with("max_position_embeddings"))
      fail(ExitCode::internal, kHfConfigName, " says model.", difference.key, " = ",
           difference.after, "; the checkpoint has ", difference.before);
  }
  publish(attempt, target);
  unfinished.dismiss();
  fmt::print("from     {}: {}, {} parameters\n", source.path().string(),
             source.model().architecture, grouped(table.elements()));
  fmt::print("wrote    {}: {} in {}, most of it {}\n", target.string(),
             runtime::counted(static_cast<std::int64_t>(table.parameters().size()), "tensor"),
             runtime::counted(static_cast<std::int64_t>(plan.files.size()), "file"), plan.dtype);
  fmt::print("beside   {}\n", others);
}

}  // namespace longhaul::launch
