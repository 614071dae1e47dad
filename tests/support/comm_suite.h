#pragma once
// One set of communicator tests, run over every communicator. Each body is called by all ranks; the
// oracle rebuilds the other ranks' data from (seed, rank, index) and needs no communication.

#include <vector>

#include "runtime/comm/communicator.h"

namespace longhaul::test {

struct CommCase {
  const char* name;
  void (*body)(runtime::Communicator& world);
};
const std::vector<CommCase>& comm_cases();
/// Those of lent views.
const std::vector<CommCase>& lending_cases();

/// A name for gtest's parametrised tests.
inline std::ostream& operator<<(std::ostream& out, const CommCase& test) {
  return out << test.name;
}

}  // namespace longhaul::test
