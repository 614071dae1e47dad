#include "runtime/comm/nccl_handle_impl.h"

#include <future>

#include "runtime/backoff_impl.h"

namespace longhaul::runtime::detail {
namespace {

constexpr auto kWatch = std::chrono::milliseconds(20);

std::string text_of(ncclResult_t code, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  return concat("NCCL says '", ncclGetErrorString(code), "'",
                detail != nullptr && *detail != '\0' ? concat(" (", detail, ")") : "");
}

}  // namespace

std::string NcclHandle::where(const std::string& what) const {
  const std::string who = size_ > 0 ? concat("rank ", rank_, " of ", size_) : thread_rank();
  return concat(who, " in '", what, "' of NCCL communicator '", name_, "' on ", to_string(device_));
}

void NcclHandle::check(ncclResult_t code, const std::string& what, Lock& lock) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  give_up(ExitCode::internal, concat(where(what), ": ", text_of(code, comm_)), lock);
  std::rethrow_exception(error_);
}

/// Waits until the last call on the communicator is no longer in progress: until it is enqueued,
/// not until it is over.
void NcclHandle::settle(ncclResult_t code, const std::string& what, Lock& lock) {
  check(code, what, lock);
  const Deadline deadline = deadline_in(timeout_seconds());
  Backoff backoff;
  while (comm_ != nullptr) {
    ncclResult_t state = ncclSuccess;
    check(ncclCommGetAsyncError(comm_, &state), what, lock);
    check(state, what, lock);
    if (state == ncclSuccess) return;
    if (Clock::now() >= deadline) {
      give_up(ExitCode::hang,
              concat(where(what), " has not been set up after ", timeout_seconds(),
                     " s: another rank does not take part, or cannot be reached"),
              lock);
      std::rethrow_exception(error_);
    }
    lock.unlock();
    backoff.pause();
    lock.lock();
    if (error_) std::rethrow_exception(error_);
  }
}

/// Aborts, under a deadline of its own: NCCL's abort has been seen to hang.
void NcclHandle::give_up(ExitCode code, std::string message, Lock&) {
  if (error_) return;
  // Before the abort: that lets the streams run on, and whoever waits for one must find the error.
  error_ = std::make_exception_ptr(Error(code, message));
  for (const Operation& operation : under_way_) {
    if (const auto stream = operation.stream.lock()) stream->poison(error_);
  }
  under_way_.clear();
  if (comm_ == nullptr) return;
  auto aborted = std::make_shared<std::promise<ncclResult_t>>();
  std::future<ncclResult_t> result = aborted->get_future();
  std::thread([aborted, comm = comm_, index = device_.index] {
    const cudaError_t current = cudaSetDevice(index);
    aborted->set_value(current == cudaSuccess ? ncclCommAbort(comm) : ncclUnhandledCudaError);
  }).detach();
  comm_ = nullptr;
  if (result.wait_for(std::chrono::duration<double>(timeout_seconds())) !=
      std::future_status::ready) {
    message += concat("; and its abort did not return within ", timeout_seconds(),
                      " s: exit at once, the device may not become idle");
  } else if (const ncclResult_t abort_code = result.get(); abort_code != ncclSuccess) {
    message += concat("; and its abort failed: ", ncclGetErrorString(abort_code));
  }
  error_ = std::make_exception_ptr(Error(code, message));
}

void NcclHandle::watch(const std::string& rank) {
  set_thread_rank(rank);
  Lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || !under_way_.empty(); });
    if (closing_) return;
    try {
      while (!under_way_.empty() && under_way_.front().over.complete()) under_way_.pop_front();
      if (!under_way_.empty() && comm_ != nullptr) {
        Operation& oldest = under_way_.front();
        if (!oldest.deadline && oldest.ready.complete())
          oldest.deadline = deadline_in(timeout_seconds());
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
        const ncclResult_t worst = asked != ncclSuccess ? asked : state;
        if (worst != ncclSuccess && worst != ncclInProgress) {
          give_up(ExitCode::internal, concat(where(oldest.what), ": ", text_of(worst, comm_)),
                  lock);
        } else if (oldest.deadline && Clock::now() >= *oldest.deadline) {
          give_up(ExitCode::hang,
                  concat(where(oldest.what), " is not over after ", timeout_seconds(),
                         " s: a peer does not take part"),
                  lock);
        }
      }
    } catch (const std::exception& error) {  // the device itself failed
      const std::string what = under_way_.empty() ? "" : under_way_.front().what;
      give_up(ExitCode::internal, concat(where(what), ": ", error.what()), lock);
    }
    changed_.wait_for(lock, kWatch, [&] { return closing_; });
  }
}

NcclHandle::~NcclHandle() {
  {
    Lock lock(mutex_);
    const Deadline deadline = deadline_in(timeout_seconds());
    while (!error_ && !under_way_.empty() && Clock::now() < deadline)
      changed_.wait_for(lock, kWatch);
    closing_ = true;
    changed_.notify_all();
  }
  if (watcher_.joinable()) watcher_.join();
  Lock lock(mutex_);
  if (comm_ == nullptr) return;
  // What fails from here on cannot be reported; an abort frees the communicator all the same.
  in_destructor(cudaSetDevice(device_.index));
  ncclResult_t state = ncclCommFinalize(comm_);
  const Deadline deadline = deadline_in(timeout_seconds());
  Backoff backoff;
  while (state == ncclInProgress || state == ncclSuccess) {
    if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess || state != ncclInProgress) break;
    if (Clock::now() >= deadline) break;
    backoff.pause();
  }
  if (state != ncclSuccess || ncclCommDestroy(comm_) != ncclSuccess) {
    give_up(ExitCode::internal, "", lock);
  }
}

}  // namespace longhaul::runtime::detail
