#include "runtime/comm/nccl.h"

namespace longhaul::runtime {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, const NcclOptions&) {
  fail(ExitCode::launch,
       "this build has no NCCL communicator; configure with --preset cuda, or use comm.backend = "
       "\"mpi\"");
}

}  // namespace longhaul::runtime
