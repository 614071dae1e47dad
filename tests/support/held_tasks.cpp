#include "tests/support/held_tasks.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "attention/block.h"

namespace longhaul::test {
namespace {

using attention::Pass;
using attention::Weighting;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

constexpr std::byte kRubbish{0xab};

void append(std::vector<std::byte>& to, const std::vector<std::byte>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

std::vector<TaskCase> nasty_task_cases() {
  const DType f = DType::float32, b = DType::bfloat16;
  const attention::Scoring sigmoid{0.3f, 0, Weighting::sigmoid, -2};
  return {{{128, 384, 4, 2, 16, 16, f}, {0.25f}},
          {{1, 1, 1, 1, 1, 1, f}},
          {{7, 127, 3, 1, 9, 5, f}, {0.5f, 2}, true},
          {{127, 1031, 4, 4, 8, 8, b}, {0.35f}, true},
          {{0, 10, 2, 1, 8, 8, f}},
          {{5, 5, 2, 2, 8, 8, f}, sigmoid},
          {{13, 600, 6, 2, 10, 7, b}, sigmoid, true},
          {{64, 64, 2, 1, 32, 16, f}}};
}

HeldTask::HeldTask(const TaskCase& c, unsigned seed) : case_(c) {
  const attention::BlockShape& s = c.shape;
  const bool softmax = c.scoring.weighting == Weighting::softmax;
  bands_ = {{0, s.q_rows, 0, s.k_rows, -attention::kUnbounded, s.k_rows - s.q_rows}};
  q_ = hold({s.q_rows, s.heads, s.dim}, s.activation);
  k_ = hold({s.k_rows, s.kv_heads, s.dim}, s.activation);
  v_ = hold({s.k_rows, s.kv_heads, s.value_dim}, s.activation);
  dout_ = hold({s.q_rows, s.heads, s.value_dim}, s.activation);
  for (Held* held : {&q_, &k_, &v_, &dout_}) fill(*held, ++seed * 17);
  out_ = hold({s.q_rows, s.heads, s.value_dim}, DType::float32);
  dq_ = hold({s.q_rows, s.heads, s.dim}, DType::float32);
  dk_ = hold({s.k_rows, s.kv_heads, s.dim}, DType::float32);
  dv_ = hold({s.k_rows, s.kv_heads, s.value_dim}, DType::float32);
  if (!softmax) return;
  out_lse_ = hold({s.q_rows, s.heads, 2}, DType::float32);
  lse_ = hold({s.q_rows, s.heads, 2}, DType::float32);
  delta_ = hold({s.q_rows, s.heads}, DType::float32);
  const Stream stream = Stream::cpu("home");
  attention::block_forward(q_.view, k_.view, v_.view, bands_, c.scoring, out_.view, lse_.view,
                           attention::Mode::write, stream);
  attention::block_delta(out_.view, dout_.view, delta_.view, stream);
  stream.synchronize(runtime::deadline_in(60));
}

HeldTask::Held HeldTask::hold(std::initializer_list<std::int64_t> sizes, DType dtype) {
  runtime::Sizes shape{}, strides{};
  std::copy(sizes.begin(), sizes.end(), shape.begin());
  const auto dims = static_cast<int>(sizes.size());
  std::int64_t stride = 1;
  for (int d = dims - 1; d >= 0; --d) {
    const auto at = static_cast<std::size_t>(d);
    strides[at] = stride;
    stride = stride * shape[at] + (case_.wide ? 3 + d : 0);
  }
  Held held;
  held.memory.assign(static_cast<std::size_t>((stride + 8) * size_bytes(dtype)), kRubbish);
  held.view.assign(held.memory.data(), dtype, {}, dims, shape, strides);
  return held;
}

void HeldTask::fill(Held& held, unsigned seed) const {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto bytes = static_cast<std::size_t>(size_bytes(held.view.dtype()));
  for (std::size_t at = 0; at + bytes <= held.memory.size(); at += bytes) {
    const float value = uniform(engine);
    const runtime::BFloat16 rounded(value);
    std::memcpy(held.memory.data() + at,
                bytes == 4 ? static_cast<const void*>(&value) : static_cast<const void*>(&rounded),
                bytes);
  }
}

std::vector<const HeldTask::Held*> HeldTask::held_outputs(Pass pass) const {
  if (pass == Pass::forward) return {&out_, &out_lse_};
  return {&dq_, &dk_, &dv_};
}

parallel::ForwardTask HeldTask::forward(int server) {
  for (Held* held : {&out_, &out_lse_}) std::ranges::fill(held->memory, kRubbish);
  return {server,
          case_.shape,
          bands_,
          case_.scoring,
          {q_.view, k_.view, v_.view, out_.view, out_lse_.view, attention::Mode::write}};
}

parallel::BackwardTask HeldTask::backward(int server) {
  using attention::Mode;
  for (Held* held : {&dq_, &dk_, &dv_}) std::ranges::fill(held->memory, kRubbish);
  return {server,
          case_.shape,
          bands_,
          case_.scoring,
          {{q_.view, k_.view, v_.view, dout_.view, lse_.view, delta_.view},
           dq_.view,
           Mode::write,
           dk_.view,
           dv_.view,
           Mode::write}};
}

std::vector<std::byte> HeldTask::outputs(Pass pass) const {
  std::vector<std::byte> all;
  for (const Held* held : held_outputs(pass)) append(all, held->memory);
  return all;
}

std::vector<std::byte> HeldTask::expected(Pass pass, int threads) {
  const Stream stream = Stream::cpu("home", threads);
  if (pass == Pass::forward) {
    const auto t = forward(0).tensors;
    attention::block_forward(t.q, t.k, t.v, bands_, case_.scoring, t.out, t.lse, t.mode, stream);
  } else {
    const auto t = backward(0).tensors;
    attention::block_backward(t.inputs, bands_, case_.scoring, t.dq, t.dq_mode, t.dk, t.dv,
                              t.dkv_mode, stream);
  }
  stream.synchronize(runtime::deadline_in(60));
  return outputs(pass);
}

HeldTasks::HeldTasks(const std::vector<TaskCase>& cases, int servers, unsigned seed)
    : servers_(servers) {
  for (const TaskCase& c : cases) tasks_.emplace_back(c, seed += 100);
}

void HeldTasks::run(parallel::TaskTransport& transport, Pass pass) {
  int server = 0;
  if (pass == Pass::forward) {
    std::vector<parallel::ForwardTask> tasks;
    for (HeldTask& task : tasks_) tasks.push_back(task.forward(server++ % servers_));
    transport.forward(tasks);
  } else {
    std::vector<parallel::BackwardTask> tasks;
    for (HeldTask& task : tasks_) tasks.push_back(task.backward(server++ % servers_));
    transport.backward(tasks);
  }
}

std::vector<std::byte> HeldTasks::outputs(Pass pass) const {
  std::vector<std::byte> all;
  for (const HeldTask& task : tasks_) append(all, task.outputs(pass));
  return all;
}

std::vector<std::byte> HeldTasks::expected(Pass pass, int threads) {
  std::vector<std::byte> all;
  for (HeldTask& task : tasks_) append(all, task.expected(pass, threads));
  return all;
}

}  // namespace longhaul::test
