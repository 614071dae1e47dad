#pragma once
// What moves and sums rows: accumulations, copies, and transfers between ranks, with all that is
// true of them.

#include <memory>
#include <optional>
#include <vector>

#include "parallel/slot.h"
#include "runtime/comm/communicator.h"

namespace longhaul::parallel {

struct Count;
struct Program;
class Form;
class Preparation;
class PreparedStep;
class Shadow;

/// dst <- dst merged with src (partials of a softmax), or dst + src, pair by pair of equal views.
/// No two of dst overlap, so the order of the pairs does not matter.
struct Accumulate {
  static constexpr const char* kName = "Accumulate";
  static constexpr bool kOnChannel = false;
  std::vector<View> src, dst;
};
/// dst <- src, pair by pair of equal views. No two of dst overlap.
struct Copy {
  static constexpr const char* kName = "Copy";
  static constexpr bool kOnChannel = false;
  std::vector<View> src, dst;
};

/// What a message does with its views.
enum class Passing : unsigned char {
  copy,      ///< sends their values
  lend,      ///< says where they lie: the receiver's slots are borrowed, and read there
  give_back  ///< ends a loan: the sender, who borrowed its views, has read them for the last time
};

/// Both sides list views of equal records, rows and heads. Views of one slot and the same heads
/// that follow one another are a stretch, the same stretches on both sides, and a stretch travels
/// field by field, each the rows of all its views.
struct Message {
  int peer = -1;
  std::vector<View> views;
  /// An assertion: matched messages have equal tags. Matching itself is in order per pair.
  int tag = 0;
  std::optional<runtime::DType> wire_dtype = {};  ///< only what adds
  /// A loan is of one view to a borrowed slot of as many rows and heads. The lender's view stays as
  /// it is until it is given back, by the same two views; a borrowed slot is lent once. Only
  /// attention reads it, and further loans.
  Passing passing = Passing::copy;
};

/// A hint that a group of messages is a collective, so that a backend may run its native one. It
/// changes no byte: the messages are the meaning.
///
/// A transfer so marked is, over the group of its rank and its peers:
/// - one message to and one from every other member, all of the same number of bytes; at most one
///   to and from the rank itself;
/// - `all_gather`: all its sends list the same views;
/// - each of its messages meets a transfer that is marked alike over the same group.
/// So every pair of members exchanges, all the same bytes, and all members know it.
using TransferKind = runtime::ExchangeKind;
const char* name(TransferKind kind);

/// A group of sends and receives that progress together; complete when all are.
struct Transfer {
  static constexpr const char* kName = "Transfer";
  static constexpr bool kOnChannel = true;
  std::vector<Message> sends, receives;
  TransferKind kind = TransferKind::none;
};
std::int64_t message_bytes(const Message& message, const Program& program);
/// Whether a view belongs to the stretch of the one before it.
bool same_stretch(const View& before, const View& view);
/// The rank and the peers of its transfer, rising.
std::vector<int> group_of(const Transfer& transfer, int rank);

std::vector<Access> accesses(const Accumulate& step);
std::vector<Access> accesses(const Copy& step);
std::vector<Access> accesses(const Transfer& step);

/// What makes it malformed.
void check(const Accumulate& step, const Form& form);
void check(const Copy& step, const Form& form);
void check(const Transfer& step, const Form& form);

/// What the verifier's shadow values become. A transfer's become what its messages bring, when they
/// match: nothing here.
void rehearse(const Accumulate& step, Shadow& shadow);
void rehearse(const Copy& step, Shadow& shadow);
void rehearse(const Transfer& step, Shadow& shadow);

/// Makes one list of rows a stretch.
std::unique_ptr<const PreparedStep> prepare(const Accumulate& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const Copy& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const Transfer& step, Preparation& with);

/// The step without what it merges; nothing is left of one that only merges.
std::optional<Accumulate> without_merging(const Accumulate& step);
std::optional<Copy> without_merging(const Copy& step);
std::optional<Transfer> without_merging(const Transfer& step);

void add_cost(const Accumulate& step, const Program& program, int stream, Count& count);
void add_cost(const Copy& step, const Program& program, int stream, Count& count);
void add_cost(const Transfer& step, const Program& program, int stream, Count& count);

}  // namespace longhaul::parallel
