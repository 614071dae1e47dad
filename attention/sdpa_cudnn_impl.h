#pragma once
// What a test of cuDNN's graphs needs beside sdpa.h; knows nothing of cuDNN's headers. Only builds
// with cuDNN have it. Private to attention/ and its tests.

#include <string>

#include "attention/sdpa.h"

namespace longhaul::attention::detail {

/// Builds the graph of a form for a device that is known by cuDNN's JSON description of it alone,
/// through to its execution plan; nothing runs. Throws Error(config) where cuDNN does not take it.
/// sm_version: 90 for an H100.
std::int64_t sdpa_workspace_bytes(const SdpaForm& form, const std::string& device_properties,
                                  int sm_version);

}  // namespace longhaul::attention::detail
