#include "runtime/cores.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "runtime/cgroup.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using test::TempDirectory;

std::vector<int> cpus(int first, int count) {
  std::vector<int> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::vector<int> threads(const std::vector<RankCores>& ranks) {
  std::vector<int> counts;
  for (const CoreShare& share : share_cores(ranks)) counts.push_back(share.threads);
  return counts;
}

TEST(Cores, UnboundRanksShareAllCpusAndBoundOnesKeepTheirs) {
  EXPECT_EQ(threads({{"a", cpus(0, 8), 0}}), (std::vector<int>{8}));
  EXPECT_EQ(threads({{"a", cpus(0, 8), 0}, {"a", cpus(0, 8), 0}, {"a", cpus(0, 8), 0}}),
            (std::vector<int>{2, 2, 2}));
  EXPECT_EQ(threads({{"a", cpus(0, 3), 0}, {"a", cpus(3, 5), 0}}), (std::vector<int>{3, 5}));
  // A narrowed set that all share is no set of each: 4 ranks in a container of CPUs 6 and 7.
  EXPECT_EQ(threads(std::vector<RankCores>(4, {"a", cpus(6, 2), 0})),
            (std::vector<int>{1, 1, 1, 1}));
  // One rank on CPUs that the other two also use.
  EXPECT_EQ(threads({{"a", cpus(0, 6), 0}, {"a", cpus(0, 3), 0}, {"a", cpus(3, 3), 0}}),
            (std::vector<int>{3, 1, 1}));
  // Thirds of three CPUs add up to one core.
  EXPECT_EQ(threads(std::vector<RankCores>(3, {"a", cpus(0, 3), 0})), (std::vector<int>{1, 1, 1}));
}

TEST(Cores, HostsShareNothing) {
  const auto shares = share_cores(
      std::vector<RankCores>{{"a", cpus(0, 4), 0}, {"b", cpus(0, 4), 0}, {"a", cpus(0, 4), 0}});
  EXPECT_EQ(shares[0].threads, 2);
  EXPECT_EQ(shares[1].threads, 4);
  EXPECT_EQ(shares[0].ranks, 2);
  EXPECT_EQ(shares[1].ranks, 1);
}

TEST(Cores, AQuotaIsForAllRanksOfAHost) {
  EXPECT_EQ(threads({{"a", cpus(0, 64), 2}}), (std::vector<int>{2}));
  EXPECT_EQ(threads({{"a", cpus(0, 64), 1.5}}), (std::vector<int>{2}));
  EXPECT_EQ(threads({{"a", cpus(0, 64), 0.2}}), (std::vector<int>{1}));
  EXPECT_EQ(threads({{"a", cpus(0, 2), 16}}), (std::vector<int>{2}));
  EXPECT_EQ(threads(std::vector<RankCores>(3, {"a", cpus(0, 64), 7})), (std::vector<int>{2, 2, 2}));
  const auto shares = share_cores(std::vector<RankCores>(3, {"a", cpus(0, 64), 7}));
  EXPECT_EQ(shares[0].host_cores, 7);
  EXPECT_EQ(shares[0].own_cores, 7);
}

/// A machine's /proc and cgroup file systems, as files of the test's own.
class FakeMachine {
 public:
  void put(const std::string& path, const std::string& text) const { folder_.write(path, text); }
  void process(const std::string& groups, const std::string& mounts) const {
    put("proc/self/cgroup", groups);
    put("proc/self/mountinfo", mounts);
  }
  CgroupLimits limits() const { return cgroup_limits(folder_.path()); }

 private:
  TempDirectory folder_;
};

TEST(Cgroup, Version2TakesTheTightestOfAllGroupsAround) {
  const FakeMachine machine;
  machine.process(
      "0::/system.slice/job.scope/step\n",
      "22 1 0:20 / / rw - ext4 /dev/sda rw\n"
      "30 22 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
  EXPECT_FALSE(machine.limits().cores);
  EXPECT_FALSE(machine.limits().memory_bytes);
  const std::string top = "sys/fs/cgroup/";
  machine.put(top + "system.slice/cpu.max", "350000 100000\n");
  machine.put(top + "system.slice/job.scope/cpu.max", "max 100000\n");
  machine.put(top + "system.slice/job.scope/step/cpu.max", "40000 10000\n");
  machine.put(top + "system.slice/memory.max", "max\n");
  machine.put(top + "system.slice/job.scope/memory.max", "1073741824\n");
  machine.put(top + "system.slice/job.scope/step/memory.max", "4294967296\n");
  EXPECT_EQ(machine.limits().cores, 3.5);
  EXPECT_EQ(machine.limits().memory_bytes, std::int64_t{1} << 30);
  machine.put(top + "system.slice/other/cpu.max", "1 100000\n");  // none of ours
  EXPECT_EQ(machine.limits().cores, 3.5);
}

TEST(Cgroup, Version1HasAHierarchyOfEachController) {
  const FakeMachine machine;
  machine.process(
      "7:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc/inner\n1:name=systemd:/x\n",
      "31 30 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
      "32 30 0:29 /docker/abc /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n");
  machine.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n");
  machine.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  machine.put("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "-1\n");
  machine.put("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n");
  machine.put("sys/fs/cgroup/my memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(machine.limits().cores, 2.5);
  EXPECT_FALSE(machine.limits().memory_bytes);
  machine.put("sys/fs/cgroup/my memory/memory.limit_in_bytes", "536870912\n");
  EXPECT_EQ(machine.limits().memory_bytes, std::int64_t{1} << 29);
}

TEST(Cgroup, AContainerThatSeesOnlyItsMount) {
  const FakeMachine machine;
  machine.process("0::/../../other\n",
                  "30 22 0:27 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
  machine.put("sys/fs/cgroup/cpu.max", "200000 100000\n");
  machine.put("sys/fs/cgroup/memory.max", "nonsense\n");
  EXPECT_EQ(machine.limits().cores, 2.0);
  EXPECT_FALSE(machine.limits().memory_bytes);
  EXPECT_FALSE(cgroup_limits("/nowhere").cores);
}

}  // namespace
}  // namespace longhaul::runtime
