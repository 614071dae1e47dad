#include "parallel/disaggregation/tasks.h"

#include "runtime/error.h"

namespace longhaul::parallel {

const char* name(ServerMode mode) {
  switch (mode) {
    case ServerMode::in_place:
      return "in_place";
    case ServerMode::dedicated:
      return "dedicated";
    case ServerMode::external:
      return "external";
  }
  return "unknown";
}

int server_count(const Layout& layout, const AttentionServers& servers) {
  return servers.mode == ServerMode::in_place ? layout.ranks() : servers.count;
}

int server_rank(const Layout& layout, const AttentionServers& servers, int server) {
  if (servers.mode == ServerMode::external) return -1;
  const int first = servers.mode == ServerMode::dedicated ? layout.ranks() - servers.count : 0;
  return first + server;
}

}  // namespace longhaul::parallel
