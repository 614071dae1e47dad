#include "runtime/error.h"

#include <string_view>

namespace longhaul::runtime {
namespace {
thread_local std::string rank_name;
}

void set_thread_rank(const std::string& name) { rank_name = name; }
const std::string& thread_rank() { return rank_name; }

void detail::check_failed(const char* condition, const char* file, int line,
                          const std::string& message) {
  std::string_view path(file);
  for (std::string_view room : {"runtime/", "attention/", "parallel/", "models/", "launch/"}) {
    const auto at = path.rfind(room);
    if (at != std::string_view::npos) {
      path.remove_prefix(at);
      break;
    }
  }
  const std::string who = rank_name.empty() ? "" : concat(" (", rank_name, ")");
  fail(ExitCode::internal, path, ":", line, who, ": ", message, " [", condition, "]");
}

}  // namespace longhaul::runtime
