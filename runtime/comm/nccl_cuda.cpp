#include "runtime/comm/nccl.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>

#include "runtime/comm/nccl_handle_impl.h"
#include "runtime/comm/staging.h"
#include "runtime/host_name.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::runtime {
namespace {

using detail::NcclHandle;

constexpr int kSharedThreadBlocks = 2;  // of a rank that has a device with others

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ncclFloat32;
    case DType::bfloat16:
      return ncclBfloat16;
    case DType::float64:
      return ncclFloat64;
    case DType::int32:
      return ncclInt32;
    case DType::int64:
      return ncclInt64;
    case DType::uint8:
      return ncclUint8;
  }
  fail(ExitCode::internal, "NCCL has no type for ", name(dtype));
}

std::vector<std::int64_t> offsets_of(std::span<const std::int64_t> counts) {
  std::vector<std::int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<NcclHandle> handle, int max_thread_blocks)
      : handle_(std::move(handle)),
        max_thread_blocks_(max_thread_blocks),
        exchanged_bytes_(static_cast<std::size_t>(handle_->size())) {}

  int rank() const override { return handle_->rank(); }
  int size() const override { return handle_->size(); }
  const std::string& name() const override { return handle_->name(); }
  void exchange(std::vector<SendMessage> sends, std::vector<ReceiveMessage> receives,
                const std::string& what, const Stream& stream) override;
  void exchange_as(ExchangeKind kind, std::vector<SendMessage> sends,
                   std::vector<ReceiveMessage> receives, const std::string& what,
                   const Stream& stream) override;
  void all_reduce(TensorView values, const Stream& stream) override;
  void all_gather(ConstTensorView input, TensorView output, std::span<const std::int64_t> counts,
                  const Stream& stream) override;
  void reduce_scatter(ConstTensorView input, TensorView output,
                      std::span<const std::int64_t> counts, const Stream& stream) override;
  /// What it is without a native gather may be more: parts that differ over ranks go as messages.
  MessageMemory memory_of(const GroupBytes& group, DeviceKind) const override {
    return {std::max(group.staged, group.gathered), 0, group.parts};
  }
  MessageMemory memory_of_segments(std::span<const std::int64_t>, DType,
                                   DeviceKind) const override {
    return {};
  }
  void barrier(const Stream& stream) override;
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;
  double set_timeout(double seconds) override { return handle_->set_timeout(seconds); }
  std::int64_t sent_bytes() const override { return sent_bytes_; }
  void reset_sent_bytes() override {
    sent_bytes_ = 0;
    exchanged_bytes_.assign(static_cast<std::size_t>(size()), 0);
  }
  std::span<const std::int64_t> exchanged_bytes() const override { return exchanged_bytes_; }

 private:
  void check_peer(int peer, const std::string& what) const {
    LONGHAUL_CHECK(0 <= peer && peer < size(), what, " names rank ", peer, " of communicator '",
                   name(), "', which has ", size());
  }
  void check_stream(const std::string& what, const Stream& stream) const {
    LONGHAUL_CHECK(stream.device() == handle_->device(), what, " on '", name(), "' of ",
                   to_string(handle_->device()), " was given stream '", stream.name(), "' on ",
                   to_string(stream.device()));
  }
  void gather(const std::vector<SendMessage>& sends, const std::vector<ReceiveMessage>& receives,
              const std::vector<std::int64_t>& parts, const std::string& what,
              const Stream& stream);
  void check_counts(std::span<const std::int64_t> counts, const char* what) const;
  void check_tensor(const ConstTensorView& view, std::int64_t elements, const char* what,
                    const char* role, const Stream& stream) const;
  void check_sum(const ConstTensorView& view, const char* what) const {
    LONGHAUL_CHECK(view.dtype() == DType::float32 || view.dtype() == DType::float64, what,
                   " sums float32 or float64, not ", runtime::name(view.dtype()));
  }
  std::int64_t own(std::span<const std::int64_t> counts) const {
    return counts[static_cast<std::size_t>(rank())];
  }

  const std::shared_ptr<NcclHandle> handle_;
  const int max_thread_blocks_;
  std::atomic<std::int64_t> sent_bytes_{0};
  std::vector<std::int64_t> exchanged_bytes_;  // by peer; written by the thread that enqueues
};

