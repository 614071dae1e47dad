#include "parallel/disaggregation/remote_task.h"

#include <gnu/libc-version.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/build_info.h"
#include "runtime/cpu_level.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using attention::BlockShape;
using attention::Pass;
using attention::Weighting;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::TensorView;
using runtime::net::Body;

constexpr std::int64_t kAlignment = 64;  // of each tensor, in the body
constexpr std::int64_t kMostSize = std::int64_t{1} << 40;
constexpr runtime::Device kHost{};

/// What stands first in a task's body; its bands follow, then its tensors.
struct Description {
  std::int64_t pass, q_rows, k_rows, heads, kv_heads, dim, value_dim, activation, weighting, bands;
  float scale, softcap, bias, padding;
};

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Sizes and dtype of one tensor.
struct Kind {
  std::array<std::int64_t, 3> sizes;
  int dims;
  DType dtype;
  bool per_row = false;  // what a softmax has one of for each row, and a sigmoid none
  std::int64_t bytes() const {
    std::int64_t product = size_bytes(dtype);
    for (int d = 0; d < dims; ++d) {
      if (__builtin_mul_overflow(product, sizes[static_cast<std::size_t>(d)], &product) ||
          product > kMostSize)
        fail(ExitCode::internal, "a task has a tensor of more than ", kMostSize, " bytes");
    }
    return product;
  }
};

/// The tensors of a task, in the order that they travel in.
struct Kinds {
  std::vector<Kind> inputs, results;
  explicit Kinds(const RemoteTask& task) {
    const BlockShape& s = task.shape;
    const bool softmax = task.scoring.weighting == Weighting::softmax;
    const std::int64_t lse_rows = softmax ? s.q_rows : 0;
    const Kind q{{s.q_rows, s.heads, s.dim}, 3, s.activation},
        k{{s.k_rows, s.kv_heads, s.dim}, 3, s.activation},
        v{{s.k_rows, s.kv_heads, s.value_dim}, 3, s.activation},
        out{{s.q_rows, s.heads, s.value_dim}, 3, s.activation},
        lse{{lse_rows, s.heads, 2}, 3, DType::float32, true},
        delta{{lse_rows, s.heads}, 2, DType::float32, true};
    inputs = {q, k, v};
    if (task.pass == Pass::forward) {
      results = {out, lse};
    } else {
      inputs.insert(inputs.end(), {out, lse, delta});
      results = {q, k, v};
    }
    for (Kind& result : results) result.dtype = DType::float32;
  }
};

std::int64_t head_bytes(const RemoteTask& task) {
  return aligned(static_cast<std::int64_t>(sizeof(Description)) +
                 std::ssize(task.bands) * static_cast<std::int64_t>(sizeof(attention::Slice)));
}
constexpr std::int64_t kAnswerHeadBytes = kAlignment;  // the seconds

std::int64_t bytes_of(std::int64_t head, const std::vector<Kind>& kinds) {
  for (const Kind& kind : kinds) head += aligned(kind.bytes());
  return head;
}

/// Views of tensors that lie behind each other. One that a sigmoid does not have is empty.
std::vector<TensorView> views(const std::vector<Kind>& kinds, const RemoteTask& task,
                              std::byte* at) {
  std::vector<TensorView> made;
  for (const Kind& kind : kinds) {
    const std::span sizes(kind.sizes.data(), static_cast<std::size_t>(kind.dims));
    const bool none = kind.per_row && task.scoring.weighting != Weighting::softmax;
    made.push_back(none ? TensorView() : TensorView(at, kind.dtype, kHost, sizes));
    at += aligned(kind.bytes());
  }
  return made;
}
std::vector<TensorView> input_views(const RemoteTask& task, const Body& body) {
  return views(Kinds(task).inputs, task, body.data() + head_bytes(task));
}
std::vector<TensorView> result_views(const RemoteTask& task, const Body& answer) {
  return views(Kinds(task).results, task, answer.data() + kAnswerHeadBytes);
}

