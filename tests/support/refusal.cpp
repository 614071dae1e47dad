#include "tests/support/refusal.h"

#include <filesystem>

namespace longhaul::test {
namespace {

// Tests may themselves run under a launcher; the program must not think that it does.
const std::vector<std::string> kLauncherNames = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK",     "PMI_SIZE",
    "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"};

ProcessOptions options_in(const std::filesystem::path& folder,
                          const std::map<std::string, std::string>& environment) {
  ProcessOptions options;
  options.environment = environment;
  options.unset = kLauncherNames;
  options.directory = folder;
  return options;
}

}  // namespace

std::set<std::string> listing(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const auto time = std::to_string(entry.last_write_time().time_since_epoch().count());
    names.insert(entry.path().string() + " " + time + " " +
                 std::to_string(entry.is_regular_file() ? entry.file_size() : 0));
  }
  return names;
}

ProcessResult RefusalTest::longhaul(const std::vector<std::string>& arguments,
                                    const std::map<std::string, std::string>& environment) const {
  return run_longhaul(arguments, options_in(folder_.path(), environment));
}

ProcessResult RefusalTest::mpirun(int ranks, const std::vector<std::string>& arguments) const {
  return run_process(mpirun_command(ranks, arguments), options_in(folder_.path(), {}));
}

void RefusalTest::expect_refused(int code, const std::vector<std::string>& parts,
                                 const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& environment) const {
  const auto before = listing(folder_.path());
  const ProcessResult result = longhaul(arguments, environment);
  EXPECT_EQ(result.exit_code, code) << result.err;
  EXPECT_LT(result.seconds, 5);
  EXPECT_EQ(result.out, "");
  for (const std::string& part : parts)
    EXPECT_TRUE(has(result.err, part)) << "lacks " << part << "\n" << result.err;
  EXPECT_EQ(listing(folder_.path()), before);
}

}  // namespace longhaul::test
