#include "runtime/purpose.h"

namespace longhaul::runtime {
namespace {
thread_local const Purpose* innermost = nullptr;
}

Purpose::Purpose(const char* what, const char* remedy) : Purpose(what, -1, remedy) {}
Purpose::Purpose(const char* what, std::int64_t number, const char* remedy)
    : what_(what), number_(number), remedy_(remedy), outer_(innermost) {
  innermost = this;
}
Purpose::~Purpose() { innermost = outer_; }

std::string purpose_text() {
  std::string text;
  for (const Purpose* at = innermost; at != nullptr; at = at->outer_) {
    if (!text.empty()) text += ", ";
    text += at->what_;
    if (at->number_ >= 0) text += " " + std::to_string(at->number_);
  }
  return text;
}

std::string purpose_remedy() {
  for (const Purpose* at = innermost; at != nullptr; at = at->outer_) {
    if (*at->remedy_ != '\0') return at->remedy_;
  }
  return "";
}

}  // namespace longhaul::runtime
