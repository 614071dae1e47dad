#pragma once
// The communicator of device memory: NCCL on CUDA streams.

#include <memory>
#include <string>

#include "runtime/comm/communicator.h"

namespace longhaul::runtime {

struct NcclOptions {
  int device = 0;               ///< CUDA ordinal of this rank
  double timeout_seconds = 60;  ///< of set-up, of each operation, and of an abort
  /// Thread blocks that NCCL may take, of each communicator, from the kernels beside it; 0 leaves
  /// the choice to NCCL, which takes up to 32.
  int max_thread_blocks = 8;
  /// Ranks may share a device. For tests of correctness only: NCCL then goes through sockets on
  /// this machine, and takes two thread blocks. Sets NCCL_HOSTID and what belongs to it, unless
  /// they are set; NCCL reads them once a process, so each rank must be a process of its own.
  bool share_device = false;
};

/// A communicator of the ranks of `bootstrap`, a host communicator, which carries the set-up and
/// nothing after it. Collective; blocks the host.
///
/// Views and streams must be of options.device. Operations are NCCL's own, so sums are
/// deterministic for one job layout, but not rank-ordered: not bit for bit those of the host
/// backends. Uneven counts are grouped broadcasts and reductions, which bring each link of NCCL's
/// rings as many bytes as even ones. An exchange marked all_gather is ncclAllGather where all
/// ranks' parts are equal, by way of staging memory for all of them. Messages that are not one
/// contiguous view in their wire dtype are packed on the device. Kernels of all communicators of a
/// device must fit beside each other: ranks create them, and use them, in one order, and streams
/// with work of NCCL are of high priority, as Stream::sibling() makes them. The host may wait, up
/// to the timeout, while an operation sets up its connections. An operation that is not over by the
/// timeout, or that fails, is aborted, and its stream is poisoned with Error(hang) or
/// Error(internal), which names rank, operation and what NCCL says; the communicator is then
/// unusable. When NCCL's abort itself does not return, the error says so, and the process should
/// exit at once without destructors. Throws: Error(launch) in a CPU build, or when ranks share a
/// device and that is not allowed.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap,
                                                     const NcclOptions& options);

}  // namespace longhaul::runtime
