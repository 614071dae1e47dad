#include "launch/common_ground.h"

#include <sstream>
#include <vector>

#include "runtime/build_info.h"
#include "runtime/comm/grid.h"
#include "runtime/cpu_level.h"
#include "runtime/error.h"

namespace longhaul::launch {

void check_common_ground(const TrainConfig& config, const TrainingCorpora& corpora,
                         const ValidationData* validation, runtime::Communicator& world) {
  // Other instructions round otherwise, and what ranks hold copies of must stay equal.
  std::vector<runtime::NamedDigest> entries = {
      {"build", runtime::build_digest()},
      {"CPU level (LONGHAUL_CPU_LEVEL)", std::string(name(runtime::cpu_level()))}};
  for (std::size_t i = 0; i < corpora.all().size(); ++i) {
    entries.push_back(
        {corpora.all().size() == 1 ? "corpus" : runtime::concat("data.corpora[", i, "]"),
         corpora.all()[i].digest()});
  }
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
