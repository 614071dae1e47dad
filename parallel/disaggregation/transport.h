#pragma once
// The seam below one attention step where tasks leave the job: to servers that are processes of
// their own (`longhaul serve`).

#include <span>
#include <vector>

#include "attention/block_plan.h"

namespace longhaul::parallel {

/// A block call for an external server to make. The tensors are this rank's, in host memory; what
/// they hold is defined when the transport is called, and does not change while it works.
struct ForwardTask {
  int server = 0;  ///< that the plan chose; another may do it
  attention::BlockShape shape;
  std::vector<attention::Slice> bands;
  attention::Scoring scoring;
  attention::BlockForwardTensors tensors;  ///< mode is write
};
struct BackwardTask {
  int server = 0;
  attention::BlockShape shape;
  std::vector<attention::Slice> bands;
  attention::Scoring scoring;
  attention::BlockBackwardTensors tensors;  ///< modes are write
};

/// Has tasks done by servers. A server that fails, or is late, costs time and never a result: its
/// tasks go to another, and what it still sends is not used. Results depend on the task alone.
class TaskTransport {
 public:
  virtual ~TaskTransport() = default;
  /// Return when every result is in the tasks' tensors. On the thread of one stream: one call at a
  /// time. Throw Error(hang) when no server is left.
  virtual void forward(std::span<const ForwardTask> tasks) = 0;
  virtual void backward(std::span<const BackwardTask> tasks) = 0;
};

}  // namespace longhaul::parallel
