#include "launch/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "runtime/build_info.h"
#include "runtime/comm/gather.h"
#include "runtime/counted.h"
#include "runtime/device_identity.h"
#include "runtime/error.h"

namespace longhaul::launch {

using runtime::Communicator;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr std::size_t kShown = 16;  // bindings at the start of a run

/// This rank's device as lines of text, or one line: where and why it has none.
std::string own_device(const DeviceRequest& request) {
  const std::string where = request.host.empty() ? ": " : " on host " + request.host + ": ";
  if (!runtime::build_info().cuda)
    return where + "this build has no CUDA backend; configure it with --preset cuda";
  try {
    const int count = runtime::cuda_device_count();
    if (count == 0)
      return where + "no CUDA device can be used; look at nvidia-smi and CUDA_VISIBLE_DEVICES";
    const int index = request.local_rank % count;
    return fmt::format("{}\n{}\n{}\n{}", index, runtime::cuda_device_uuid(index),
                       runtime::cuda_device_name(index), request.host);
  } catch (const runtime::Error& error) {
    std::string text = where + error.what();
    std::ranges::replace(text, '\n', ' ');
    return text;
  }
}

}  // namespace

bool on_cuda(const TrainConfig& config) { return config.device.kind == "cuda"; }

attention::Kernels attention_kernels(const TrainConfig& config) {
  using enum attention::Kernels;
  if (config.device.attention == "exact") return exact;
  return config.device.attention == "cudnn" ? cudnn : automatic;
}

std::string RankDevice::text() const {
  return fmt::format("GPU {} {}{}", index, name, host.empty() ? "" : " of host " + host);
}

std::vector<RankDevice> cuda_devices(Communicator& world, const DeviceRequest& request) {
  std::vector<RankDevice> devices;
  for (const std::string& text :
       runtime::gather_texts(world, own_device(request), runtime::Stream::cpu("devices"),
                             runtime::deadline_in(3600))) {
    RankDevice device;
    std::istringstream lines(text);
    std::string index;
    std::getline(lines, index);
    if (!std::getline(lines, device.uuid))
      fail(ExitCode::launch, request.asked_by, ": rank ", devices.size(), text);
    std::getline(lines, device.name);
    std::getline(lines, device.host);
    device.index = std::stoi(index);
    devices.push_back(std::move(device));
  }
  for (int rank = 0; !request.may_share && rank < world.size(); ++rank) {
    const std::vector<int> together = ranks_beside(devices, rank);
    if (together.size() == 1) continue;
    fail(ExitCode::launch, request.asked_by, ": ranks ", together[0], " and ", together[1],
         " would share ", devices[static_cast<std::size_t>(rank)].text(), " (",
         runtime::counted(std::ssize(together), "rank"),
         " there); start one rank a GPU, or for a test set device.share = true");
  }
  return devices;
}

std::vector<int> ranks_beside(const std::vector<RankDevice>& devices, int rank) {
  std::vector<int> ranks;
  for (std::size_t other = 0; other < devices.size(); ++other) {
    if (devices[other].uuid == devices[static_cast<std::size_t>(rank)].uuid)
      ranks.push_back(static_cast<int>(other));
  }
  return ranks;
}

bool share_devices(const std::vector<RankDevice>& devices) {
  std::set<std::string> different;
  for (const RankDevice& device : devices) different.insert(device.uuid);
  return different.size() < devices.size();
}

std::string binding_text(const std::vector<RankDevice>& devices) {
  std::string text;
  for (std::size_t rank = 0; rank < std::min(devices.size(), kShown); ++rank)
    text += fmt::format("{}rank {} on {}", rank == 0 ? "" : "\n", rank, devices[rank].text());
  if (devices.size() > kShown)
    text += fmt::format("\nand {} more",
                        runtime::counted(std::ssize(devices) - std::int64_t{kShown}, "rank"));
  return text;
}

std::unique_ptr<Communicator> device_communicator(std::unique_ptr<Communicator> host,
                                                  const std::optional<runtime::NcclOptions>& nccl) {
  if (!nccl) return host;
  return runtime::make_nccl_communicator(*host, *nccl);
}

}  // namespace longhaul::launch
