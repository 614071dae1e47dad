#include "tests/support/attention_server.h"

#include <algorithm>
#include <stdexcept>

#include "tests/support/training_job.h"

namespace longhaul::test {

AttentionServer::AttentionServer(const std::string& listen, const std::string& token_file,
                                 const std::vector<std::string>& options) {
  std::vector<std::string> command = {longhaul_program(), "serve",   "--listen", listen,
                                      "--token-file",     token_file};
  command.insert(command.end(), options.begin(), options.end());
  // What the program would see to itself, by starting once more.
  process_ = std::make_unique<Process>(
      command,
      ProcessOptions{.timeout_seconds = 100, .environment = {{"OMP_WAIT_POLICY", "passive"}}});
  const std::string begin = "attention server at ";
  std::string said;
  const bool listens = wait_until(
      [&] {
        said = process_->said();
        return std::count(said.begin(), said.end(), '\n') >= 2 || !process_->running();
      },
      20);
  if (!listens || !said.starts_with(begin))
    throw std::runtime_error("no attention server: " + process_->wait().err);
  address_ = said.substr(begin.size(), said.find(" on host ") - begin.size());
  const auto second = said.find('\n') + 1;
  build_ = said.substr(second, said.find('\n', second) - second);
}

}  // namespace longhaul::test