void NcclCommunicator::check_counts(std::span<const std::int64_t> counts, const char* what) const {
  LONGHAUL_CHECK(static_cast<int>(counts.size()) == size(), what, " on '", name(), "' got ",
                 counts.size(), " counts for ", size(), " ranks");
  for (const std::int64_t count : counts)
    LONGHAUL_CHECK(count >= 0, what, " got a count of ", count);
}

void NcclCommunicator::check_tensor(const ConstTensorView& view, std::int64_t elements,
                                    const char* what, const char* role,
                                    const Stream& stream) const {
  LONGHAUL_CHECK(view.device() == handle_->device() && stream.device() == handle_->device(), what,
                 " on '", name(), "' of ", to_string(handle_->device()), " was given a ", role,
                 " on ", to_string(view.device()), " and stream '", stream.name(), "' on ",
                 to_string(stream.device()));
  LONGHAUL_CHECK(view.contiguous(), what, " needs a contiguous ", role);
  LONGHAUL_CHECK(view.elements() == elements, what, ": ", role, " has ", view.elements(),
                 " elements; the counts ask for ", elements);
}

void NcclCommunicator::exchange(std::vector<SendMessage> sends,
                                std::vector<ReceiveMessage> receives, const std::string& what,
                                const Stream& stream) {
  check_stream(what, stream);
  struct Message {
    int peer;
    detail::WireMessage wire;
  };
  std::vector<Message> out, in;
  std::vector<std::size_t> to_self;
  for (const SendMessage& message : sends) {
    check_peer(message.peer, what);
    for (const SendPart& part : message.parts) {
      if (detail::wire_bytes(part, message.wire_dtype) == 0) continue;
      if (message.peer == rank()) to_self.push_back(out.size());
      out.push_back({message.peer, detail::pack(part, message.wire_dtype, stream)});
    }
  }
  std::size_t matched = 0;
  for (const ReceiveMessage& message : receives) {
    check_peer(message.peer, what);
    for (const ReceivePart& part : message.parts) {
      in.push_back({message.peer, detail::receive_place(part, message.wire_dtype, stream)});
      const detail::WireMessage& place = in.back().wire;
      if (message.peer != rank() || place.bytes == 0) continue;
      const std::int64_t offered = matched < to_self.size() ? out[to_self[matched]].wire.bytes : 0;
      LONGHAUL_CHECK(offered == place.bytes, what, " receives ", place.bytes,
                     " bytes from itself, where ", offered, " are sent");
      LONGHAUL_CUDA_CHECK(cudaMemcpyAsync(place.data, out[to_self[matched++]].wire.data,
                                          static_cast<std::size_t>(place.bytes),
                                          cudaMemcpyDeviceToDevice, detail::cuda_stream(stream)));
    }
  }
  LONGHAUL_CHECK(matched == to_self.size(), what, " sends ", to_self.size(),
                 " parts to itself and receives ", matched);
  const auto travels = [&](const Message& message) {
    return message.peer != rank() && message.wire.bytes > 0;
  };
  if (std::ranges::any_of(out, travels) || std::ranges::any_of(in, travels)) {
    handle_->group(what, stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
      for (const Message& message : out) {
        if (!travels(message)) continue;
        sent_bytes_ += message.wire.bytes;
        exchanged_bytes_[static_cast<std::size_t>(message.peer)] += message.wire.bytes;
        call(ncclSend(message.wire.data, static_cast<std::size_t>(message.wire.bytes), ncclUint8,
                      message.peer, comm, cuda));
      }
      for (const Message& message : in) {
        if (!travels(message)) continue;
        call(ncclRecv(message.wire.data, static_cast<std::size_t>(message.wire.bytes), ncclUint8,
                      message.peer, comm, cuda));
      }
    });
  }
  std::size_t i = 0;
  for (const ReceiveMessage& message : receives) {
    for (const ReceivePart& part : message.parts)
      detail::unpack(in[i++].wire.data, part, message.wire_dtype, stream);
  }
}

