#pragma once
// The form of one rank's program: what a step's check() is given, and what all steps share.

#include <string>
#include <string_view>
#include <type_traits>

#include "parallel/schedule.h"
#include "parallel/verifier/verifier.h"

namespace longhaul::parallel {

/// "rank 3, step 5 (Transfer)".
std::string place(const Program& program, int step);
/// "kv[0:6, heads 0:12]".
std::string show(const Program& program, const View& view);

/// A step of a program under inspection. What does not hold is thrown as a Verdict that names it.
class Form {
 public:
  Form(const Program& program, int step, const Schedule& schedule)
      : program_(program), step_(step), schedule_(schedule) {}

  const Program& program() const { return program_; }
  const Shapes& shapes() const { return schedule_.shapes; }
  Direction direction() const { return schedule_.direction; }
  int ranks() const { return static_cast<int>(schedule_.programs.size()); }
  const Record& record(const View& view) const { return program_.slot(view).record; }

  /// `text` is a string, or a function that makes one only when it is needed.
  template <class Text>
  void require(bool condition, const Text& text) const {
    if (condition) return;
    if constexpr (std::is_invocable_v<Text>) {
      refuse(text());
    } else {
      refuse(text);
    }
  }
  /// Whether the step is one that may read, or write, borrowed slots: attention reads them, loans
  /// come and go by transfers.
  bool may_use_loan(bool write) const;
  void require_kind(const View& view, std::string_view kind) const;
  void require_same_record(const View& a, const View& b) const;
  void require_same_extent(const View& a, const View& b) const;

 private:
  [[noreturn]] void refuse(const std::string& why) const;

  const Program& program_;
  const int step_;
  const Schedule& schedule_;
};

/// Streams, waits, views, and every step's own check().
void check_form(const Program& program, const Schedule& schedule);

}  // namespace longhaul::parallel
