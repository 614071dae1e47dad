#include "parallel/disaggregation/task_server.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <list>
#include <vector>

#include "parallel/disaggregation/remote_task.h"
#include "parallel/disaggregation/task_worker.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::Clock;
using runtime::Deadline;
using runtime::deadline_in;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;
using runtime::net::Frame;

constexpr int kPollMilliseconds = 100;    // between two looks at `stop`
constexpr double kLastAnswerSeconds = 5;  // for a rank to take what is done, at the end
constexpr std::int64_t kMostAhead =
    2;  // tasks of a rank that wait, and answers that it has not taken

/// A rank, or who wants to be one.
struct Connection {
  Connection(std::int64_t id, runtime::net::Socket own, const TaskServerOptions& options)
      : number(id),
        socket(std::move(own)),
        hello(options.token, options.build.empty() ? task_build() : options.build),
        deadline(deadline_in(options.hello_seconds)) {
    reader.set_most_body_bytes(runtime::net::kMostHelloBytes);
    writer.put(hello.challenge());
  }

  const std::int64_t number;
  const runtime::net::Socket socket;
  const runtime::net::ServerHello hello;
  runtime::net::FrameReader reader;
  runtime::net::FrameWriter writer;
  bool welcome = false, leaving = false;  // leaving: closed once all is written
  std::string name = "somebody";
  std::deque<Frame> tasks;  // that wait
  Deadline deadline;        // of the hello; then, of a frame on its way, for more of it

  /// Its tasks and answers are memory of the server: a rank that does not take answers is not read.
  bool wants_more() const { return !leaving && std::ssize(tasks) + writer.frames() < kMostAhead; }
};

}  // namespace

struct TaskServer::Impl {
  explicit Impl(TaskServerOptions given)
      : options(std::move(given)),
        worker(options.make_stream, options.pretence),
        listener(options.address) {}

  const TaskServerOptions options;
  TaskWorker worker;
  runtime::net::Listener listener;
  std::list<Connection> connections;  // in the order that their tasks take turns in
  std::int64_t connected = 0;         // so far
  Deadline accept_again = {};         // after the system had no more descriptors
  bool closing = false;

  void say(const Connection& of, const std::string& what) const {
    options.say(of.name + " (connection " + std::to_string(of.number) + "): " + what);
  }
  void poll_once(int most_milliseconds);
  void accept_all();
  /// False when the connection has ended.
  bool serve(Connection& connection, bool readable, bool writable);
  void take(Connection& connection, Frame frame);
  void judge(Connection& connection, const Frame& proof);
  void take_finished();
  void start_next();
  void finish();
};

void TaskServer::Impl::poll_once(int most_milliseconds) {
  std::vector<pollfd> entries{{worker.fd(), POLLIN, 0}};
  const bool accepts = listener.fd() >= 0 && Clock::now() >= accept_again;
  entries.push_back({accepts ? listener.fd() : -1, POLLIN, 0});
  for (const Connection& connection : connections) {
    const int events = (connection.wants_more() && !closing ? POLLIN : 0) |
                       (connection.writer.empty() ? 0 : POLLOUT);
    entries.push_back({connection.socket.fd(), static_cast<short>(events), 0});
  }
  if (::poll(entries.data(), entries.size(), most_milliseconds) < 0 && errno != EINTR)
    fail(ExitCode::internal, "poll() failed: ", std::strerror(errno));

  auto entry = entries.begin() + 2;
  for (auto connection = connections.begin(); connection != connections.end(); ++entry) {
    const bool gone = (entry->revents & (POLLERR | POLLHUP)) != 0;
    const bool readable = (entry->revents & POLLIN) != 0 || gone;
    const bool writable = (entry->revents & POLLOUT) != 0;
    connection = serve(*connection, readable, writable) ? std::next(connection)
                                                        : connections.erase(connection);
  }
  if (entries[0].revents != 0) take_finished();
  start_next();
  if (accepts && entries[1].revents != 0) accept_all();
}

