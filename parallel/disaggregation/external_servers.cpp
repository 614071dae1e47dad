#include "parallel/disaggregation/external_servers.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "parallel/disaggregation/remote_task.h"
#include "parallel/disaggregation/server_connector.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::parallel {
namespace {

using runtime::Clock;
using runtime::Deadline;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;
using runtime::net::Frame;
using runtime::net::FrameId;
using runtime::net::FrameReader;
using runtime::net::FrameWriter;
using runtime::net::Socket;

/// Tasks that a server has of a rank: one to do, one on its way meanwhile.
constexpr std::int64_t kTasksAhead = 2;
constexpr std::int64_t kMostTextBytes = 1 << 16;  // of a failure
constexpr std::uint32_t kPingTask = ~std::uint32_t{0};

/// How often a server that owes nothing is asked whether it is there. What a step may wait beside a
/// server's time: one and a half of it.
double ping_period(double timeout_seconds) { return std::min(0.5, timeout_seconds / 4); }

/// A task that a server was asked for.
struct Asked {
  std::size_t task;
  FrameId id;
};

/// One server, as a rank sees it. Without a socket it is lost.
struct Link {
  Socket socket;
  FrameReader reader;
  FrameWriter writer;
  std::deque<std::size_t> waiting;  // tasks for it, not yet asked for
  std::deque<Asked> asked;
  std::optional<FrameId> ping;  // that it has not answered yet
  Clock::time_point since;      // it has owed an answer, to a task or a ping, or last gave one
  std::int64_t load = 0;        // pairs of both
  std::string lost;             // why
  ServerUse use;

  bool alive() const { return socket.open(); }
  bool owes() const { return !asked.empty() || ping; }
  void connect(Socket made) {
    socket = std::move(made);
    reader = {};
    writer = {};
    ping.reset();
    since = Clock::now();
  }
};

class Servers final : public ExternalServers {
 public:
  explicit Servers(const ExternalServersOptions& options)
      : timeout_(options.timeout_seconds),
        period_(ping_period(timeout_)),
        say_(options.say),
        connector_(options) {
    const Deadline deadline = runtime::deadline_in(timeout_);
    for (int server = 0; server < connector_.servers(); ++server) {
      Link& link = links_.emplace_back();
      link.use.address = connector_.address(server);
      link.connect(connector_.connect(server, deadline));
    }
    std::random_device random;
    job_ = std::uint64_t{random()} << 32 | random();
    keeper_ = runtime::start_thread("the thread that asks attention servers whether they are there",
                                    [this] { keep(); });
  }
  ~Servers() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    keeper_.join();
  }

  void forward(std::span<const ForwardTask> tasks) override { call(tasks); }
  void backward(std::span<const BackwardTask> tasks) override { call(tasks); }

  std::vector<ServerUse> use() const override {
    const std::lock_guard lock(mutex_);
    std::vector<ServerUse> all;
    for (const Link& link : links_) {
      all.push_back(link.use);
      all.back().connected = link.alive();
    }
    return all;
  }

 private:
  template <class Task>
  void call(std::span<const Task> tasks) {
    if (tasks.empty()) return;
    const std::lock_guard lock(mutex_);
    try {
      for (const Task& task : tasks) tasks_.emplace_back(task);
      run();
    } catch (...) {
      for (Link& link : links_) {
        if (link.alive() && !link.asked.empty()) give_up(link, "its call was given up");
        link.waiting.clear();
        link.load = 0;
      }
      tasks_.clear();
      throw;
    }
    tasks_.clear();
  }

  int number(const Link& link) const { return static_cast<int>(&link - links_.data()); }
  std::int64_t pairs(std::size_t task) const { return tasks_[task].remote.pairs(); }

