#include "launch/run_claim.h"

#include <cstdio>
#include <filesystem>

#include "launch/checkpoints.h"
#include "runtime/comm/gather.h"
#include "runtime/error.h"
#include "runtime/signals.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using runtime::Error;
using runtime::ExitCode;

constexpr double kRankTimeoutSeconds = 3600;  // of ranks that wait for the claim

}  // namespace

RunClaim::RunClaim(const TrainConfig& config) {
  runtime::HeartbeatOptions options;
  options.say = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  };
  options.give_up = [] { return runtime::signals::requested() != 0; };
  options.folder_name = "job.output_dir";
  const std::string checkpoints = checkpoint_folder(config);
  const auto seen = runtime::Heartbeat::look(checkpoints);
  hearts_.push_back(std::make_unique<runtime::Heartbeat>(config.job.output_dir, options));
  std::error_code missing;  // a folder that is not there yet is another one
  if (!config.checkpoint.enable || fs::equivalent(checkpoints, config.job.output_dir, missing))
    return;
  // Also where it lies in output_dir: a run with another output_dir may name it too.
  options.folder_name = "checkpoint.folder";
  options.remedy = kCheckpointRemedy;
  options.seen = seen;
  hearts_.push_back(std::make_unique<runtime::Heartbeat>(checkpoints, options));
}

void RunClaim::check() {
  for (const auto& heart : hearts_) heart->check();
}

std::unique_ptr<RunClaim> claim_for_job(const TrainConfig& config, runtime::Communicator& world) {
  std::unique_ptr<RunClaim> claim;
  std::string verdict(1, '\0');  // an exit code, and why
  if (world.rank() == 0) {
    try {
      claim = std::make_unique<RunClaim>(config);
    } catch (const Error& error) {
      verdict = static_cast<char>(error.code()) + std::string(error.what());
    }
  }
  const double timeout = world.set_timeout(kRankTimeoutSeconds);
  verdict = runtime::gather_texts(world, verdict, runtime::Stream::cpu("claim"),
                                  runtime::deadline_in(kRankTimeoutSeconds))
                .front();
  world.set_timeout(timeout);
  const auto code = static_cast<ExitCode>(verdict.front());
  if (code != ExitCode::done) throw Error(code, verdict.substr(1));
  return claim;
}

}  // namespace longhaul::launch
