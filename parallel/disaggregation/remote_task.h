#pragma once
// What travels between a rank and an external server: a task whole, and its answer. All that a
// block call is made of is in the bytes, so its results are the bits of making it at home.

#include <string>
#include <vector>

#include "parallel/disaggregation/transport.h"
#include "runtime/net/frame.h"
#include "runtime/net/hello.h"

namespace longhaul::parallel {

/// Kinds of frames behind the hello.
enum TaskKind : std::uint16_t {
  kTask = runtime::net::kAfterHello,  ///< to the server
  kAnswer,                            ///< back
  kFailure,                           ///< back: a text that says why there is no answer
  kPing,                              ///< to the server: is it there? Without a body
  kPong                               ///< back, at once, whatever it computes meanwhile
};

/// What both sides must be equal in for equal bits: the program to the byte, and the C library,
/// whose mathematics the kernels call. Kernels do not look at the processor: an instruction set
/// that it lacks stops them.
/// `pretended`: its tasks, or its job, only take time.
std::string task_build(bool pretended = false);

/// A task but for its tensors. Shapes as in block.h; rows of its tensors follow each other.
struct RemoteTask {
  attention::Pass pass = attention::Pass::forward;
  attention::BlockShape shape;
  attention::Scoring scoring;
  std::vector<attention::Slice> bands;

  /// Visible pairs.
  std::int64_t pairs() const { return attention::area(bands); }
  /// Bytes of its frame's body, and of its answer's.
  std::int64_t body_bytes() const;
  std::int64_t answer_bytes() const;
};

/// A task of a rank: what travels, and between which tensors.
struct RankTask {
  explicit RankTask(const ForwardTask& task);
  explicit RankTask(const BackwardTask& task);
  int server = 0;  ///< that the plan chose
  RemoteTask remote;
  /// q, k, v, and backward dout, lse, delta; out, lse, or dq, dk, dv. No data: none (a sigmoid's).
  std::vector<runtime::ConstTensorView> inputs;
  std::vector<runtime::TensorView> results;
};

/// The body of a task's frame: what describes it, and its inputs packed.
runtime::net::Body encode_task(const RankTask& task);
/// Throws Error(internal) where the bytes are not exactly a task.
RemoteTask decode_task(const runtime::net::Body& body);

/// The tensors of a decoded task and of its answer, where they lie.
attention::BlockForwardTensors forward_tensors(const RemoteTask& task,
                                               const runtime::net::Body& body,
                                               const runtime::net::Body& answer);
attention::BlockBackwardTensors backward_tensors(const RemoteTask& task,
                                                 const runtime::net::Body& body,
                                                 const runtime::net::Body& answer);

/// An answer begins with the seconds that the task took.
void set_seconds(const runtime::net::Body& answer, double seconds);
double seconds_of(const runtime::net::Body& answer);
/// Copies the results of an answer of answer_bytes() to where the task wants them.
void decode_answer(const RankTask& task, const runtime::net::Body& answer);

/// A text as a frame's body, and back.
runtime::net::Body text_body(const std::string& text);
std::string text_of(const runtime::net::Body& body);

}  // namespace longhaul::parallel
