// Under mpirun: a job that goes wrong in the way its argument says, and ends as launch/ does. See
// mpi_exit_test.cpp.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/comm/mpi.h"
#include "runtime/error.h"
#include "runtime/flight.h"

using namespace longhaul::runtime;

namespace {

void ring(Communicator& world, FlightRecorder& recorder, const std::string& mode) {
  const Stream stream = Stream::cpu("comm");
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const Tensor out({2'000'000}, DType::float32, stream), in({2'000'000}, DType::float32, stream);
  fill(out, 1, stream);
  const std::shared_ptr<const ConstTensorView> lent = std::make_shared<ConstTensorView>(out.view());
  const auto borrowed = std::make_shared<ConstTensorView>(*lent);
  for (int step = 0; step < 4; ++step) {
    recorder.set_step(step);
    if (step == 3 && world.rank() == 1) {
      if (mode == "stop") kill(getpid(), SIGSTOP);
      if (mode == "kill") kill(getpid(), SIGKILL);
      if (mode == "throw") fail(ExitCode::data, "bad corpus");
    }
    world.exchange({{.peer = next, .parts = {out}, .lent = {lent}}},
                   {{.peer = previous, .parts = {in.view()}, .borrowed = {borrowed}}}, "ring hop",
                   stream);
    stream.cpu_task([&] {
      if (std::memcmp(borrowed->data(), in.view().data(), 8'000'000) != 0)
        fail(ExitCode::internal, "what is lent differs from what is sent");
    });
    world.barrier(stream);  // all have read what they borrowed
    stream.synchronize(deadline_in(60));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 2 ? argv[1] : "", folder = argc > 2 ? argv[2] : "";
  try {
    MpiSession session({.timeout_seconds = 2, .share_memory = true});
    FlightRecorder recorder(folder, session.rank());
    std::printf("pid %d\n", getpid());
    std::fflush(stdout);
    try {
      const auto world = session.world();
      world->record_to(&recorder);
      ring(*world, recorder, mode);
    } catch (const Error& error) {
      std::fprintf(
          stderr, "%s\n%s", error.what(),
          error.code() == ExitCode::hang ? hang_report(folder, session.size()).c_str() : "");
      session.abandon();
      std::_Exit(static_cast<int>(error.code()));
    }
    session.close();
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(static_cast<int>(error.code()));
  }
}
