#include "parallel/disaggregation/task_worker.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "attention/block_plan.h"
#include "parallel/disaggregation/remote_task.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::parallel {
namespace {

using runtime::ExitCode;
using runtime::fail;
using runtime::net::Body;
using runtime::net::Frame;

constexpr double kForEver = 1e8;  // a task's own seconds are its client's business

Body answer(const Body& body, const std::optional<attention::Pretence>& pretence,
            const runtime::Stream& stream) {
  const RemoteTask task = decode_task(body);
  Body made(task.answer_bytes());
  // Of pretended calls nothing is written.
  if (pretence) std::memset(made.data(), 0, static_cast<std::size_t>(made.bytes()));
  attention::BlockPlace place = attention::place_of(stream);
  place.pretence = pretence;
  const auto begin = runtime::Clock::now();
  const auto plan = attention::plan_block(task.pass, task.bands, task.shape, task.scoring, place);
  if (task.pass == attention::Pass::forward) {
    run_once(plan, forward_tensors(task, body, made), stream);
  } else {
    run_once(plan, backward_tensors(task, body, made), stream);
  }
  stream.synchronize(runtime::deadline_in(kForEver));
  set_seconds(made, std::chrono::duration<double>(runtime::Clock::now() - begin).count());
  return made;
}

}  // namespace

TaskWorker::TaskWorker(std::function<runtime::Stream()> make_stream,
                       std::optional<attention::Pretence> pretence)
    : make_stream_(std::move(make_stream)),
      pretence_(pretence),
      stream_(make_stream_()),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_.open()) fail(ExitCode::launch, "no eventfd from the system: ", std::strerror(errno));
  thread_ = runtime::start_thread("the thread that computes tasks", [this] { work(); });
}

TaskWorker::~TaskWorker() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void TaskWorker::start(TaskJob job) {
  LONGHAUL_CHECK(!busy_, "a task was given to a thread that has one");
  busy_ = true;
  {
    const std::lock_guard lock(mutex_);
    given_ = std::move(job);
  }
  changed_.notify_all();
}

std::optional<TaskJob> TaskWorker::finished() {
  std::uint64_t count = 0;
  if (::read(wake_.fd(), &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR)
    fail(ExitCode::internal, "reading an eventfd failed: ", std::strerror(errno));
  const std::lock_guard lock(mutex_);
  if (!done_) return std::nullopt;
  busy_ = false;
  return std::exchange(done_, std::nullopt);
}

void TaskWorker::work() {
  for (;;) {
    TaskJob job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return closing_ || given_; });
      if (!given_) return;
      job = *std::exchange(given_, std::nullopt);
    }
    do_task(job);
    {
      const std::lock_guard lock(mutex_);
      done_ = std::move(job);
    }
    const std::uint64_t one = 1;
    LONGHAUL_CHECK(::write(wake_.fd(), &one, sizeof(one)) == sizeof(one),
                   "an eventfd is broken: ", std::strerror(errno));
  }
}

void TaskWorker::do_task(TaskJob& job) {
  Frame reply{kAnswer, job.frame.id, {}};
  try {
    if (job.frame.kind != kTask)
      fail(ExitCode::internal, "a frame of kind ", job.frame.kind, " in place of a task");
    reply.body = answer(job.frame.body, pretence_, *stream_);
  } catch (const std::bad_alloc&) {
    job.failed = "out of memory for a task of " + std::to_string(job.frame.body.bytes()) + " bytes";
  } catch (const std::exception& error) {
    job.failed = error.what();
  }
  if (!job.failed.empty()) {
    reply = {kFailure, job.frame.id, text_body(job.failed)};
    stream_ = make_stream_();  // an error in a stream's work stays there
  }
  job.frame = std::move(reply);
}

}  // namespace longhaul::parallel
