#include "launch/common_ground.h"

#include <sstream>
#include <vector>

#include "runtime/build_info.h"
#include "runtime/comm/grid.h"
#include "runtime/cpu_level.h"

namespace longhaul::launch {

void check_common_ground(const TrainConfig& config, const runtime::Corpus& corpus,
                         const ValidationData* validation, runtime::Communicator& world) {
  // Other instructions round otherwise, and what ranks hold copies of must stay equal.
  std::vector<runtime::NamedDigest> entries = {
      {"build", runtime::build_digest()},
      {"CPU level (LONGHAUL_CPU_LEVEL)", std::string(name(runtime::cpu_level()))},
      {"corpus", corpus.digest()}};
  if (validation != nullptr)
    entries.push_back({"validation corpus", validation->corpus().digest()});
  std::istringstream lines(to_toml(config));  // key by key, so that a difference names itself
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find(" = ");
    if (line.starts_with('[')) {
      section = line.substr(1, line.size() - 2);
    } else if (equals != std::string::npos) {
      entries.push_back(
          {"config " + section + "." + line.substr(0, equals), line.substr(equals + 3)});
    }
  }
  runtime::check_agreement(world, entries, runtime::Stream::cpu("start"));
}

}  // namespace longhaul::launch
