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

bool lies_in(const fs::path& path, const fs::path& folder) {
  const fs::path way = fs::weakly_canonical(path).lexically_relative(fs::weakly_canonical(folder));
  return !way.empty() && *way.begin() != "..";
}

}  // namespace

RunClaim::RunClaim(const TrainConfig& config) {
  runtime::HeartbeatOptions options;
  options.say = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  };
  options.give_up = [] { return runtime::signals::requested() != 0; };
  options.folder_name = "job.output_dir";
  hearts_.push_back(std::make_unique<runtime::Heartbeat>(config.job.output_dir, options));
  const std::string checkpoints = checkpoint_folder(config);
  if (!config.checkpoint.enable || lies_in(checkpoints, config.job.output_dir)) return;
  options.folder_name = "checkpoint.folder";
  options.remedy = kCheckpointRemedy;
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