/// Calls visit(offset in the view, its place where elements lie together, bytes) for each run of
/// elements that lie together in a view of any strides; returns the place behind the last.
template <class Visit>
std::byte* for_each_run(const ConstTensorView& view, std::byte* packed, const Visit& visit,
                        std::int64_t offset = 0, int dim = 0) {
  const std::int64_t element = size_bytes(view.dtype());
  std::int64_t together = element;
  int tail = view.dims();
  while (tail > dim && (view.size(tail - 1) == 1 || view.stride(tail - 1) * element == together)) {
    together *= view.size(--tail);
  }
  if (tail == dim) {
    visit(offset, packed, together);
    return packed + together;
  }
  for (std::int64_t i = 0; i < view.size(dim); ++i)
    packed = for_each_run(view, packed, visit, offset + i * view.stride(dim) * element, dim + 1);
  return packed;
}

/// Whether there is anything to copy between a tensor of the rank and its packed form.
bool to_copy(const ConstTensorView& of_rank, const ConstTensorView& packed) {
  if (packed.data() == nullptr || packed.elements() == 0) return false;
  LONGHAUL_CHECK(of_rank.dtype() == packed.dtype() && of_rank.device() == kHost &&
                     std::ranges::equal(of_rank.sizes(), packed.sizes()),
                 "a tensor of a task is ", name(of_rank.dtype()), " of ", of_rank.dims(),
                 " dims and ", of_rank.elements(), " elements on ", to_string(of_rank.device()),
                 "; expected ", name(packed.dtype()), " of ", packed.dims(), " dims and ",
                 packed.elements(), " elements on the host");
  return true;
}

BlockShape packed_shape(BlockShape shape) {
  shape.q_row_heads = shape.kv_row_heads = 0;
  return shape;
}

RemoteTask task_of(const Description& d) {
  for (const std::int64_t size : {d.q_rows, d.k_rows, d.heads, d.kv_heads, d.dim, d.value_dim}) {
    if (size < 0 || size > kMostSize) fail(ExitCode::internal, "a task has a size of ", size);
  }
  if (d.pass != 0 && d.pass != 1) fail(ExitCode::internal, "a task has pass ", d.pass);
  if (d.activation != static_cast<std::int64_t>(DType::float32) &&
      d.activation != static_cast<std::int64_t>(DType::bfloat16))
    fail(ExitCode::internal, "a task has activations of dtype ", d.activation);
  if (d.weighting != 0 && d.weighting != 1)
    fail(ExitCode::internal, "a task has weighting ", d.weighting);
  return {static_cast<Pass>(d.pass),
          {d.q_rows, d.k_rows, d.heads, d.kv_heads, d.dim, d.value_dim,
           static_cast<DType>(d.activation)},
          {d.scale, d.softcap, static_cast<Weighting>(d.weighting), d.bias},
          {}};
}

}  // namespace

std::string task_build(bool pretended) {
  return runtime::version_line() + ", glibc " + ::gnu_get_libc_version() + ", " +
         std::string(name(runtime::cpu_level())) + " kernels" +
         (pretended ? ", attention pretended" : "");
}

std::int64_t RemoteTask::body_bytes() const {
  return bytes_of(head_bytes(*this), Kinds(*this).inputs);
}
std::int64_t RemoteTask::answer_bytes() const {
  return bytes_of(kAnswerHeadBytes, Kinds(*this).results);
}

RankTask::RankTask(const ForwardTask& task)
    : server(task.server),
      remote{Pass::forward, packed_shape(task.shape), task.scoring, task.bands},
      inputs{task.tensors.q, task.tensors.k, task.tensors.v},
      results{task.tensors.out, task.tensors.lse} {}

RankTask::RankTask(const BackwardTask& task)
    : server(task.server),
      remote{Pass::backward, packed_shape(task.shape), task.scoring, task.bands},
      inputs{task.tensors.inputs.q,    task.tensors.inputs.k,   task.tensors.inputs.v,
             task.tensors.inputs.dout, task.tensors.inputs.lse, task.tensors.inputs.delta},
      results{task.tensors.dq, task.tensors.dk, task.tensors.dv} {}

