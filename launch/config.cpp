#include "launch/config.h"

#include <fmt/format.h>

#include <filesystem>

#include "launch/attention_axis.h"
#include "launch/schemes.h"
#include "runtime/build_info.h"
#include "runtime/error.h"
#include "runtime/io/file.h"

namespace longhaul::launch {

TrainDraft load_config(const std::string& path, const std::vector<std::string>& overrides,
                       std::optional<std::int64_t> world_size, NamedFiles files) {
  TrainDraft draft(path);
  draft.reads_files = files == NamedFiles::read;
  read_config(draft, overrides);
  check_rules(draft, world_size);
  check_schemes(draft);
  check_attention_servers(draft);
  draft.check();
  return draft;
}

void write_resolved_config(const TrainConfig& config) {
  namespace fs = std::filesystem;
  const std::string path = config.job.output_dir + "/config.toml",
                    fresh = path + ".tmp-" + runtime::unique_suffix();
  std::error_code error;
  runtime::Cleanup unfinished([&] { fs::remove(fresh, error); });
  runtime::write_new_file(
      fresh,
      fmt::format("# The configuration of this run, as {} resolved it at its last start.\n"
                  "# Relative paths are of the folder that it was started in: {}\n\n{}",
                  runtime::version_line(), fs::current_path(error).string(), to_toml(config)));
  fs::rename(fresh, path, error);
  if (error) runtime::fail(runtime::ExitCode::io, path, ": cannot be written: ", error.message());
  unfinished.dismiss();
}

std::int64_t model_vocabulary(const TrainConfig& config, const runtime::CorpusInfo& corpus) {
  return config.model.vocab_size.value_or(corpus.vocabulary_size);
}

}  // namespace longhaul::launch
