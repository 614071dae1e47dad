#include "runtime/comm/mpi_worker_impl.h"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>

#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::runtime::detail {
namespace {

/// How long a cancelled operation may take to let go of its buffers.
constexpr double kRetireSeconds = 0.2;
/// How long past its deadline a caller waits for a worker that may be stuck inside MPI.
constexpr double kStuckSeconds = 1.0;

/// How long to sleep before the next poll. Short after something moved, longer the longer nothing
/// does.
class Pacer {
 public:
  void moved() {
    polls_ = 0;
    since_ = Clock::now();
  }
  void pause(std::unique_lock<std::mutex>& lock, std::condition_variable& wake, bool pending) {
    using std::chrono::microseconds;
    const auto quiet = Clock::now() - since_;
    if (pending && polls_++ < kYields) {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
      return;
    }
    microseconds nap(20);
    if (pending) {
      if (quiet > microseconds(500)) nap = microseconds(50);
      if (quiet > microseconds(20'000)) nap = microseconds(200);
      if (quiet > microseconds(1'000'000)) nap = microseconds(1000);
    } else {
      // Nothing of ours is pending, but MPI may still hold the tail of a send that it called
      // complete.
      nap = quiet < microseconds(100'000) ? microseconds(2'000) : microseconds(100'000);
    }
    wake.wait_for(lock, nap);
  }

 private:
  static constexpr int kYields = 20;
  int polls_ = 0;
  Clock::time_point since_ = Clock::now();
};

}  // namespace

void MpiWorker::start(const std::shared_ptr<MpiWorker>& worker) {
  worker->thread_ = start_thread("MPI", [worker, rank = thread_rank()] {
    set_thread_rank(rank);
    worker->run();
  });
  Lock lock(worker->mutex_);
  const Deadline deadline = deadline_in(worker->options_.timeout_seconds);
  if (!worker->phase_changed_.wait_until(lock, deadline,
                                         [&] { return worker->phase_ != Phase::starting; })) {
    worker->phase_ = Phase::abandoned;
    worker->thread_.detach();
    fail(ExitCode::hang, "MPI did not start within ", worker->options_.timeout_seconds,
         " s: a rank is missing, or the launcher and the MPI library do not fit each other");
  }
  if (worker->phase_ == Phase::over) {
    worker->thread_.detach();
    std::rethrow_exception(worker->broken_);
  }
}

void MpiWorker::run() {
  std::exception_ptr error;
  try {
    initialise();
    {
      std::lock_guard lock(mutex_);
      if (phase_ == Phase::starting) phase_ = Phase::running;
    }
    phase_changed_.notify_all();
    poll_until_closed();
    bool finalise = false;
    {
      std::lock_guard lock(mutex_);
      finalise = phase_ == Phase::closing;
    }
    if (finalise) {
      check_mpi(MPI_Comm_free(&comm_), "MPI_Comm_free");
      check_mpi(MPI_Finalize(), "MPI_Finalize");
    }
  } catch (...) {
    error = std::current_exception();
  }
  std::lock_guard lock(mutex_);
  if (error) break_down(error);
  phase_ = Phase::over;
  phase_changed_.notify_all();
}

void MpiWorker::initialise() {
  // The kernel may add 50 us to every sleep of a thread unless it is told not to.
  if (prctl(PR_SET_TIMERSLACK, 1000UL) != 0)
    fail(ExitCode::internal, "prctl(PR_SET_TIMERSLACK) failed");
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread",
            ExitCode::launch);
  if (provided < MPI_THREAD_FUNNELED) {
    fail(ExitCode::launch, "this MPI library has no thread support (level ", provided,
         "); MPI_THREAD_FUNNELED is needed");
  }
  // MPI_COMM_WORLD's errors would abort the process.
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &facts_.rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &facts_.size), "MPI_Comm_size");
  int* largest_tag = nullptr;
  int found = 0;
  check_mpi(MPI_Comm_get_attr(comm_, MPI_TAG_UB, static_cast<void*>(&largest_tag), &found),
            "MPI_Comm_get_attr");
  LONGHAUL_CHECK(found != 0, "MPI does not say its largest tag");
  largest_tag_ = *largest_tag;
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, facts_.rank, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(host, &facts_.local_rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(host, &facts_.local_size), "MPI_Comm_size");
  facts_.sharing = MpiSharing(comm_, host, options_.share_memory);
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free");
  char name[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0;
  check_mpi(MPI_Get_processor_name(name, &length), "MPI_Get_processor_name");
  facts_.host_name.assign(name, static_cast<std::size_t>(length));
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  check_mpi(MPI_Get_library_version(version, &length), "MPI_Get_library_version");
  facts_.mpi_version.assign(version, static_cast<std::size_t>(length));
}

void MpiWorker::check_usable() const {
  if (broken_) std::rethrow_exception(broken_);
  if (phase_ != Phase::running)
    fail(ExitCode::internal, "an exchange after the MPI session was closed or abandoned");
}

void MpiWorker::exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                         std::span<const Incoming> receives) {
  LONGHAUL_CHECK(info.context <= largest_tag_, "context ", info.context, " of communicator '",
                 info.communicator, "' is beyond MPI's largest tag ", largest_tag_,
                 "; too many splits");
  auto operation = std::make_shared<Operation>();
  operation->info = info;
  operation->sends.assign(sends.begin(), sends.end());
  operation->receives.assign(receives.begin(), receives.end());
  operation->begin = Clock::now();
  operation->deadline = deadline_in(info.timeout_seconds);
  Lock lock(mutex_);
  check_usable();
  queue_.push_back(operation);
  submitted_.notify_one();
  const Deadline stuck = operation->deadline + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(kStuckSeconds));
  if (!operation->changed.wait_until(lock, stuck, [&] { return operation->finished; })) {
    // The worker does not come back from MPI; so nobody else may use it either.
    std::vector<MissingPeer> open = operation->open;
    if (open.empty()) {
      for (const Incoming& message : receives) open.push_back({message.peer, message.bytes, false});
      for (const Outgoing& message : sends) open.push_back({message.peer, message.bytes, true});
    }
    try {
      fail_hang(info, std::chrono::duration<double>(Clock::now() - operation->begin).count(), open);
    } catch (...) {
      if (!broken_) broken_ = std::current_exception();
      throw;
    }
  }
  if (operation->error) std::rethrow_exception(operation->error);
}

