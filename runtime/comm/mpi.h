#pragma once
// MPI as a transport between processes.
//
// One worker thread makes every MPI call, MPI_Init_thread to MPI_Finalize, and sleeps between
// polls: a blocked MPI_Wait would burn the core that compute needs. Open MPI under mpirun or srun,
// or one rank without either.

#include <climits>
#include <memory>
#include <string>

#include "runtime/comm/host_communicator.h"

namespace longhaul::runtime {

struct MpiOptions {
  double timeout_seconds = 60;
  /// Longer messages travel in pieces; equal on all ranks. Below INT_MAX, which MPI counts cannot
  /// pass.
  std::int64_t max_message_bytes = INT_MAX / 4096 * 4096;
  /// The ranks of a host share the memory of their CPU streams, of those made from now on, where
  /// all of them want it and the system lets them; so communicators among them lend.
  bool share_memory = false;
};

namespace detail {
class MpiWorker;
}

/// MPI from start to end; one a process. Destroying it closes it, or abandons it while an exception
/// unwinds or when closing fails.
class MpiSession {
 public:
  /// Starts MPI; collective. Throws Error(hang) when that outlasts the timeout, Error(launch) when
  /// MPI fails.
  explicit MpiSession(const MpiOptions& options);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const;
  int size() const;
  /// Among the ranks of this host, as MPI's shared-memory split sees them.
  int local_rank() const;
  int local_size() const;
  const std::string& host_name() const;
  /// What ranks may lend each other, or why they cannot, in words, on all ranks alike; empty where
  /// there is one rank.
  const std::string& sharing_text() const;
  /// The library's own version line.
  const std::string& mpi_version() const;

  /// The communicator of all ranks; may be taken once (others are its splits). After a wait past
  /// the timeout that leaves a message half done, every later operation fails: end the process.
  std::unique_ptr<HostCommunicator> world();

  /// Finalises MPI; collective, and the streams must be idle. Throws Error(hang) past the timeout.
  void close();
  /// Gives MPI up without finalising it, which would wait for ranks that may be gone: the process
  /// must now end with a code other than 0, through std::_Exit. Never blocks.
  void abandon();

 private:
  std::shared_ptr<detail::MpiWorker> worker_;
  bool world_taken_ = false;
  bool over_ = false;
};

}  // namespace longhaul::runtime
