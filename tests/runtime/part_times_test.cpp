// Which parts of the program keep a stream busy.
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "runtime/ops/glu.h"
#include "runtime/ops/matmul.h"
#include "runtime/tensor.h"

namespace longhaul::runtime {
namespace {

std::map<std::string, PartTimes> parts_of(const Stream& stream) {
  stream.synchronize(deadline_in(60));
  std::map<std::string, PartTimes> parts;
  double before = 1e9;
  for (const PartTimes& part : stream.part_times()) {
    EXPECT_LE(part.seconds, before) << part.part;
    before = part.seconds;
    EXPECT_TRUE(parts.try_emplace(part.part, part).second) << part.part << " twice";
  }
  return parts;
}

void sleep_for(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

TEST(PartTimes, TasksCountForTheFileThatEnqueuesThem) {
  const Stream stream = Stream::cpu("parts", 2);
  stream.cpu_task([] { sleep_for(0.01); });
  EXPECT_TRUE(parts_of(stream).empty());  // not asked for
  stream.time_parts();
  stream.cpu_task([] { sleep_for(0.02); });
  stream.host_task([] { sleep_for(0.02); });
  const Tensor a({5, 7}, DType::float32, stream), b({7, 6}, DType::float32, stream),
      c({5, 6}, DType::float32, stream), y({5, 3}, DType::float32, stream);
  fill(a, 1, stream);
  fill(b, 1, stream);
  ops::matmul(a, b, c, ops::Write::overwrite, stream);
  ops::matmul(a, b, c, ops::Write::add, stream);
  ops::glu(ops::Glu::swiglu, c, y, stream);
  const auto parts = parts_of(stream);
  ASSERT_EQ(parts.size(), 4u);
  const PartTimes& own = parts.at("part_times_test");
  EXPECT_EQ(own.tasks, 2);
  EXPECT_GE(own.seconds, 0.04);
  EXPECT_EQ(own.work.flops, 0);
  EXPECT_EQ(parts.at("tensor").tasks, 2);
  EXPECT_EQ(parts.at("tensor").work.bytes, 4 * (5 * 7 + 7 * 6));
  EXPECT_EQ(parts.at("matmul").tasks, 2);
  EXPECT_EQ(parts.at("matmul").work.flops, 2 * 2 * 5 * 7 * 6);
  EXPECT_EQ(parts.at("glu").work.bytes, 4 * (5 * 6 + 5 * 3));
  EXPECT_GT(parts.at("glu").seconds, 0);
}

TEST(PartTimes, WaitingForAnotherStreamIsAPart) {
  const Stream stream = Stream::cpu("waits"), other = Stream::cpu("works");
  stream.time_parts();
  other.cpu_task([] { sleep_for(0.05); });
  stream.wait(other.record());
  const auto parts = parts_of(stream);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_GE(parts.at(kWaitingPart).seconds, 0.03);
}

TEST(PartTimes, AnErrorStillPoisonsTheStream) {
  const Stream stream = Stream::cpu("fails");
  stream.time_parts();
  stream.cpu_task([] { throw std::runtime_error("broken"); });
  EXPECT_THROW(stream.synchronize(deadline_in(60)), std::runtime_error);
}

}  // namespace
}  // namespace longhaul::runtime
