#include "parallel/disaggregation/server_connector.h"

#include <algorithm>
#include <chrono>

#include "parallel/disaggregation/remote_task.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::parallel {
namespace {

using runtime::Clock;
using runtime::Deadline;
using runtime::deadline_in;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;
using runtime::net::Socket;

constexpr auto kPause = std::chrono::milliseconds(100);  // between tries at the start

std::vector<runtime::net::Address> parsed(const std::vector<std::string>& texts) {
  if (texts.empty())
    fail(ExitCode::config,
         "external attention servers have no addresses; expected unix:PATH or tcp:HOST:PORT of "
         "each `longhaul serve`");
  std::vector<runtime::net::Address> addresses;
  for (const std::string& text : texts) {
    addresses.push_back(runtime::net::parse_address(text));
    if (std::count(addresses.begin(), addresses.end(), addresses.back()) > 1)
      fail(ExitCode::config, "attention server ", text, " is there twice; expected each once");
  }
  return addresses;
}

}  // namespace

ServerConnector::ServerConnector(const ExternalServersOptions& options)
    : token_(runtime::net::Token::load(options.token_file)),
      build_(options.build.empty() ? task_build() : options.build),
      name_(options.name),
      addresses_(parsed(options.addresses)),
      lost_(addresses_.size()),
      thread_(runtime::start_thread("the thread that finds attention servers again",
                                    [this] { try_for_ever(); })) {}

ServerConnector::~ServerConnector() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::string ServerConnector::address(int server) const {
  return addresses_[static_cast<std::size_t>(server)].text();
}

Socket ServerConnector::try_once(int server, Deadline deadline) const {
  Socket socket = runtime::net::connect_to(addresses_[static_cast<std::size_t>(server)], deadline);
  runtime::net::client_hello(socket, token_, build_, name_, deadline);
  return socket;
}

Socket ServerConnector::connect(int server, Deadline deadline) const {
  for (;;) {
    try {
      return try_once(server, deadline);
    } catch (const Error& error) {
      const std::string text = "attention server " + address(server) + ": " + error.what();
      if (error.code() == ExitCode::disagree) throw Error(ExitCode::disagree, text);
      const bool may_come = error.code() == ExitCode::io || error.code() == ExitCode::hang;
      if (!may_come || Clock::now() + kPause >= deadline) {
        fail(ExitCode::launch, text, "; expected one started with: longhaul serve --listen ",
             address(server), " --token-file FILE");
      }
    }
    std::this_thread::sleep_for(kPause);
  }
}

void ServerConnector::lost(int server) {
  const std::lock_guard lock(mutex_);
  lost_[static_cast<std::size_t>(server)] = {true, std::nullopt, ""};
  changed_.notify_all();
}

std::optional<Socket> ServerConnector::returned(int server) {
  const std::lock_guard lock(mutex_);
  return std::exchange(lost_[static_cast<std::size_t>(server)].socket, std::nullopt);
}

std::optional<Socket> ServerConnector::try_now(int server) {
  if (auto socket = returned(server)) return socket;
  try {
    Socket socket = try_once(server, deadline_in(kTrySeconds));
    const std::lock_guard lock(mutex_);
    lost_[static_cast<std::size_t>(server)] = {};
    return socket;
  } catch (const Error& error) {
    const std::lock_guard lock(mutex_);
    lost_[static_cast<std::size_t>(server)].failure = error.what();
    return std::nullopt;
  }
}

std::string ServerConnector::last_failure(int server) const {
  const std::lock_guard lock(mutex_);
  return lost_[static_cast<std::size_t>(server)].failure;
}

void ServerConnector::try_for_ever() {
  const auto wanted = [this] { return std::ranges::any_of(lost_, &Lost::wanted); };
  std::unique_lock lock(mutex_);
  while (!closing_) {
    if (!wanted()) {
      changed_.wait(lock, [&] { return closing_ || wanted(); });
      continue;
    }
    changed_.wait_for(lock, std::chrono::duration<double>(kPeriodSeconds),
                      [this] { return closing_; });
    for (std::size_t server = 0; server < lost_.size() && !closing_; ++server) {
      if (!lost_[server].wanted) continue;
      lock.unlock();
      std::optional<Socket> socket;
      std::string failure;
      try {
        socket = try_once(static_cast<int>(server), deadline_in(kTrySeconds));
      } catch (const Error& error) {
        failure = error.what();
      }
      lock.lock();
      if (lost_[server].wanted) lost_[server] = {!socket, std::move(socket), failure};
    }
  }
}

}  // namespace longhaul::parallel
