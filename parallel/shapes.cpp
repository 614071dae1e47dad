#include "parallel/shapes.h"

#include <bit>

#include "runtime/error.h"

namespace longhaul::parallel {

std::string key(const Shapes& shapes) {
  std::string text =
      runtime::concat(shapes.heads, "/", shapes.kv_heads, "/", shapes.dim, "/", shapes.value_dim,
                      "/", name(shapes.activation), "/", static_cast<int>(shapes.weighting));
  if (!shapes.linear) return text;
  const auto& [recurrence, initial_state, final_state, slopes_gradient, states_given] =
      *shapes.linear;
  return runtime::concat(text, "/", attention::kind_of(recurrence), "/",
                         std::bit_cast<std::uint32_t>(recurrence.scale), "/", recurrence.causal,
                         initial_state, final_state, slopes_gradient, states_given);
}

}  // namespace longhaul::parallel
