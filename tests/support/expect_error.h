#pragma once
// Expecting runtime::Error with an exit code and a part of its message.

#include <gtest/gtest.h>

#include <string>

#include "runtime/error.h"

namespace longhaul::test {

template <class Work>
void expect_error(runtime::ExitCode code, const std::string& part, const Work& work) {
  try {
    work();
  } catch (const runtime::Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << "'" << part << "' is not in: " << error.what();
    return;
  }
  ADD_FAILURE() << "no error; expected exit code " << static_cast<int>(code) << " and '" << part
                << "'";
}

}  // namespace longhaul::test
