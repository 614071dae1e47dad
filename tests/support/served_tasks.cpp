#include "tests/support/served_tasks.h"

#include <sys/stat.h>

namespace longhaul::test {

std::string write_token(const TempDirectory& folder, const std::string& name,
                        const std::string& text) {
  const std::string path = folder.write(name, text);
  ::chmod(path.c_str(), 0600);
  return path;
}

ServedTasks::ServedTasks(const std::string& address, const std::string& token_file,
                         const Change& change) {
  parallel::TaskServerOptions options{
      .address = runtime::net::parse_address(address),
      .token = runtime::net::Token::load(token_file),
      .make_stream = [] { return runtime::Stream::cpu("tasks", 2); },
      .most_task_bytes = 1 << 28,
      .say =
          [this](const std::string& line) {
            const std::lock_guard lock(mutex_);
            said_ += line + "\n";
          }};
  change(options);
  server_ = std::make_unique<parallel::TaskServer>(std::move(options));
  thread_ = std::thread([this] { server_->run([this] { return stop_.load(); }); });
}

ServedTasks::~ServedTasks() {
  stop_ = true;
  thread_.join();
}

std::string ServedTasks::said() const {
  const std::lock_guard lock(mutex_);
  return said_;
}

}  // namespace longhaul::test