void TaskServer::Impl::accept_all() {
  try {
    while (auto socket = listener.accept()) {
      connections.emplace_back(++connected, std::move(*socket), options);
    }
  } catch (const Error& error) {
    options.say(error.what());
    accept_again = deadline_in(1);
  }
}

bool TaskServer::Impl::serve(Connection& connection, bool readable, bool writable) {
  try {
    if (readable && connection.reader.read(connection.socket))
      take(connection, connection.reader.take());
    const bool all_written =
        connection.writer.empty() || connection.writer.write(connection.socket);
    if (connection.leaving && all_written) return false;
    const bool waits = !all_written || (connection.reader.begun() && connection.wants_more());
    // A hello has its time; a welcome rank may be silent between frames, and they may be long.
    if (connection.welcome && (readable || writable || !waits))
      connection.deadline = deadline_in(options.frame_seconds);
    if (Clock::now() < connection.deadline) return true;
    say(connection, connection.welcome ? "is dropped: it stands still in the middle of a frame"
                                       : "is dropped: it does not say hello");
  } catch (const Error& error) {
    const bool left = error.code() == ExitCode::io && !connection.reader.begun();
    if (connection.welcome || !left)
      say(connection, left ? "has left" : std::string("is dropped: ") + error.what());
  } catch (const std::bad_alloc&) {
    say(connection, "is dropped: there is no memory for its task");
  }
  return false;
}

void TaskServer::Impl::take(Connection& connection, Frame frame) {
  if (!connection.welcome) return judge(connection, frame);
  if (frame.kind == kPing) return connection.writer.put({kPong, frame.id, {}});
  connection.tasks.push_back(std::move(frame));
}

void TaskServer::Impl::judge(Connection& connection, const Frame& proof) {
  auto judgement = connection.hello.judge(proof);
  if (!judgement.client.empty()) connection.name = judgement.client;
  connection.writer.put(std::move(judgement.reply));
  if (judgement.refused.empty()) {
    connection.welcome = true;
    connection.reader.set_most_body_bytes(options.most_task_bytes);
    say(connection, "is connected");
  } else {
    connection.leaving = true;
    say(connection, "is refused: " + judgement.refused);
  }
}

void TaskServer::Impl::take_finished() {
  auto job = worker.finished();
  if (!job) return;
  const auto connection = std::ranges::find(connections, job->connection, &Connection::number);
  if (connection == connections.end()) return;  // it has left
  if (!job->failed.empty()) {
    say(*connection, "is dropped: its task failed: " + job->failed);
    connection->leaving = true;
  }
  connection->writer.put(std::move(job->frame));
  connection->deadline = deadline_in(options.frame_seconds);
}

void TaskServer::Impl::start_next() {
  if (worker.busy() || closing) return;
  const auto next = std::ranges::find_if(
      connections, [](const Connection& c) { return !c.tasks.empty() && !c.leaving; });
  if (next == connections.end()) return;
  worker.start({next->number, std::move(next->tasks.front()), {}});
  next->tasks.pop_front();
  connections.splice(connections.end(), connections, next);  // the others come before it again
}

void TaskServer::Impl::finish() {
  closing = true;
  listener.close();
  while (worker.busy()) poll_once(kPollMilliseconds);
  const Deadline end = deadline_in(kLastAnswerSeconds);
  const auto unsent = [](const Connection& c) { return !c.writer.empty(); };
  while (std::ranges::any_of(connections, unsent) && Clock::now() < end)
    poll_once(kPollMilliseconds);
  connections.clear();
}

TaskServer::TaskServer(TaskServerOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
TaskServer::~TaskServer() = default;

const runtime::net::Address& TaskServer::address() const { return impl_->listener.address(); }

void TaskServer::run(const std::function<bool()>& stop) {
  while (!stop()) impl_->poll_once(kPollMilliseconds);
  impl_->finish();
}

}  // namespace longhaul::parallel