Body encode_task(const RankTask& task) {
  const RemoteTask& remote = task.remote;
  const BlockShape& s = remote.shape;
  const attention::Scoring& scoring = remote.scoring;
  const Description description{static_cast<std::int64_t>(remote.pass),
                                s.q_rows,
                                s.k_rows,
                                s.heads,
                                s.kv_heads,
                                s.dim,
                                s.value_dim,
                                static_cast<std::int64_t>(s.activation),
                                static_cast<std::int64_t>(scoring.weighting),
                                std::ssize(remote.bands),
                                scoring.scale,
                                scoring.softcap,
                                scoring.bias,
                                0};
  Body body(remote.body_bytes());
  // What lies between the tensors is 0: equal tasks are equal bytes.
  std::memset(body.data(), 0, static_cast<std::size_t>(body.bytes()));
  std::memcpy(body.data(), &description, sizeof(description));
  std::memcpy(body.data() + sizeof(description), remote.bands.data(),
              remote.bands.size() * sizeof(attention::Slice));
  const std::vector<TensorView> packed = input_views(remote, body);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const ConstTensorView& from = task.inputs[i];
    if (!to_copy(from, packed[i])) continue;
    for_each_run(from, packed[i].data(),
                 [&](std::int64_t offset, std::byte* place, std::int64_t bytes) {
                   std::memcpy(place, from.data() + offset, static_cast<std::size_t>(bytes));
                 });
  }
  return body;
}

RemoteTask decode_task(const Body& body) {
  Description description;
  if (body.bytes() < static_cast<std::int64_t>(sizeof(description)))
    fail(ExitCode::internal, "a task of ", body.bytes(), " bytes");
  std::memcpy(&description, body.data(), sizeof(description));
  RemoteTask task = task_of(description);
  const std::int64_t most = body.bytes() / static_cast<std::int64_t>(sizeof(attention::Slice));
  if (description.bands < 0 || description.bands > most)
    fail(ExitCode::internal, "a task of ", body.bytes(), " bytes says it has ", description.bands,
         " bands");
  task.bands.resize(static_cast<std::size_t>(description.bands));
  if (const std::int64_t expected = task.body_bytes(); body.bytes() != expected)
    fail(ExitCode::internal, "a task has ", body.bytes(), " bytes; by its sizes expected ",
         expected);
  std::memcpy(task.bands.data(), body.data() + sizeof(description),
              task.bands.size() * sizeof(attention::Slice));
  return task;
}

attention::BlockForwardTensors forward_tensors(const RemoteTask& task, const Body& body,
                                               const Body& answer) {
  const auto in = input_views(task, body), to = result_views(task, answer);
  return {in[0], in[1], in[2], to[0], to[1], attention::Mode::write};
}

attention::BlockBackwardTensors backward_tensors(const RemoteTask& task, const Body& body,
                                                 const Body& answer) {
  using attention::Mode;
  const auto in = input_views(task, body), to = result_views(task, answer);
  return {
      {in[0], in[1], in[2], in[3], in[4], in[5]}, to[0], Mode::write, to[1], to[2], Mode::write};
}

void set_seconds(const Body& answer, double seconds) {
  std::memset(answer.data(), 0, kAnswerHeadBytes);
  std::memcpy(answer.data(), &seconds, sizeof(seconds));
}

double seconds_of(const Body& answer) {
  double seconds;
  std::memcpy(&seconds, answer.data(), sizeof(seconds));
  return seconds;
}

void decode_answer(const RankTask& task, const Body& answer) {
  LONGHAUL_CHECK(answer.bytes() == task.remote.answer_bytes(), "an answer of ", answer.bytes(),
                 " bytes; expected ", task.remote.answer_bytes());
  const std::vector<TensorView> packed = result_views(task.remote, answer);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const TensorView& to = task.results[i];
    if (!to_copy(to, packed[i])) continue;
    for_each_run(to, packed[i].data(),
                 [&](std::int64_t offset, std::byte* place, std::int64_t bytes) {
                   std::memcpy(to.data() + offset, place, static_cast<std::size_t>(bytes));
                 });
  }
}

Body text_body(const std::string& text) {
  Body body(std::ssize(text));
  std::memcpy(body.data(), text.data(), text.size());
  return body;
}

std::string text_of(const Body& body) {
  return {reinterpret_cast<const char*>(body.data()), static_cast<std::size_t>(body.bytes())};
}

}  // namespace longhaul::parallel
