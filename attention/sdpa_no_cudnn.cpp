#include "attention/sdpa.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {

std::string no_sdpa_reason() {
  return "this build has no cuDNN (attention/README.md says what it needs)";
}

std::shared_ptr<const Sdpa> sdpa(const SdpaForm&, runtime::Device) {
  runtime::fail(runtime::ExitCode::launch, no_sdpa_reason());
}

}  // namespace longhaul::attention::detail
