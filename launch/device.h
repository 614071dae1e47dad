#pragma once
// What the ranks of a job compute on, and what moves its memory between them.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/block_plan.h"
#include "launch/train_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/nccl.h"
#include "runtime/device.h"

namespace longhaul::launch {

/// Whether the configuration trains on CUDA devices.
bool on_cuda(const TrainConfig& config);
/// What computes its attention there.
attention::Kernels attention_kernels(const TrainConfig& config);

/// The CUDA device of a rank.
struct RankDevice {
  std::string host;
  int index = 0;  ///< as the rank's process numbers its devices
  std::string name;
  std::string uuid;
  bool operator==(const RankDevice&) const = default;
  /// "GPU 0 NVIDIA H100 80GB HBM3 of host a"; without the host where it has no name.
  std::string text() const;
};

/// A rank that asks for a device.
struct DeviceRequest {
  std::string host;
  int local_rank = 0;
  /// Processes may share a device.
  bool may_share = false;
  std::string asked_by;  ///< `device.kind = "cuda"`: what errors begin with
};

/// The devices of all ranks, in rank order: local rank r of a host gets device r of those that its
/// process sees, and begins again with the first where there are fewer. Collective over `world`, a
/// host communicator. Throws Error(launch) on every rank alike, naming the rank and the host: in a
/// CPU build, without a device, or where ranks would share one that may not.
std::vector<RankDevice> cuda_devices(runtime::Communicator& world, const DeviceRequest& request);

/// Ranks that compute on the same device as `rank`, itself included, ascending.
std::vector<int> ranks_beside(const std::vector<RankDevice>& devices, int rank);
/// Whether any two ranks compute on one device.
bool share_devices(const std::vector<RankDevice>& devices);
/// "rank 0 on GPU 0 NVIDIA H100 80GB HBM3 of host a", a line a rank, but of many only the first.
std::string binding_text(const std::vector<RankDevice>& devices);

/// The communicator of the device memory of `host`'s ranks: itself, or with `nccl` one of NCCL, for
/// whose set-up it serves. Collective.
std::unique_ptr<runtime::Communicator> device_communicator(
    std::unique_ptr<runtime::Communicator> host, const std::optional<runtime::NcclOptions>& nccl);

}  // namespace longhaul::launch
