#include "parallel/halo.h"

#include <algorithm>
#include <map>
#include <memory>

#include "attention/short_conv.h"
#include "parallel/builder.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

/// Rows of a halo that one rank holds together.
struct Piece {
  int owner = 0, reader = 0;
  std::int64_t row = 0;       ///< of the owner
  std::int64_t halo_row = 0;  ///< of the reader
  std::int64_t rows = 0;
};

/// What all ranks' programs are made of.
struct HaloPlan {
  std::vector<std::vector<Run>> tokens;      // of each rank's halo
  std::vector<std::int64_t> rows;            // of it
  std::vector<std::vector<Piece>> received;  // by reader, in the order of its halo
  std::vector<std::vector<Piece>> given;     // by owner; those of a reader in the same order
};

/// A run of tokens and where its rows are.
struct Held {
  std::int64_t first, end;
  int rank;
  std::int64_t row;
};

/// All runs of a layout, by token.
std::vector<Held> held_runs(const Layout& layout) {
  std::vector<Held> all;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    std::int64_t row = 0;
    for (const Run& run : layout.runs(rank)) {
      all.push_back({run.first, run.first + run.count, rank, row});
      row += run.count;
    }
  }
  std::ranges::sort(all, {}, &Held::first);
  return all;
}

HaloPlan plan_halo(const HaloInputs& inputs) {
  const auto ranks = static_cast<std::size_t>(inputs.layout.ranks());
  HaloPlan plan{std::vector<std::vector<Run>>(ranks), std::vector<std::int64_t>(ranks),
                std::vector<std::vector<Piece>>(ranks), std::vector<std::vector<Piece>>(ranks)};
  for (int rank = 0; rank < inputs.layout.ranks(); ++rank) {
    attention::ConvRows of =
        attention::conv_rows(inputs.layout.runs(rank), inputs.documents, inputs.conv_width);
    const bool forward = inputs.direction == Direction::forward;
    plan.tokens[static_cast<std::size_t>(rank)] = std::move(forward ? of.left : of.right);
    plan.rows[static_cast<std::size_t>(rank)] = forward ? of.left_rows : of.right_rows;
  }
  const std::vector<Held> held = held_runs(inputs.layout);
  for (int rank = 0; rank < inputs.layout.ranks(); ++rank) {
    std::int64_t halo_row = 0;
    for (const Run& wanted : plan.tokens[static_cast<std::size_t>(rank)]) {
      const std::int64_t end = wanted.first + wanted.count;
      auto at = std::ranges::upper_bound(held, wanted.first, {}, &Held::first) - 1;
      for (std::int64_t token = wanted.first; token < end; ++at) {
        const std::int64_t rows = std::min(end, at->end) - token;
        const Piece piece{at->rank, rank, at->row + token - at->first, halo_row, rows};
        plan.received[static_cast<std::size_t>(rank)].push_back(piece);
        plan.given[static_cast<std::size_t>(at->rank)].push_back(piece);
        halo_row += rows;
        token += rows;
      }
    }
  }
  return plan;
}

/// One message a peer, by rank.
std::vector<Message> messages(const std::map<int, std::vector<View>>& by_peer) {
  std::vector<Message> all;
  for (const auto& [peer, views] : by_peer) all.push_back({peer, views});
  return all;
}

Program halo_program(const HaloInputs& inputs, const HaloPlan& plan, int rank) {
  const auto index = static_cast<std::size_t>(rank);
  const Record record = halo_record(inputs.channels, inputs.activation);
  Builder builder(rank, kHaloChannels);
  const View x = builder.add_slot(
      {"x", record, inputs.layout.rows(rank), 1, Role::input, inputs.layout.runs(rank)});
  const View halo =
      builder.add_slot({"halo", record, plan.rows[index], 1, Role::output, plan.tokens[index]});
  std::map<int, std::vector<View>> sends, receives;
  for (const Piece& piece : plan.given[index])
    sends[piece.reader].push_back(rows_of(x, piece.row, piece.row + piece.rows));
  for (const Piece& piece : plan.received[index])
    receives[piece.owner].push_back(rows_of(halo, piece.halo_row, piece.halo_row + piece.rows));
  builder.transfer(0, messages(sends), messages(receives));
  return std::move(builder).finish();
}

}  // namespace

Record halo_record(std::int64_t channels, runtime::DType activation) {
  return {"rows", Side::query, Combine::none, {{"rows", channels, activation}}};
}

Signature halo_signature() { return {{"rows"}, {"rows"}}; }

ProgramGenerator prepare_halo(const HaloInputs& inputs) {
  LONGHAUL_CHECK(!inputs.documents.empty() && inputs.documents.back() == inputs.layout.tokens(),
                 "documents over ", inputs.documents.empty() ? 0 : inputs.documents.back(),
                 " tokens, layout of ", inputs.layout.tokens());
  const auto plan = std::make_shared<const HaloPlan>(plan_halo(inputs));
  return [inputs, plan](int rank) { return halo_program(inputs, *plan, rank); };
}

Schedule build_halo_schedule(const HaloInputs& inputs) {
  Schedule schedule;
  schedule.scheme = "halo";
  schedule.direction = inputs.direction;
  schedule.shapes = {1, 1, inputs.channels, inputs.channels, inputs.activation};
  schedule.channels = kHaloChannels;
  const ProgramGenerator generate = prepare_halo(inputs);
  for (int rank = 0; rank < inputs.layout.ranks(); ++rank)
    schedule.programs.push_back(generate(rank));
  return schedule;
}

}  // namespace longhaul::parallel