/// An all_to_all stays a group of messages: NCCL makes the same of ncclAlltoAll, and that would
/// want all of them in one buffer.
void NcclCommunicator::exchange_as(ExchangeKind kind, std::vector<SendMessage> sends,
                                   std::vector<ReceiveMessage> receives, const std::string& what,
                                   const Stream& stream) {
  for (const SendMessage& message : sends) check_peer(message.peer, what);
  for (const ReceiveMessage& message : receives) check_peer(message.peer, what);
  std::vector<std::int64_t> parts;
  if (kind == ExchangeKind::all_gather)
    parts = detail::gathered_parts(sends, receives, rank(), size());
  if (parts.empty()) return exchange(std::move(sends), std::move(receives), what, stream);
  gather(sends, receives, parts, what, stream);
  // What is left are copies.
  std::erase_if(sends, [&](const SendMessage& message) { return message.peer != rank(); });
  std::erase_if(receives, [&](const ReceiveMessage& message) { return message.peer != rank(); });
  exchange(std::move(sends), std::move(receives), what, stream);
}

/// What this rank sends to all others, by ncclAllGather. Its output has a place for every rank, and
/// the views have none for this one: it goes by way of staging memory.
void NcclCommunicator::gather(const std::vector<SendMessage>& sends,
                              const std::vector<ReceiveMessage>& receives,
                              const std::vector<std::int64_t>& parts, const std::string& what,
                              const Stream& stream) {
  check_stream(what, stream);
  const auto others = [&](const auto& message) { return message.peer != rank(); };
  const SendMessage& own = *std::ranges::find_if(sends, others);
  std::vector<detail::WireMessage> sent;
  for (const SendPart& part : own.parts) {
    if (detail::wire_bytes(part, own.wire_dtype) > 0)
      sent.push_back(detail::pack(part, own.wire_dtype, stream));
  }
  std::vector<Buffer> gathered;
  for (const std::int64_t bytes : parts) gathered.push_back(stream.allocate(bytes * size()));
  handle_->group(what, stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      call(ncclAllGather(sent[i].data, gathered[i].data(), static_cast<std::size_t>(parts[i]),
                         ncclUint8, comm, cuda));
    }
  });
  for (const ReceiveMessage& message : receives) {
    if (!others(message)) continue;
    std::size_t i = 0;
    for (const ReceivePart& part : message.parts) {
      if (detail::wire_bytes(part, message.wire_dtype) == 0) continue;
      sent_bytes_ += parts[i];
      exchanged_bytes_[static_cast<std::size_t>(message.peer)] += parts[i];
      detail::unpack(gathered[i].data() + parts[i] * message.peer, part, message.wire_dtype,
                     stream);
      ++i;
    }
  }
}

void NcclCommunicator::all_reduce(TensorView values, const Stream& stream) {
  check_sum(values, "all_reduce");
  const std::int64_t elements = values.elements();
  check_tensor(values, elements, "all_reduce", "tensor", stream);
  if (size() == 1 || elements == 0) return;
  // Counted as the reduce_scatter and all_gather that it is, whatever NCCL makes of it.
  const std::int64_t segment = elements * (rank() + 1) / size() - elements * rank() / size();
  sent_bytes_ += (elements - segment + segment * (size() - 1)) * size_bytes(values.dtype());
  handle_->group("all_reduce", stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
    call(ncclAllReduce(values.data(), values.data(), static_cast<std::size_t>(elements),
                       nccl_type(values.dtype()), ncclSum, comm, cuda));
  });
}

void NcclCommunicator::all_gather(ConstTensorView input, TensorView output,
                                  std::span<const std::int64_t> counts, const Stream& stream) {
  check_counts(counts, "all_gather");
  LONGHAUL_CHECK(input.dtype() == output.dtype(), "all_gather: input is ",
                 runtime::name(input.dtype()), ", output ", runtime::name(output.dtype()));
  const std::vector<std::int64_t> offsets = offsets_of(counts);
  check_tensor(input, own(counts), "all_gather", "input", stream);
  check_tensor(output, offsets.back(), "all_gather", "output", stream);
  if (offsets.back() == 0) return;
  const std::int64_t width = size_bytes(input.dtype());
  sent_bytes_ += input.bytes() * (size() - 1);
  const bool even =
      std::ranges::all_of(counts, [&](std::int64_t count) { return count == counts[0]; });
  handle_->group("all_gather", stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
    if (even) {
      call(ncclAllGather(input.data(), output.data(), static_cast<std::size_t>(counts[0]),
                         nccl_type(input.dtype()), comm, cuda));
      return;
    }
    for (int root = 0; root < size(); ++root) {
      const auto r = static_cast<std::size_t>(root);
      if (counts[r] == 0) continue;
      call(ncclBroadcast(input.data(), output.data() + offsets[r] * width,
                         static_cast<std::size_t>(counts[r]), nccl_type(input.dtype()), root, comm,
                         cuda));
    }
  });
}

