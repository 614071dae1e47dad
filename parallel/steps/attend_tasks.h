#pragma once
// Attention of many tasks in one step: each over views, and so with tiles, of its own, so that its
// results are the same whatever is beside it and whoever computes it. Tasks may be handed to
// external servers (disaggregation/transport.h).

#include <memory>
#include <optional>
#include <vector>

#include "parallel/shapes.h"
#include "parallel/slot.h"

namespace longhaul::parallel {

struct Count;
struct KernelUse;
struct Program;
class Form;
class Preparation;
class PreparedStep;
class Shadow;

/// partial <- attention of q over kv where the band allows.
struct TaskViews {
  View q, kv;
  Slice band;  ///< in row numbers of the two views
  View partial;
  int server = -1;  ///< the external server that does it; -1: this rank
};
struct AttendTasks {
  static constexpr const char* kName = "AttendTasks";
  static constexpr bool kOnChannel = false;
  std::vector<TaskViews> tasks;  ///< of one kind: all this rank's, or all of servers
};

/// dq and dkv <- gradients of the same pairs; both are overwritten.
struct TaskGradientViews {
  View q_bundle;          ///< or a dout_bundle,
  std::optional<View> q;  ///< whose queries are here
  View kv;
  Slice band;
  View dq, dkv;
  int server = -1;
};
struct AttendTasksBackward {
  static constexpr const char* kName = "AttendTasksBackward";
  static constexpr bool kOnChannel = false;
  std::vector<TaskGradientViews> tasks;
};

std::vector<Access> accesses(const AttendTasks& step);
std::vector<Access> accesses(const AttendTasksBackward& step);

/// Each task as the step for one; besides, no output of one overlaps a view of another.
void check(const AttendTasks& step, const Form& form);
void check(const AttendTasksBackward& step, const Form& form);

void rehearse(const AttendTasks& step, Shadow& shadow);
void rehearse(const AttendTasksBackward& step, Shadow& shadow);

/// Throws Error(config) for tasks of servers without a transport to them, or on a device.
std::unique_ptr<const PreparedStep> prepare(const AttendTasks& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const AttendTasksBackward& step, Preparation& with);

void add_kernels(const AttendTasks& step, const Preparation& with, KernelUse& use);
void add_kernels(const AttendTasksBackward& step, const Preparation& with, KernelUse& use);

void add_cost(const AttendTasks& step, const Program& program, int stream, Count& count);
void add_cost(const AttendTasksBackward& step, const Program& program, int stream, Count& count);

}  // namespace longhaul::parallel
