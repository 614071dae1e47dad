#include "parallel/verifier/verify_halo.h"

#include <algorithm>

#include "parallel/halo.h"
#include "parallel/verifier/prove.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;
using Tokens = std::vector<std::int64_t>;

Tokens documents_of_tokens(std::span<const std::int64_t> documents) {
  Tokens of;
  for (std::size_t d = 0; d + 1 < documents.size(); ++d)
    of.insert(of.end(), static_cast<std::size_t>(documents[d + 1] - documents[d]),
              static_cast<std::int64_t>(d));
  return of;
}

/// What a rank's rows need: wherever the row before (or behind) is not the token before (or
/// behind), those tokens, while they are of the same document.
Tokens needed(const Tokens& held, const Tokens& document_of, std::int64_t reach,
              Direction direction) {
  Tokens all;
  const auto same_document = [&](std::int64_t a, std::int64_t b) {
    return b >= 0 && b < std::ssize(document_of) &&
           document_of[static_cast<std::size_t>(a)] == document_of[static_cast<std::size_t>(b)];
  };
  for (std::size_t row = 0; row < held.size(); ++row) {
    const std::int64_t token = held[row];
    if (direction == Direction::forward) {
      if (row > 0 && held[row - 1] == token - 1) continue;
      for (std::int64_t back = reach; back > 0; --back) {
        if (same_document(token, token - back)) all.push_back(token - back);
      }
    } else {
      if (row + 1 < held.size() && held[row + 1] == token + 1) continue;
      for (std::int64_t ahead = 1; ahead <= reach; ++ahead) {
        if (same_document(token, token + ahead)) all.push_back(token + ahead);
      }
    }
  }
  return all;
}

Tokens declared(const Slot& slot) {
  Tokens all;
  for (const Run& run : slot.tokens) {
    for (std::int64_t i = 0; i < run.count; ++i) all.push_back(run[i]);
  }
  return all;
}

/// The slot of that name, role and tokens.
void check_slot(const Program& program, const char* name, Role role, const Record& record,
                const Tokens& tokens) {
  const auto refuse = [&](Fault fault, const char* why) {
    throw Verdict{fault, concat("rank ", program.rank, ": slot ", name, " ", why)};
  };
  const auto found = std::ranges::find(program.slots, name, &Slot::name);
  if (found == program.slots.end() || found->role != role || found->record != record)
    refuse(Fault::malformed, "is missing, or made of something else, or has another role");
  if (found->rows != std::ssize(tokens) || found->heads != 1 || found->first_head != 0)
    refuse(Fault::malformed, "does not have a row for each of its tokens");
  if (declared(*found) != tokens)
    refuse(Fault::misplaced, "is declared as other tokens than the convolution's");
}

}  // namespace

Verdict verify_halo(const Schedule& schedule, std::span<const std::int64_t> documents,
                    std::int64_t conv_width, const Layout& layout) {
  const Tokens document_of = documents_of_tokens(documents);
  if (std::ssize(document_of) != layout.tokens()) {
    return {Fault::malformed, concat("documents of ", document_of.size(),
                                     " tokens for a layout of ", layout.tokens())};
  }
  const Record record = halo_record(schedule.shapes.dim, schedule.shapes.activation);
  const auto check_slots = [&](const Program& program) {
    const Tokens held = layout.tokens_of(program.rank);
    check_slot(program, "x", Role::input, record, held);
    check_slot(program, "halo", Role::output, record,
               needed(held, document_of, conv_width - 1, schedule.direction));
    const auto bound =
        std::ranges::count_if(program.slots, [](const Slot& s) { return s.role != Role::scratch; });
    if (bound != 2) {
      throw Verdict{Fault::malformed, concat("rank ", program.rank, " has ", bound,
                                             " inputs and outputs; expected 2")};
    }
  };
  // Nothing is attended: no row of an output is a sum.
  return prove(schedule, attention::Mask::from_slices(layout.tokens(), {}), layout, check_slots);
}

}  // namespace longhaul::parallel