void NcclCommunicator::reduce_scatter(ConstTensorView input, TensorView output,
                                      std::span<const std::int64_t> counts, const Stream& stream) {
  check_counts(counts, "reduce_scatter");
  check_sum(input, "reduce_scatter");
  LONGHAUL_CHECK(input.dtype() == output.dtype(), "reduce_scatter: input is ",
                 runtime::name(input.dtype()), ", output ", runtime::name(output.dtype()));
  const std::vector<std::int64_t> offsets = offsets_of(counts);
  check_tensor(input, offsets.back(), "reduce_scatter", "input", stream);
  check_tensor(output, own(counts), "reduce_scatter", "output", stream);
  if (offsets.back() == 0) return;
  const std::int64_t width = size_bytes(input.dtype());
  sent_bytes_ += (offsets.back() - own(counts)) * width;
  const bool even =
      std::ranges::all_of(counts, [&](std::int64_t count) { return count == counts[0]; });
  handle_->group(
      "reduce_scatter", stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
        if (even) {
          call(ncclReduceScatter(input.data(), output.data(), static_cast<std::size_t>(counts[0]),
                                 nccl_type(input.dtype()), ncclSum, comm, cuda));
          return;
        }
        for (int root = 0; root < size(); ++root) {
          const auto r = static_cast<std::size_t>(root);
          if (counts[r] == 0) continue;
          call(ncclReduce(input.data() + offsets[r] * width, output.data(),
                          static_cast<std::size_t>(counts[r]), nccl_type(input.dtype()), ncclSum,
                          root, comm, cuda));
        }
      });
}

void NcclCommunicator::barrier(const Stream& stream) {
  if (size() == 1) return;
  const Tensor token({1}, DType::int32, stream);
  fill(token, 0, stream);
  handle_->group("barrier", stream, [&](const auto& call, ncclComm_t comm, cudaStream_t cuda) {
    call(
        ncclAllReduce(token.view().data(), token.view().data(), 1, ncclInt32, ncclSum, comm, cuda));
  });
}

/// Throws Error(launch) when two ranks have one device.
void check_devices(Communicator& bootstrap, Device device, const Stream& host, Deadline deadline) {
  cudaDeviceProp properties{};
  LONGHAUL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index));
  constexpr std::int64_t kBytes = sizeof(properties.uuid);
  const Tensor own({kBytes}, DType::uint8, host),
      all({bootstrap.size() * kBytes}, DType::uint8, host);
  ops::upload_bytes(std::as_bytes(std::span(properties.uuid.bytes)), own.view().data(), host);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(bootstrap.size()), kBytes);
  bootstrap.all_gather(own, all, counts, host);
  host.synchronize(deadline);
  const auto uuid = [&](int rank) {
    return std::string_view(reinterpret_cast<const char*>(all.view().data()) + rank * kBytes,
                            kBytes);
  };
  for (int a = 0; a < bootstrap.size(); ++a) {
    for (int b = a + 1; b < bootstrap.size(); ++b) {
      if (uuid(a) != uuid(b)) continue;
      fail(ExitCode::launch, "ranks ", a, " and ", b, " of NCCL communicator '", bootstrap.name(),
           "' share one GPU, which NCCL does not support; start one rank a GPU, or use "
           "comm.backend = \"mpi\"");
    }
  }
}

