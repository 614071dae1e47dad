#pragma once
// Tasks for attention servers with the tensors that they are made of, for tests, and what the
// kernels make of them at home.

#include <vector>

#include "parallel/disaggregation/transport.h"

namespace longhaul::test {

struct TaskCase {
  attention::BlockShape shape;
  attention::Scoring scoring = {};
  bool wide = false;  ///< heads lie in wider rows, apart from each other
};

/// Sizes that break things: none, 1, odd and prime rows, heads that share keys, both dtypes,
/// softcaps, sigmoids.
std::vector<TaskCase> nasty_task_cases();

/// A task whose last query sees all keys, and each one before it one less.
class HeldTask {
 public:
  HeldTask(const TaskCase& c, unsigned seed);
  HeldTask(HeldTask&&) = default;

  /// Outputs hold rubbish from then on.
  parallel::ForwardTask forward(int server);
  parallel::BackwardTask backward(int server);
  /// Every byte of the outputs' memory, what lies between heads and rows as well.
  std::vector<std::byte> outputs(attention::Pass pass) const;
  /// The same after block_forward() or block_backward() here, on `threads` threads.
  std::vector<std::byte> expected(attention::Pass pass, int threads = 1);

 private:
  struct Held {
    std::vector<std::byte> memory;
    runtime::TensorView view;
  };
  Held hold(std::initializer_list<std::int64_t> sizes, runtime::DType dtype);
  void fill(Held& held, unsigned seed) const;
  std::vector<const Held*> held_outputs(attention::Pass pass) const;

  const TaskCase case_;
  std::vector<attention::Slice> bands_;
  Held q_, k_, v_, dout_, lse_, delta_;
  Held out_, out_lse_, dq_, dk_, dv_;
};

/// A few tasks that take turns at servers 0 and up.
class HeldTasks {
 public:
  HeldTasks(const std::vector<TaskCase>& cases, int servers, unsigned seed = 1);
  /// Has them all done, one pass.
  void run(parallel::TaskTransport& transport, attention::Pass pass);
  /// Of all tasks together, after run() or at home.
  std::vector<std::byte> outputs(attention::Pass pass) const;
  std::vector<std::byte> expected(attention::Pass pass, int threads = 1);

 private:
  std::vector<HeldTask> tasks_;
  const int servers_;
};

}  // namespace longhaul::test
