#pragma once
// The name of the host that this process runs on.

#include <string>

namespace longhaul::runtime {

/// As gethostname() says; "unknown" where that fails.
std::string host_name();

}  // namespace longhaul::runtime
