// Which device a rank computes on, what is said of it, and what is refused.
#include "launch/device.h"

#include <gtest/gtest.h>

#include "runtime/comm/loopback.h"
#include "runtime/error.h"
#include "tests/support/gpu.h"
#include "tests/support/training_job.h"

namespace longhaul::launch {
namespace {

using runtime::Communicator;
using runtime::Error;
using runtime::ExitCode;

RankDevice device(int index, const std::string& host, const std::string& uuid) {
  return {host, index, "A100", uuid};
}

TEST(Device, RanksOfOneDeviceAreThoseOfOneUuid) {
  // Each process of the first host sees one device, which it calls 0; the second host's see both.
  const std::vector<RankDevice> apart{device(0, "a", "x"), device(0, "a", "y"), device(0, "b", "z"),
                                      device(1, "b", "w")};
  EXPECT_FALSE(share_devices(apart));
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(ranks_beside(apart, rank), std::vector{rank});
  const std::vector<RankDevice> shared{device(0, "a", "x"), device(1, "a", "y"),
                                       device(0, "a", "x")};
  EXPECT_TRUE(share_devices(shared));
  EXPECT_EQ(ranks_beside(shared, 2), (std::vector{0, 2}));
  EXPECT_EQ(ranks_beside(shared, 1), std::vector{1});
}

TEST(Device, TheBindingIsToldOfTheFirstRanks) {
  EXPECT_EQ(binding_text({device(0, "a", "x"), device(1, "a", "y")}),
            "rank 0 on GPU 0 A100 of host a\nrank 1 on GPU 1 A100 of host a");
  EXPECT_EQ(binding_text({device(2, "", "x")}), "rank 0 on GPU 2 A100");
  const std::string many = binding_text(std::vector<RankDevice>(17, device(0, "a", "x")));
  EXPECT_TRUE(many.ends_with("rank 15 on GPU 0 A100 of host a\nand 1 rank more")) << many;
}

/// What every rank is told that asks for a device.
std::vector<std::string> refusals(int ranks, bool may_share) {
  std::vector<std::string> texts(static_cast<std::size_t>(ranks));
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> world) {
    try {
      cuda_devices(*world, {"here", world->rank(), may_share, "device.kind = \"cuda\""});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::launch);
      texts[static_cast<std::size_t>(world->rank())] = error.what();
    }
  });
  return texts;
}

TEST(Device, WithoutADeviceEveryRankIsToldWhy) {
  if (test::no_gpu_reason().empty()) GTEST_SKIP() << "this machine has a CUDA device";
  for (const std::string& text : refusals(3, true)) {
    EXPECT_TRUE(text.starts_with("device.kind = \"cuda\": rank 0 on host here: ")) << text;
    EXPECT_TRUE(text.find("CUDA_VISIBLE_DEVICES") != std::string::npos ||
                text.find("--preset cuda") != std::string::npos)
        << text;
  }
}

TEST(Device, ATrainingRunWithoutADeviceEndsAtItsStart) {
  if (test::no_gpu_reason().empty()) GTEST_SKIP() << "this machine has a CUDA device";
  const test::TrainingJob job;
  for (const int ranks : {0, 2}) {
    const auto result =
        job.run(ranks, "out",
                {"device.kind=cuda",
                 "parallelism.context_parallel_degree=" + std::to_string(std::max(1, ranks)),
                 ranks == 0 ? "comm.backend=loopback" : "comm.backend=nccl"});
    EXPECT_EQ(result.exit_code, 69) << result.err;
    EXPECT_NE(result.err.find("device.kind = \"cuda\": rank 0 on host "), std::string::npos)
        << result.err;
    EXPECT_TRUE(job.checkpoints("out").empty());
  }
}

TEST(DeviceCuda, RanksBeyondTheDevicesShareThemOnlyWhereTheyMay) {
  LONGHAUL_NEEDS_GPU();
  const int many = runtime::cuda_device_count() + 1;
  for (const std::string& text : refusals(many, true)) EXPECT_EQ(text, "");
  for (const std::string& text : refusals(many, false)) {
    EXPECT_NE(text.find("would share GPU 0 "), std::string::npos) << text;
    EXPECT_NE(text.find("device.share = true"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace longhaul::launch
