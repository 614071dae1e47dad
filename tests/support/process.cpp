#include "tests/support/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace longhaul::test {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void sleep_briefly() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

std::vector<std::string> environment_of(const ProcessOptions& options) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text(*entry);
    const auto equals = text.find('=');
    if (equals != std::string::npos) values[text.substr(0, equals)] = text.substr(equals + 1);
  }
  for (const std::string& name : options.unset) values.erase(name);
#ifdef __SANITIZE_ADDRESS__
  // Open MPI leaks, under mpirun and without. What tests call in their own process is looked at.
  values["ASAN_OPTIONS"] = "allocator_may_return_null=1:detect_leaks=0";
#endif
  for (const auto& [name, value] : options.environment) values[name] = value;
  std::vector<std::string> lines;
  for (const auto& [name, value] : values) lines.push_back(name + "=" + value);
  return lines;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  for (std::string& text : strings) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

// Output goes to files, not pipes: a grandchild that outlives the program cannot block the reader.
std::filesystem::path scratch_file(int* descriptor) {
  std::string name = (std::filesystem::temp_directory_path() / "longhaul-out-XXXXXX").string();
  *descriptor = mkostemp(name.data(), O_CLOEXEC);
  if (*descriptor < 0) throw std::runtime_error("mkostemp " + name + ": " + std::strerror(errno));
  return name;
}

}  // namespace

Process::Process(const std::vector<std::string>& command, const ProcessOptions& options)
    : timeout_seconds_(options.timeout_seconds), started_(now_seconds()) {
  std::vector<std::string> arguments = command;
  std::vector<std::string> environment = environment_of(options);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(environment);
  const std::string directory = options.directory.string();
  int out = -1, err = -1, failure[2] = {-1, -1};
  out_path_ = scratch_file(&out);
  err_path_ = scratch_file(&err);
  if (pipe2(failure, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("fork failed");
  if (pid_ == 0) {
    setpgid(0, 0);
    const int in = open("/dev/null", O_RDONLY);
    if (in >= 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2 &&
        (directory.empty() || chdir(directory.c_str()) == 0)) {
      execvpe(argv[0], argv.data(), envp.data());
    }
    const int code = errno;
    if (::write(failure[1], &code, sizeof(code)) < 0) _exit(126);
    _exit(127);
  }
  setpgid(pid_, pid_);
  close(out);
  close(err);
  close(failure[1]);
  int code = 0;
  const bool failed = read(failure[0], &code, sizeof(code)) == sizeof(code);
  close(failure[0]);
  if (failed) {
    reap(true);
    std::filesystem::remove(out_path_);
    std::filesystem::remove(err_path_);
    throw std::runtime_error("cannot start " + command.at(0) + ": " + std::strerror(code));
  }
}

Process::~Process() {
  signal_group(SIGKILL);
  reap(true);
  std::error_code ignored;
  std::filesystem::remove(out_path_, ignored);
  std::filesystem::remove(err_path_, ignored);
}

void Process::signal(int number) const {
  if (!ended_) kill(pid_, number);
}

void Process::signal_group(int number) const { kill(-pid_, number); }

bool Process::reap(bool block) {
  if (ended_) return true;
  pid_t got = 0;
  do {
    got = waitpid(pid_, &status_, block ? 0 : WNOHANG);
  } while (got < 0 && errno == EINTR);
  if (got == 0) return false;
  ended_ = true;
  finished_ = now_seconds();
  return true;
}

bool Process::running() { return !reap(false); }

std::string Process::said() const { return read_text(out_path_); }

ProcessResult Process::wait() {
  ProcessResult result;
  while (!reap(false)) {
    if (now_seconds() - started_ > timeout_seconds_) {
      result.timed_out = true;
      signal_group(SIGKILL);
      reap(true);
      break;
    }
    sleep_briefly();
  }
  result.seconds = finished_ - started_;
  if (WIFSIGNALED(status_)) {
    result.signal = WTERMSIG(status_);
    result.exit_code = 128 + result.signal;
  } else {
    result.exit_code = WEXITSTATUS(status_);
  }
  result.out = read_text(out_path_);
  result.err = read_text(err_path_);
  return result;
}

ProcessResult run_process(const std::vector<std::string>& command, const ProcessOptions& options) {
  Process process(command, options);
  return process.wait();
}

std::string longhaul_program() { return std::string(LONGHAUL_BINARY_DIR) + "/longhaul"; }

ProcessResult run_longhaul(const std::vector<std::string>& arguments,
                           const ProcessOptions& options) {
  std::vector<std::string> command = {longhaul_program()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run_process(command, options);
}

std::vector<std::string> mpirun_command(int ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {
      LONGHAUL_MPIEXEC,      "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np",
      std::to_string(ranks), longhaul_program()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

}  // namespace longhaul::test
