// The kernels run at each level of instructions: see tests/CMakeLists.txt.
#include "tests/support/forced_level.h"

namespace longhaul::attention {
namespace {

[[maybe_unused]] const auto* const environment =
    testing::AddGlobalTestEnvironment(new test::ForcedLevel);

}  // namespace
}  // namespace longhaul::attention