/// NCCL refuses two ranks with one bus id on one host: gives each rank a host of its own, reached
/// by sockets. NCCL reads these once, at its first call in the process. What the user has set
/// stays.
void pretend_to_be_a_host() {
  const auto set_default = [](const char* name, const std::string& value) {
    LONGHAUL_CHECK(setenv(name, value.c_str(), 0) == 0, "setenv of ", name, " failed");
  };
  set_default("NCCL_HOSTID", concat("longhaul-", host_name(), "-", ::getpid()));
  set_default("NCCL_SOCKET_IFNAME", "lo");
  set_default("NCCL_IB_DISABLE", "1");
  set_default("NCCL_NVLS_ENABLE", "0");
}

ncclConfig_t config_of(int max_thread_blocks, const std::string& name) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (max_thread_blocks > 0) config.maxCTAs = max_thread_blocks;
  config.commName = name.c_str();  // of the handle, which outlives NCCL's
  return config;
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key, const std::string& name) {
  LONGHAUL_CHECK(color >= 0, "split of '", this->name(), "' into '", name, "' with colour ", color,
                 "; expected at least 0");
  auto child = std::make_shared<NcclHandle>(name, handle_->device(), handle_->timeout_seconds());
  ncclConfig_t config = config_of(max_thread_blocks_, child->name());
  // NCCL fills the child in while it settles the parent; after a failure it may still do so, so
  // this leaks then.
  auto made = std::make_unique<ncclComm_t>(nullptr);
  ncclComm_t* const place = made.release();
  handle_->configure("split into '" + name + "'", [&](ncclComm_t parent) {
    return ncclCommSplit(parent, color, key, place, &config);
  });
  made.reset(place);
  child->init("split into '" + name + "'", [&](ncclComm_t* comm) {
    *comm = *made;
    return *comm == nullptr ? ncclInternalError : ncclSuccess;
  });
  return std::make_unique<NcclCommunicator>(std::move(child), max_thread_blocks_);
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap,
                                                     const NcclOptions& options) {
  const Device device{DeviceKind::cuda, options.device};
  const int devices = cuda_device_count();
  if (options.device < 0 || options.device >= devices) {
    fail(ExitCode::launch, "NCCL communicator '", bootstrap.name(), "' asks for CUDA device ",
         options.device, ", but ", devices,
         " are usable; check the driver and CUDA_VISIBLE_DEVICES");
  }
  LONGHAUL_CHECK(options.max_thread_blocks >= 0, "NCCL communicator '", bootstrap.name(),
                 "' with max_thread_blocks = ", options.max_thread_blocks, "; expected at least 0");
  detail::use_device(device);
  if (options.share_device) pretend_to_be_a_host();
  const Deadline deadline = deadline_in(options.timeout_seconds);
  const Stream host = Stream::cpu("nccl set-up");
  if (!options.share_device) check_devices(bootstrap, device, host, deadline);
  ncclUniqueId id{};
  if (bootstrap.rank() == 0) {
    const ncclResult_t made = ncclGetUniqueId(&id);
    LONGHAUL_CHECK(made == ncclSuccess, "ncclGetUniqueId: ", ncclGetErrorString(made), " (",
                   ncclGetLastError(nullptr), ")");
  }
  const Tensor bytes({static_cast<std::int64_t>(sizeof(id))}, DType::uint8, host);
  ops::upload_bytes(std::as_bytes(std::span(&id, 1)), bytes.view().data(), host);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(bootstrap.size()), 0);
  counts[0] = bytes.elements();  // rank 0's to everybody
  bootstrap.all_gather(bytes.view().slice(0, 0, bootstrap.rank() == 0 ? bytes.elements() : 0),
                       bytes, counts, host);
  host.synchronize(deadline);
  std::memcpy(&id, bytes.view().data(), sizeof(id));
  auto handle = std::make_shared<NcclHandle>(bootstrap.name(), device, options.timeout_seconds);
  const int thread_blocks = options.share_device ? kSharedThreadBlocks : options.max_thread_blocks;
  ncclConfig_t config = config_of(thread_blocks, handle->name());
  handle->init("init", [&](ncclComm_t* comm) {
    return ncclCommInitRankConfig(comm, bootstrap.size(), id, bootstrap.rank(), &config);
  });
  return std::make_unique<NcclCommunicator>(std::move(handle), thread_blocks);
}

}  // namespace longhaul::runtime
