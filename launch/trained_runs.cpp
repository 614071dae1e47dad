#include "launch/trained_runs.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace longhaul::launch {

using Json = nlohmann::ordered_json;

std::string to_text(const std::vector<TrainedRun>& runs) {
  Json list = Json::array();
  for (const TrainedRun& run : runs)
    list.push_back({{"checkpoint", run.checkpoint},
                    {"steps", run.steps},
                    {"tokens", run.tokens},
                    {"seq_len", run.seq_len}});
  return list.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<TrainedRun> trained_runs(const runtime::CheckpointMetadata& checkpoint,
                                     const std::string& path) {
  std::vector<TrainedRun> runs;
  const auto& extra = checkpoint.extra;
  try {
    if (const auto earlier = extra.find(kEarlierRunsKey); earlier != extra.end()) {
      for (const Json& run : Json::parse(earlier->second))
        runs.push_back({run.at("checkpoint").get<std::string>(),
                        run.at("steps").get<std::int64_t>(), run.at("tokens").get<std::int64_t>(),
                        run.at("seq_len").get<std::int64_t>()});
    }
  } catch (const Json::exception& error) {
    runtime::fail(runtime::ExitCode::data, path,
                  ": what it says of the runs before its own cannot be read: ", error.what());
  }
  if (checkpoint.step == 0) return runs;
  TrainedRun own{path, checkpoint.step, checkpoint.tokens, 0};
  if (const auto length = extra.find("seq_len"); length != extra.end()) {
    const std::string& text = length->second;
    std::from_chars(text.data(), text.data() + text.size(), own.seq_len);
  }
  runs.push_back(std::move(own));
  return runs;
}

}  // namespace longhaul::launch
