#pragma once
// The thread that makes all MPI calls. Private to runtime/comm.

#include <mpi.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/comm/mpi.h"
#include "runtime/comm/mpi_sharing_impl.h"
#include "runtime/comm/transport.h"

namespace longhaul::runtime::detail {

struct MpiFacts {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;
  std::string host_name, mpi_version;
  MpiSharing sharing;
};

/// Callers hand exchanges over and sleep; the worker posts, polls and wakes them. The thread shares
/// the ownership of this object, so that a worker stuck in MPI can be left behind.
class MpiWorker final : public Transport {
 public:
  explicit MpiWorker(const MpiOptions& options) : options_(options) {}

  /// Starts the thread of `worker` and waits until MPI is up.
  static void start(const std::shared_ptr<MpiWorker>& worker);
  void close();
  void abandon();
  const MpiFacts& facts() const { return facts_; }
  double timeout_seconds() const { return options_.timeout_seconds; }

  void exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  bool share_memory(int one, int other) const override {
    return facts_.sharing.between(one, other);
  }
  SharedPlace place_of(const std::byte* data) const override {
    return facts_.sharing.place_of(data);
  }
  const std::byte* at(const SharedPlace& place) const override { return facts_.sharing.at(place); }

 private:
  enum class Phase { starting, running, closing, abandoned, over };
  /// An exchange under way; owned by its caller and the worker, whoever leaves last.
  struct Operation {
    ExchangeInfo info;
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    Clock::time_point begin;
    Deadline deadline;
    std::optional<Deadline> retire_by;  // set once the deadline has passed
    std::vector<MissingPeer> open;  // pieces posted and not complete, as the worker last saw them
    int open_pieces = 0;
    bool finished = false;
    std::exception_ptr error;
    std::condition_variable changed;
  };
  using OperationPtr = std::shared_ptr<Operation>;
  /// What a request of requests_ belongs to.
  struct Piece {
    OperationPtr operation;
    int peer = 0;
    int bytes = 0;
    bool sending = false;
  };
  using Lock = std::unique_lock<std::mutex>;

  void run();
  void initialise();
  void poll_until_closed();
  void post(const OperationPtr& operation);
  bool test();
  void complete(std::size_t index, const MPI_Status& status);
  void expire();
  void finish(Operation& operation, std::exception_ptr error);
  void break_down(std::exception_ptr error);
  void check_usable() const;
  template <class Post>
  void post_pieces(const OperationPtr& operation, int peer, std::int64_t bytes, bool sending,
                   const Post& post);

  const MpiOptions options_;
  MpiFacts facts_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int largest_tag_ = 0;

  std::mutex mutex_;
  std::condition_variable submitted_;      // wakes the worker
  std::condition_variable phase_changed_;  // wakes start() and close()
  Phase phase_ = Phase::starting;
  std::exception_ptr broken_;  // why no operation can succeed any more
  std::deque<OperationPtr> queue_;
  std::thread thread_;

  // The worker's own.
  std::deque<OperationPtr> fresh_;  // taken from the queue, being posted
  std::vector<MPI_Request> requests_;
  std::vector<Piece> pieces_;
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
};

}  // namespace longhaul::runtime::detail