  void keep();
  void run();
  void welcome_back();
  void ping_idle();
  void assign(std::size_t task);
  void try_all_again();
  void ask(Link& link);
  void exchange(double most_seconds);
  void serve(Link& link, short events);
  void take(Link& link, Frame frame);
  void tell(const std::string& line);
  void lose(Link& link, const std::string& why);
  std::deque<std::size_t> give_up(Link& link, const std::string& why);
  static Deadline after(Clock::time_point time, double seconds) {
    return time +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  Deadline deadline(const Link& link) const { return after(link.since, timeout_); }

  const double timeout_, period_;
  const std::function<void(const std::string&)> say_;
  ServerConnector connector_;
  std::vector<Link> links_;
  std::uint64_t job_ = 0, call_ = 0;
  std::uint32_t pings_ = 0;
  std::vector<std::string> news_;  // of between calls, for the next one to say
  // Of the call that goes on.
  std::vector<RankTask> tasks_;  // none between calls
  std::vector<std::uint32_t> attempts_;
  std::size_t done_ = 0;
  bool tried_again_ = false;

  mutable std::mutex mutex_;  // of all of it: held by a call, and by the keeper at times between
  std::condition_variable changed_;
  bool closing_ = false;
  std::thread keeper_;
};

/// Looks after the servers between calls. A rank whose tasks are done waits for other ranks, which
/// may wait for a server that has stopped meanwhile: its time runs for this rank too, so that the
/// step does not wait for it again in this rank's next call.
void Servers::keep() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::chrono::duration<double>(period_ / 2),
                            [this] { return closing_; })) {
    try {
      exchange(0);
      ping_idle();
    } catch (const std::exception&) {  // the next call meets it too, and can say it
    }
  }
}

void Servers::run() {
  for (const std::string& line : std::exchange(news_, {})) say_(line);
  ++call_;
  attempts_.assign(tasks_.size(), 0);
  done_ = 0;
  tried_again_ = false;
  welcome_back();
  exchange(0);  // answers to pings of before, and only then whose time is over
  for (std::size_t task = 0; task < tasks_.size(); ++task) {
    const int server = tasks_[task].server;
    LONGHAUL_CHECK(server >= 0 && server < connector_.servers(), "a task is for server ", server,
                   " of ", connector_.servers());
    Link& chosen = links_[static_cast<std::size_t>(server)];
    if (!chosen.alive()) {
      assign(task);
      continue;
    }
    chosen.waiting.push_back(task);
    chosen.load += pairs(task);
  }
  while (done_ < tasks_.size()) {
    for (Link& link : links_) ask(link);
    ping_idle();
    exchange(period_);
  }
}

void Servers::welcome_back() {
  for (Link& link : links_) {
    if (link.alive()) continue;
    auto socket = connector_.returned(number(link));
    if (!socket) continue;
    link.connect(std::move(*socket));
    say_("attention server " + link.use.address + " is back");
  }
}

/// Asks servers that owe nothing whether they are there. A ping is answered whatever tasks of other
/// ranks the server computes.
void Servers::ping_idle() {
  for (Link& link : links_) {
    if (!link.alive() || link.owes() || Clock::now() < after(link.since, period_)) continue;
    link.ping = FrameId{job_, call_, kPingTask, ++pings_};
    link.since = Clock::now();
    link.writer.put({kPing, *link.ping, {}});
    serve(link, POLLOUT);
  }
}

/// Gives a task to the server with the least to do.
void Servers::assign(std::size_t task) {
  if (std::ranges::none_of(links_, &Link::alive)) try_all_again();
  Link* idlest = nullptr;
  for (Link& link : links_) {
    if (link.alive() && (idlest == nullptr || link.load < idlest->load)) idlest = &link;
  }
  idlest->waiting.push_back(task);
  idlest->load += pairs(task);
}

/// Servers that were started again since the last call may be there though none is known; once a
/// call, lest a task that ends its server be given to it for ever.
void Servers::try_all_again() {
  for (Link& link : links_) {
    if (tried_again_) break;
    if (auto socket = connector_.try_now(number(link))) {
      link.connect(std::move(*socket));
      say_("attention server " + link.use.address + " is back");
    }
  }
  tried_again_ = true;
  if (std::ranges::any_of(links_, &Link::alive)) return;
  std::string text = "no attention server is left";
  for (const Link& link : links_) {
    const std::string failure = connector_.last_failure(number(link));
    text += "\n  " + link.use.address + ": " + link.lost +
            (failure.empty() ? "" : "; tried again: " + failure);
  }
  fail(ExitCode::hang, text, "\nStart them again and resume from the last checkpoint.");
}

/// Sends a server what it may have of its tasks.
void Servers::ask(Link& link) {
  while (link.alive() && !link.waiting.empty() && std::ssize(link.asked) < kTasksAhead) {
    const std::size_t task = link.waiting.front();
    const FrameId id{job_, call_, static_cast<std::uint32_t>(task), ++attempts_[task]};
    link.writer.put({kTask, id, encode_task(tasks_[task])});
    if (!link.owes()) link.since = Clock::now();
    link.asked.push_back({task, id});
    link.waiting.pop_front();
  }
}

