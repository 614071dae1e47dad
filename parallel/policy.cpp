#include "parallel/policy.h"

#include "parallel/schemes/level_ring.h"

namespace longhaul::parallel {

std::vector<std::string> policy_names() { return {"auto"}; }

Expression choose_scheme(const std::string& text, const Shapes& shapes,
                         std::optional<runtime::DType> wire_dtype) {
  if (text != "auto") return parse_scheme(text, policy_names());
  return cheaper_backward(shapes, wire_dtype) == Circulating::queries ? "burst" : "ring";
}

}  // namespace longhaul::parallel
