#include "runtime/comm/mpi.h"

#include <exception>

#include "runtime/comm/host_communicator.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/mpi_worker_impl.h"
#include "runtime/error.h"

namespace longhaul::runtime {

MpiSession::MpiSession(const MpiOptions& options)
    : worker_(std::make_shared<detail::MpiWorker>(options)) {
  LONGHAUL_CHECK(0 < options.max_message_bytes && options.max_message_bytes <= INT_MAX,
                 "max_message_bytes is ", options.max_message_bytes, "; expected 1 to ", INT_MAX);
  LONGHAUL_CHECK(options.timeout_seconds > 0, "timeout_seconds is ", options.timeout_seconds);
  check_srun_offers_pmi(process_environment());
  detail::MpiWorker::start(worker_);
}

MpiSession::~MpiSession() {
  if (over_) return;
  if (std::uncaught_exceptions() > 0) {
    abandon();
    return;
  }
  try {
    close();
  } catch (const std::exception&) {
    // A destructor cannot tell; who wants to know calls close().
  }
}

int MpiSession::rank() const { return worker_->facts().rank; }
int MpiSession::size() const { return worker_->facts().size; }
int MpiSession::local_rank() const { return worker_->facts().local_rank; }
int MpiSession::local_size() const { return worker_->facts().local_size; }
const std::string& MpiSession::host_name() const { return worker_->facts().host_name; }
const std::string& MpiSession::sharing_text() const { return worker_->facts().sharing.text(); }
const std::string& MpiSession::mpi_version() const { return worker_->facts().mpi_version; }

std::unique_ptr<HostCommunicator> MpiSession::world() {
  LONGHAUL_CHECK(!world_taken_, "the world communicator was taken before; split that one");
  world_taken_ = true;
  return HostCommunicator::world(worker_, rank(), size(), worker_->timeout_seconds());
}

void MpiSession::close() {
  if (over_) return;
  over_ = true;  // also when it fails: there is no second try
  worker_->close();
}

void MpiSession::abandon() {
  over_ = true;
  worker_->abandon();
}

}  // namespace longhaul::runtime
