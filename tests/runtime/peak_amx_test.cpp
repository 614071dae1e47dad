// The samples of AMX's peak, on emulated tiles where the machine has none: the emulator aborts at
// what no tile could do.
#include <gtest/gtest.h>

#include "runtime/peak_impl.h"

namespace longhaul::runtime::detail {
namespace {

TEST(PeakAmx, SamplesAreInstructionsThatTilesUnderstand) {
  sample_tiles();
  sample_tiles_from_memory();
}

}  // namespace
}  // namespace longhaul::runtime::detail