void MpiWorker::poll_until_closed() {
  Pacer pacer;
  Lock lock(mutex_);
  for (;;) {
    if (phase_ == Phase::abandoned || broken_) {
      break_down(
          std::make_exception_ptr(Error(ExitCode::internal, "the MPI session was abandoned")));
      return;
    }
    if (phase_ == Phase::closing && queue_.empty() && requests_.empty()) return;
    fresh_.swap(queue_);
    lock.unlock();
    for (const OperationPtr& operation : fresh_) post(operation);
    const bool moved = test() || !fresh_.empty();
    lock.lock();
    fresh_.clear();
    expire();
    if (moved) {
      pacer.moved();
    } else if (queue_.empty()) {
      pacer.pause(lock, submitted_, !requests_.empty());
    }
  }
}

template <class Post>
void MpiWorker::post_pieces(const OperationPtr& operation, int peer, std::int64_t bytes,
                            bool sending, const Post& post) {
  for (std::int64_t begin = 0; begin < bytes; begin += options_.max_message_bytes) {
    const int piece = static_cast<int>(std::min(options_.max_message_bytes, bytes - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    post(begin, piece, &request);
    requests_.push_back(request);
    pieces_.push_back({operation, peer, piece, sending});
    ++operation->open_pieces;
  }
}

/// Receives first, so that messages find their place.
void MpiWorker::post(const OperationPtr& operation) {
  const int tag = operation->info.context;
  for (const Incoming& message : operation->receives) {
    post_pieces(operation, message.peer, message.bytes, false,
                [&](std::int64_t begin, int bytes, MPI_Request* request) {
                  check_mpi(MPI_Irecv(message.data + begin, bytes, MPI_BYTE, message.peer, tag,
                                      comm_, request),
                            "MPI_Irecv");
                });
  }
  for (const Outgoing& message : operation->sends) {
    post_pieces(operation, message.peer, message.bytes, true,
                [&](std::int64_t begin, int bytes, MPI_Request* request) {
                  check_mpi(MPI_Isend(message.data + begin, bytes, MPI_BYTE, message.peer, tag,
                                      comm_, request),
                            "MPI_Isend");
                });
  }
  if (operation->open_pieces == 0) {
    std::lock_guard lock(mutex_);
    finish(*operation, nullptr);
  }
}

/// Progress; true when something completed.
bool MpiWorker::test() {
  if (requests_.empty()) {
    int waiting = 0;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &waiting, MPI_STATUS_IGNORE),
              "MPI_Iprobe");
    return false;
  }
  completed_.resize(requests_.size());
  statuses_.resize(requests_.size());
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                completed_.data(), statuses_.data());
  if (code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return false;
  std::lock_guard lock(mutex_);
  for (int i = 0; i < count; ++i) {
    MPI_Status& status = statuses_[static_cast<std::size_t>(i)];
    if (code == MPI_SUCCESS) status.MPI_ERROR = MPI_SUCCESS;  // otherwise not set
    complete(static_cast<std::size_t>(completed_[static_cast<std::size_t>(i)]), status);
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (!pieces_[i].operation) continue;
    requests_[kept] = requests_[i];
    if (kept != i) pieces_[kept] = std::move(pieces_[i]);
    ++kept;
  }
  requests_.resize(kept);
  pieces_.resize(kept);
  return true;
}

