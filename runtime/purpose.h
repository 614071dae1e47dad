#pragma once
// What memory is asked for, in words: an error of memory names it.

#include <cstdint>
#include <string>

namespace longhaul::runtime {

/// While it lives, what this thread allocates is for `what`; an inner one comes before the outer
/// ones: "slots of an attention call, backward of layer 3". It must not outlive a suspension of its
/// function.
class Purpose {
 public:
  /// Both are literals. `remedy`: what leaves less to ask for; empty for the outer one's.
  explicit Purpose(const char* what, const char* remedy = "");
  /// "WHAT NUMBER".
  Purpose(const char* what, std::int64_t number, const char* remedy = "");
  ~Purpose();
  Purpose(const Purpose&) = delete;
  Purpose& operator=(const Purpose&) = delete;

 private:
  friend std::string purpose_text();
  friend std::string purpose_remedy();
  const char* what_;
  const std::int64_t number_;
  const char* remedy_;
  const Purpose* const outer_;
};

/// Of this thread; empty where nobody has said.
std::string purpose_text();
/// The innermost remedy; empty for none.
std::string purpose_remedy();

}  // namespace longhaul::runtime