/// Waits for servers, until the next deadline at most, serves those that are ready, and then loses
/// those whose time is over.
void Servers::exchange(double most_seconds) {
  Deadline next = runtime::deadline_in(most_seconds);
  std::vector<pollfd> entries;
  for (Link& link : links_) {
    const int events = link.alive() ? POLLIN | (link.writer.empty() ? 0 : POLLOUT) : 0;
    entries.push_back({link.socket.fd(), static_cast<short>(events), 0});
    if (link.owes()) next = std::min(next, deadline(link));
  }
  if (::poll(entries.data(), entries.size(), runtime::net::poll_milliseconds(next, 60'000)) < 0 &&
      errno != EINTR)
    fail(ExitCode::internal, "poll() failed: ", std::strerror(errno));
  for (std::size_t server = 0; server < links_.size(); ++server) {
    Link& link = links_[server];
    // One that was lost and found again meanwhile has another descriptor.
    if (!link.alive() || link.socket.fd() != entries[server].fd) continue;
    serve(link, entries[server].revents);
    if (link.alive() && link.owes() && Clock::now() >= deadline(link))
      lose(link, runtime::concat("no answer within ", timeout_, " s"));
  }
}

void Servers::serve(Link& link, short events) {
  std::optional<Frame> frame;
  try {  // what it has to say first: it may say why it takes no more
    if (!link.reader.begun()) {
      std::int64_t most = kMostTextBytes;
      for (const Asked& asked : link.asked)
        most = std::max(most, tasks_[asked.task].remote.answer_bytes());
      link.reader.set_most_body_bytes(most);
    }
    if ((events & (POLLIN | POLLERR | POLLHUP)) != 0 && link.reader.read(link.socket))
      frame = link.reader.take();
    if ((events & POLLOUT) != 0) link.writer.write(link.socket);
  } catch (const Error& error) {
    if (!frame) return lose(link, error.what());  // else the next read tells
  }
  if (frame) take(link, std::move(*frame));
}

/// What is no answer to something that this server was asked for, is not used.
void Servers::take(Link& link, Frame frame) {
  if (frame.kind == kPong && frame.id == link.ping) {
    link.ping.reset();
    link.since = Clock::now();
    return;
  }
  const auto asked = std::ranges::find(link.asked, frame.id, &Asked::id);
  if (asked == link.asked.end())
    return lose(link, "it sent what it was not asked for (" + frame.id.text() + ")");
  if (frame.kind == kFailure) return lose(link, "it failed: " + text_of(frame.body));
  const std::size_t task = asked->task;
  const std::int64_t expected = tasks_[task].remote.answer_bytes();
  if (frame.kind != kAnswer || frame.body.bytes() != expected) {
    return lose(link,
                runtime::concat("it sent a frame of kind ", frame.kind, " and ", frame.body.bytes(),
                                " bytes; expected an answer of ", expected));
  }
  decode_answer(tasks_[task], frame.body);
  link.asked.erase(asked);
  link.since = Clock::now();
  link.load -= pairs(task);
  link.use.tasks += 1;
  link.use.pairs += pairs(task);
  link.use.seconds += seconds_of(frame.body);
  ++done_;
}

void Servers::tell(const std::string& line) {
  if (tasks_.empty()) return news_.push_back(line);
  say_(line);
}

void Servers::lose(Link& link, const std::string& why) {
  const std::deque<std::size_t> orphans = give_up(link, why);
  const auto tasks = std::ssize(orphans);
  tell("attention server " + link.use.address + " is lost: " + why +
       (tasks == 0 ? "" : "; others do the " + runtime::counted(tasks, "task") + " that it had"));
  for (const std::size_t task : orphans) assign(task);
}

/// Closes a connection that has work on it, so that nothing late comes from it; returns its tasks.
std::deque<std::size_t> Servers::give_up(Link& link, const std::string& why) {
  std::deque<std::size_t> orphans;
  for (const Asked& asked : link.asked) orphans.push_back(asked.task);
  orphans.insert(orphans.end(), link.waiting.begin(), link.waiting.end());
  link.asked.clear();
  link.waiting.clear();
  link.load = 0;
  link.connect({});
  link.lost = why;
  connector_.lost(number(link));
  return orphans;
}

}  // namespace

std::shared_ptr<ExternalServers> connect_servers(const ExternalServersOptions& options) {
  return std::make_shared<Servers>(options);
}

}  // namespace longhaul::parallel
