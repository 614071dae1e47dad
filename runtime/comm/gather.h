#pragma once
// Small host values of every rank, on every rank.

#include <string>
#include <vector>

#include "runtime/comm/communicator.h"

namespace longhaul::runtime {

/// Everybody's text, by rank. Collective; blocks the host on `stream`, a CPU stream.
std::vector<std::string> gather_texts(Communicator& comm, const std::string& own,
                                      const Stream& stream, Deadline deadline);

/// Everybody's numbers, by rank; equally many on every rank. Collective, as gather_texts.
std::vector<std::vector<double>> gather_numbers(Communicator& comm, const std::vector<double>& own,
                                                const Stream& stream, Deadline deadline);

}  // namespace longhaul::runtime
