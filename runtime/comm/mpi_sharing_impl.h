#pragma once
// Which ranks of an MPI job share memory, and where it lies. Private to runtime/comm.

#include <mpi.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/transport.h"
#include "runtime/error.h"
#include "runtime/shared_memory.h"

namespace longhaul::runtime::detail {

/// Throws Error(exit_code) for a return code of `call` other than success.
void check_mpi(int code, const char* call, ExitCode exit_code = ExitCode::internal);

/// Does not change once it is made: any thread may ask.
class MpiSharing {
 public:
  MpiSharing() = default;
  /// Where all ranks of a host want it, each makes an arena, the others map it and read its token,
  /// and this process's CPU streams take their memory of it from now on; where one rank cannot,
  /// none of its host does. Collective over `world`, of which `host` is the ranks of this host.
  MpiSharing(MPI_Comm world, MPI_Comm host, bool wanted);

  /// Ranks of `world`. With itself every rank shares.
  bool between(int one, int other) const;
  /// See Transport.
  SharedPlace place_of(const std::byte* data) const;
  const std::byte* at(const SharedPlace& place) const;
  /// See MpiSession::sharing_text().
  const std::string& text() const { return text_; }

 private:
  int rank_ = 0;
  std::vector<int> groups_;  // by rank: the first of those that share with it, or none: -1
  std::map<int, std::unique_ptr<const PeerArena>> peers_;  // by rank
  std::string text_;
};

}  // namespace longhaul::runtime::detail
