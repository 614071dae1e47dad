#include "runtime/comm/gather_cores.h"

#include <sstream>

#include "runtime/comm/gather.h"
#include "runtime/error.h"

namespace longhaul::runtime {

std::vector<CoreShare> gather_cores(Communicator& comm, const std::string& host) {
  const RankCores own = own_cores(host);
  std::string text = concat(own.host, "\n", own.quota);
  for (const int cpu : own.cpus) text += concat(" ", cpu);
  std::vector<RankCores> ranks;
  for (const std::string& other :
       gather_texts(comm, text, Stream::cpu("cores"), deadline_in(3600))) {
    std::istringstream words(other);
    RankCores& rank = ranks.emplace_back();
    std::getline(words, rank.host);
    words >> rank.quota;
    for (int cpu = 0; words >> cpu;) rank.cpus.push_back(cpu);
  }
  return share_cores(ranks);
}

}  // namespace longhaul::runtime