/// Takes note of a completed request; its piece is dropped by the caller.
void MpiWorker::complete(std::size_t index, const MPI_Status& status) {
  Piece piece = std::move(pieces_[index]);
  pieces_[index].operation = nullptr;
  Operation& operation = *piece.operation;
  --operation.open_pieces;
  try {
    int received = piece.bytes;
    int cancelled = 0;
    check_mpi(MPI_Test_cancelled(&status, &cancelled), "MPI_Test_cancelled");
    const bool truncated = status.MPI_ERROR == MPI_ERR_TRUNCATE;
    if (!truncated) check_mpi(status.MPI_ERROR, piece.sending ? "MPI_Isend" : "MPI_Irecv");
    if (!piece.sending && !truncated && cancelled == 0) {
      check_mpi(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
    }
    const ExchangeInfo& info = operation.info;
    LONGHAUL_CHECK(!truncated && received == piece.bytes, "rank ", info.self, " expects ",
                   piece.bytes, " bytes from rank ", piece.peer, " in '", info.what,
                   "' (operation ", info.sequence, " of communicator '", info.communicator,
                   "'), which sent ", truncated ? std::string("more") : concat(received));
  } catch (...) {
    if (!operation.error) operation.error = std::current_exception();
  }
  if (operation.open_pieces == 0) finish(operation, operation.error);
}

/// Ends operations past their deadline: receives can be cancelled, sends only hoped for.
void MpiWorker::expire() {
  const Clock::time_point now = Clock::now();
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const OperationPtr operation = pieces_[i].operation;
    if (operation->retire_by) {
      if (now < *operation->retire_by) continue;
      break_down(operation->error);
      return;
    }
    if (now < operation->deadline) continue;
    for (std::size_t j = i; j < pieces_.size(); ++j) {
      const Piece& piece = pieces_[j];
      if (piece.operation != operation) continue;
      operation->open.push_back({piece.peer, piece.bytes, piece.sending});
      if (!piece.sending) check_mpi(MPI_Cancel(&requests_[j]), "MPI_Cancel");
    }
    operation->retire_by = deadline_in(kRetireSeconds);
    try {
      fail_hang(operation->info, std::chrono::duration<double>(now - operation->begin).count(),
                operation->open);
    } catch (...) {
      if (!operation->error) operation->error = std::current_exception();
    }
  }
}

void MpiWorker::finish(Operation& operation, std::exception_ptr error) {
  operation.error = std::move(error);
  operation.finished = true;
  operation.changed.notify_all();
}

/// MPI is not called again: what is still posted may not be progressed, since its buffers are given
/// back.
void MpiWorker::break_down(std::exception_ptr error) {
  if (!broken_) broken_ = std::move(error);
  const auto end = [&](const OperationPtr& operation) {
    if (operation && !operation->finished)
      finish(*operation, operation->error ? operation->error : broken_);
  };
  for (const Piece& piece : pieces_) end(piece.operation);
  for (const OperationPtr& operation : fresh_) end(operation);
  for (const OperationPtr& operation : queue_) end(operation);
  queue_.clear();
}

void MpiWorker::close() {
  Lock lock(mutex_);
  if (!broken_) {
    phase_ = Phase::closing;
    submitted_.notify_one();
    const Deadline deadline = deadline_in(options_.timeout_seconds);
    if (!phase_changed_.wait_until(lock, deadline, [&] { return phase_ == Phase::over; })) {
      phase_ = Phase::abandoned;
      thread_.detach();
      fail(ExitCode::hang, "rank ", facts_.rank, " waited ", options_.timeout_seconds,
           " s for the other ranks to finalise MPI");
    }
  }
  if (broken_) {
    thread_.detach();
    std::rethrow_exception(broken_);
  }
  lock.unlock();
  thread_.join();
}

void MpiWorker::abandon() {
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::over) phase_ = Phase::abandoned;
  submitted_.notify_one();
  if (thread_.joinable()) thread_.detach();
}

}  // namespace longhaul::runtime::detail
