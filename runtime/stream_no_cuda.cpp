// The CPU build's side of stream_impl.h: there is no CUDA device.
#include "runtime/error.h"
#include "runtime/stream_impl.h"

namespace longhaul::runtime {

namespace {
[[noreturn]] void no_cuda() {
  fail(ExitCode::launch, "this build has no CUDA backend; configure with --preset cuda");
}
}  // namespace

int cuda_device_count() { return 0; }
std::string cuda_device_name(int) { no_cuda(); }
DeviceMemory cuda_device_memory(int) { no_cuda(); }

namespace detail {
std::shared_ptr<StreamImpl> make_cuda_stream(const std::string&, int, bool) { no_cuda(); }
std::byte* cuda_allocate(Device, std::int64_t) { no_cuda(); }
void cuda_free(Device, std::byte*) { no_cuda(); }
std::byte* pinned_allocate(std::int64_t) { no_cuda(); }
void pinned_free(std::byte*) { no_cuda(); }
}  // namespace detail
}  // namespace longhaul::runtime
