#pragma once
// The buffers of one rank's program, by what they are made of, and rectangles of them.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attention/mask.h"
#include "runtime/dtype.h"

namespace longhaul::parallel {

using attention::Run;
using attention::Slice;

/// One tensor of a slot: [rows, heads, width], or [rows, heads] where it is one number a row and
/// head.
struct Field {
  std::string_view name;
  std::int64_t width = 1;  ///< elements per row and head
  runtime::DType dtype = runtime::DType::float32;
  bool number = false;
  bool operator==(const Field&) const = default;
};

/// What the heads and rows of a slot count.
enum class Side : unsigned char {
  query,  ///< query heads, tokens
  key,    ///< key/value heads, tokens
  state   ///< heads of a recurrent state, rows of its value dim (or of a transition)
};
/// How two values of the same row and head become one.
enum class Combine : unsigned char {
  none,  ///< they do not: a slot of inputs
  add,   ///< every field is summed
  merge  ///< partials of a softmax, by their LSE
};

/// What a slot is made of: fields that share rows and heads.
struct Record {
  std::string_view kind;  ///< the word for it in messages
  Side side = Side::query;
  Combine combine = Combine::none;
  std::vector<Field> fields = {};  ///< in message order
  bool operator==(const Record&) const = default;
  bool accumulates() const { return combine != Combine::none; }
  /// Bytes of one row and head, with float32 sent as `wire_dtype` when given.
  std::int64_t cell_bytes(std::optional<runtime::DType> wire_dtype = {}) const;
};

enum class Role : unsigned char {
  input,    ///< bound to the caller's tensors, read only
  output,   ///< bound to the caller's tensors, complete at the end
  saved,    ///< kept from forward, which writes it, to its backward, whose slots of it are the same
  scratch,  ///< the executor's
  borrowed  ///< memory of another rank: what it lends, from its message until it is given back
};

/// A buffer of one rank. Slots never alias and never change what they are made of.
struct Slot {
  std::string name;
  Record record;
  std::int64_t rows = 0;
  int heads = 0;
  Role role = Role::scratch;
  /// Inputs, outputs and what is saved: the global tokens of its rows. Of states one after another:
  /// an empty run at the token that each enters; of transitions: the run that each is of.
  std::vector<Run> tokens = {};
  int first_head = 0;  ///< inputs and outputs: the global number of its first head
};
/// In the memory of a call every field begins at a multiple of this many bytes.
constexpr std::int64_t kFieldAlignment = 256;
constexpr std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kFieldAlignment - 1) / kFieldAlignment * kFieldAlignment;
}
std::int64_t field_bytes(const Slot& slot, const Field& field);
/// Of all its fields, each aligned.
std::int64_t slot_bytes(const Slot& slot);

/// What a call binds: the names of the fields of its inputs and outputs, in the order in which
/// their tensors are given. A name is in one input slot, or one output slot.
struct Signature {
  std::vector<std::string_view> inputs, outputs;
};

/// Rows [row_begin, row_end) and heads [head_begin, head_end) of a slot.
struct View {
  int slot = -1;
  std::int64_t row_begin = 0, row_end = 0;
  int head_begin = 0, head_end = 0;
  std::int64_t rows() const { return row_end - row_begin; }
  int heads() const { return head_end - head_begin; }
  bool empty() const { return rows() == 0 || heads() == 0; }
  bool operator==(const View&) const = default;
};

/// Rows, or heads, [begin, end) of a view, in its own numbers.
View rows_of(View view, std::int64_t begin, std::int64_t end);
View heads_of(View view, int begin, int end);
std::optional<View> heads_of(const std::optional<View>& view, int begin, int end);
bool same_extent(const View& a, const View& b);
/// True when the views share a row and a head of one slot.
bool overlaps(const View& a, const View& b);
/// True when `outer` covers all of `inner`.
bool covers(const View& outer, const View& inner);

/// What a step does to a view; an `add` reads and writes, and counts as a write.
struct Access {
  View view;
  bool write = false;
};

}  // namespace longhaul::parallel
