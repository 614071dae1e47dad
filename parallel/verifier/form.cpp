#include "parallel/verifier/form.h"

#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::concat;

std::string place(const Program& program, int step) {
  return concat("rank ", program.rank, ", step ", step, " (",
                name(program.steps[static_cast<std::size_t>(step)].operation), ")");
}

std::string show(const Program& program, const View& view) {
  const std::string slot = view.slot >= 0 && view.slot < static_cast<int>(program.slots.size())
                               ? program.slot(view).name
                               : "?";
  return concat(slot, "[", view.row_begin, ":", view.row_end, ", heads ", view.head_begin, ":",
                view.head_end, "]");
}

void Form::refuse(const std::string& why) const {
  throw Verdict{Fault::malformed, concat(place(program_, step_), ": ", why)};
}

void Form::require_kind(const View& view, std::string_view kind) const {
  require(record(view).kind == kind, [&] {
    return concat(show(program_, view), " is a ", record(view).kind, ", expected ", kind);
  });
}

void Form::require_same_record(const View& a, const View& b) const {
  require(record(a) == record(b), [&] {
    return concat(show(program_, a), " is a ", record(a).kind, ", ", show(program_, b), " a ",
                  record(b).kind, record(a).kind == record(b).kind ? " of other fields" : "");
  });
}

void Form::require_same_extent(const View& a, const View& b) const {
  require(same_extent(a, b),
          [&] { return concat(show(program_, a), " and ", show(program_, b), " differ in size"); });
}

bool Form::may_use_loan(bool write) const {
  const Operation& operation = program_.steps[static_cast<std::size_t>(step_)].operation;
  if (on_channel(operation)) return true;
  const bool reads = std::visit(
      []<class Step>(const Step&) {
        return requires { Step::kReadsLoans; };
      },
      operation);
  return reads && !write;
}

namespace {

void check_view(const Access& access, const Form& form) {
  const Program& program = form.program();
  const View& v = access.view;
  form.require(v.slot >= 0 && v.slot < static_cast<int>(program.slots.size()), "no such slot");
  const Slot& slot = program.slot(v);
  form.require(0 <= v.row_begin && v.row_begin <= v.row_end && v.row_end <= slot.rows &&
                   0 <= v.head_begin && v.head_begin <= v.head_end && v.head_end <= slot.heads,
               [&] {
                 return concat("view ", show(program, v), " leaves its slot of ", slot.rows,
                               " rows and ", slot.heads, " heads");
               });
  const bool given = slot.role == Role::input ||
                     (slot.role == Role::saved && form.direction() == Direction::backward);
  form.require(!(access.write && given),
               [&] { return concat("writes the input ", show(program, v)); });
  // Loans come and go with messages, which check themselves.
  form.require(slot.role != Role::borrowed || form.may_use_loan(access.write),
               [&] { return concat("uses ", show(program, v), ", which is borrowed"); });
}

}  // namespace

void check_form(const Program& program, const Schedule& schedule) {
  for (int index = 0; index < static_cast<int>(program.steps.size()); ++index) {
    const Form form(program, index, schedule);
    const Step& step = program.steps[static_cast<std::size_t>(index)];
    form.require(step.stream >= 0 && step.stream <= schedule.channels, "stream out of range");
    for (const int wait : step.waits)
      form.require(wait >= 0 && wait < index, "a wait for a later step");
    for (const Access& access : accesses(step.operation)) check_view(access, form);
    std::visit([&](const auto& operation) { check(operation, form); }, step.operation);
    form.require(on_channel(step.operation) == (step.stream != kCompute),
                 "transfers run on channels, everything else on compute");
  }
}

}  // namespace longhaul::parallel
