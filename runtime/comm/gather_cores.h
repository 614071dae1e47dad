#pragma once
// The cores of every rank, on every rank.

#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/cores.h"

namespace longhaul::runtime {

/// share_cores() of all ranks, by rank; `host` names this one's. Collective; blocks the host.
std::vector<CoreShare> gather_cores(Communicator& comm, const std::string& host);

}  // namespace longhaul::runtime
