#pragma once
// Builds one rank's program. Generators append steps in the order in which they would run on one
// stream; the builder derives what each step waits for from its accesses. Waits are never written
// by hand.

#include <map>
#include <string>
#include <vector>

#include "parallel/schedule.h"

namespace longhaul::parallel {

/// What a run of a view's query heads sees, in row numbers of the query and the key view.
struct HeadBands {
  int head_begin = 0, head_end = 0;  ///< heads of the query view
  std::vector<Slice> bands;
};
/// What all heads of a query view see: disjoint runs in head order that cover them.
using Bands = std::vector<HeadBands>;
bool sees_nothing(const Bands& bands);
/// What heads [begin, end) see, numbered from 0.
Bands heads_of(const Bands& bands, int begin, int end);

class Builder {
 public:
  /// `channels` communication channels, numbered from 0.
  Builder(int rank, int channels);

  /// Slots.
  View add_slot(Slot slot);  ///< returns the view of all of it
  View scratch(const std::string& name, const Record& record, std::int64_t rows, int heads);

  /// Later steps belong to this phase, 0 or 1 (it only grows).
  void set_phase(int phase);

  /// Compute steps: one for each run of heads with bands of its own. Where a run sees nothing, an
  /// `add` is left out and a `write` makes its rows neutral. `v`: the values, where `kv` is a view
  /// of keys alone.
  void attend(const View& q, const View& kv, const Bands& bands, const View& partial, Mode mode,
              const std::optional<View>& v = {});
  void attend_backward(const View& q_bundle, const View& kv, const Bands& bands, const View& dq,
                       Mode dq_mode, const View& dkv, Mode dkv_mode,
                       const std::optional<View>& v = {});
  /// As one step each; nothing where there are no tasks.
  void attend_tasks(std::vector<TaskViews> tasks);
  void attend_tasks_backward(std::vector<TaskGradientViews> tasks);
  void summarize(LinearRun run, const std::optional<View>& dout, const View& state,
                 const std::optional<View>& transition);
  void fold(std::vector<FoldLink> links, const std::optional<View>& in, const View& out,
            const FoldWay& way, const std::optional<View>& out_transition);
  void sweep(LinearRun run, const std::optional<View>& state_in, const View& out,
             const std::optional<View>& state_out);
  void sweep_backward(LinearRun run, const RunGradients& gradients);
  void accumulate(const View& src, const View& dst);
  /// Pair by pair, in one step.
  void accumulate(std::vector<View> src, std::vector<View> dst);
  void copy(const View& src, const View& dst);
  void copy(std::vector<View> src, std::vector<View> dst);

  /// A grouped exchange on a channel. Zero-size messages are dropped, and with them an empty
  /// transfer.
  void transfer(int channel, std::vector<Message> sends, std::vector<Message> receives,
                TransferKind kind = TransferKind::none);

  /// Sums and copies behind all other compute steps, and behind all that a transfer waits for,
  /// become the last phase. Transfers never do: all ranks must enqueue those of several calls in
  /// one order.
  Program finish() &&;

 private:
  /// The accesses of a slot that a later step may have to wait for, by rows: each segment of rows,
  /// up to where the next one begins, has those of its own.
  class Past {
   public:
    explicit Past(int heads) : heads_(heads) {}
    void add(const Access& access, int step);
    /// Appends the steps that conflict with the access.
    void conflicts(const Access& access, std::vector<int>& steps) const;

   private:
    struct Entry {
      int head_begin, head_end;
      bool write;
      int step;
    };
    using Segments = std::map<std::int64_t, std::vector<Entry>>;
    Segments::iterator split(std::int64_t row);

    int heads_;
    Segments segments_ = {{0, {}}};
  };
  void append(Operation operation, int stream);
  void collect_dependencies(const std::vector<Access>& step_accesses,
                            std::vector<int>& dependencies) const;
  void remember(const std::vector<Access>& step_accesses, int step);

  Program program_;
  int streams_;
  int phase_ = 0;
  std::vector<Past> past_;  // per slot
  // Per step: the last step of each stream that is complete once it is.
  std::vector<std::vector<int>> clocks_;
  std::vector<int> last_;  // per stream: its last step
};

}  // namespace longhaul::parallel
