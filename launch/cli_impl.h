#pragma once
// What the command lines of verbs are made of.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/pretend.h"
#include "runtime/config/expand.h"

namespace longhaul::launch {

/// What the command line asked for; filled by the verb that it names.
using Action = std::function<int()>;

// A verb whose options are filled by the parser and given to `run` after it.
template <class Options>
CLI::App* add_verb(CLI::App& app, Action& action, const char* name, const char* description,
                   const std::shared_ptr<Options>& options, int (*run)(const Options&)) {
  CLI::App* verb = app.add_subcommand(name, description);
  verb->callback([&action, options, run] { action = [options, run] { return run(*options); }; });
  return verb;
}

/// Expands `~` and `$NAME` in a path where the shell did not do it, as in --output=~/corpus.h5.
/// What exists as it is written is that: names may hold a dollar sign. Returns what is wrong, or
/// nothing.
inline std::string expand_in_place(std::string& path) {
  std::error_code unknown;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, unknown))) return "";
  runtime::ExpandedPath expanded = runtime::expand_path(path);
  if (expanded.wrong.empty()) path = std::move(expanded.path);
  return expanded.wrong;
}

/// Makes an option a path that is expanded.
inline CLI::Option* expand(CLI::Option* option) {
  return option->transform(CLI::Validator(expand_in_place, ""));
}

inline void add_overrides(CLI::App* verb, std::vector<std::string>& overrides) {
  verb->add_option("--set", overrides, "Override one key of the configuration; may be repeated")
      ->type_name("SECTION.KEY=VALUE")
      ->allow_extra_args(false);
}

/// `--pretend [MODEL]`, which `give` gets, or what it means alone.
inline void add_pretend(CLI::App* verb, const std::function<void(const std::string&)>& give) {
  verb->add_option_function<std::string>(
          "--pretend",
          [give](const std::string& model) { give(model.empty() ? kDefaultPretending : model); },
          "Softmax attention only takes the time of a model, as flops=2e9,slow=3:3, and computes "
          "nothing; see launch/README.md")
      ->type_name("MODEL")
      ->expected(0, 1);
}

inline void add_force(CLI::App* verb, const char* option, bool& force) {
  verb->add_flag("--force", force,
                 std::string("Replace the file that ") + option + " names, if there is one");
}

/// `bench` and its verbs.
void add_bench(CLI::App& app, Action& action);

}  // namespace longhaul::launch
