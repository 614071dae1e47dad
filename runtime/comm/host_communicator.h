#pragma once
// The Communicator of every host backend: all it needs of one is a Transport.
// Steps and bytes of each collective: README.md.

#include "runtime/comm/communicator.h"
#include "runtime/comm/transport.h"

namespace longhaul::runtime {

class FlightRecorder;

class HostCommunicator final : public Communicator {
 public:
  /// The communicator of all ranks, in world order. `recorder`, when given, must outlive it and its
  /// splits, and gets every operation.
  static std::unique_ptr<HostCommunicator> world(std::shared_ptr<Transport> transport, int rank,
                                                 int size, double timeout_seconds,
                                                 FlightRecorder* recorder = nullptr);
  /// From now on this communicator, and splits made from now on, give their operations to the
  /// recorder. None may be under way.
  void record_to(FlightRecorder* recorder);

  int rank() const override;
  int size() const override;
  const std::string& name() const override;
  void exchange(std::vector<SendMessage> sends, std::vector<ReceiveMessage> receives,
                const std::string& what, const Stream& stream) override;
  bool lends() const override;
  void all_reduce(TensorView values, const Stream& stream) override;
  void all_gather(ConstTensorView input, TensorView output, std::span<const std::int64_t> counts,
                  const Stream& stream) override;
  void reduce_scatter(ConstTensorView input, TensorView output,
                      std::span<const std::int64_t> counts, const Stream& stream) override;
  MessageMemory memory_of(const GroupBytes& group, DeviceKind kind) const override;
  MessageMemory memory_of_segments(std::span<const std::int64_t> counts, DType dtype,
                                   DeviceKind kind) const override;
  void barrier(const Stream& stream) override;
  /// One rank issues its splits, of any communicator, in the same order as the ranks it shares them
  /// with.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;
  double set_timeout(double seconds) override;
  std::int64_t sent_bytes() const override;
  void reset_sent_bytes() override;
  std::span<const std::int64_t> exchanged_bytes() const override;

  /// Staging memory that a reduce_scatter of these counts takes on `rank`; of an all_reduce, which
  /// deals its elements evenly, at most.
  static std::int64_t reduce_staging_bytes(std::span<const std::int64_t> counts, int rank,
                                           DType dtype);
  static std::int64_t all_reduce_staging_bytes(std::int64_t elements, int ranks, DType dtype);

  struct Core;  ///< shared with the tasks in flight, which may outlive the communicator
  explicit HostCommunicator(std::shared_ptr<Core> core);

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace longhaul::runtime
