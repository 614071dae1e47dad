#include "launch/inspect.h"

#include <gtest/gtest.h>

#include "launch/tokenize.h"
#include "runtime/comm/loopback.h"
#include "runtime/io/checkpoint.h"
#include "runtime/io/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

void expect_line(const std::string& text, const std::string& name, const std::string& value) {
  const std::size_t at = text.find("  " + name);
  ASSERT_NE(at, std::string::npos) << name << " is not in:\n" << text;
  const std::string line = text.substr(at, text.find('\n', at) - at);
  EXPECT_NE(line.find(value), std::string::npos) << line;
}

TEST(Inspect, DescribesACorpus) {
  TempDirectory folder;
  fs::create_directory(folder / "in");
  for (int i = 0; i < 10; ++i) {  // lengths 0 to 9
    test::write_text(folder / ("in/" + std::to_string(i)),
                     std::string(static_cast<std::size_t>(i), 'a'));
  }
  tokenize({{folder / "in"}, folder / "c.h5", "bytes"});
  const std::string text = inspect({folder / "c.h5"});
  EXPECT_NE(text.find("corpus, format version 2, intact"), std::string::npos) << text;
  expect_line(text, "documents", "10");
  expect_line(text, "tokens", "45 (uint8)");
  expect_line(text, "vocabulary", "256");
  expect_line(text, "tokenizer", "bytes");
  expect_line(text, "unigram entropy", "0.0000 nats");
  expect_line(text, "document lengths", "min 0, p10 0, median 4, mean 4.5, p90 8, p99 9, max 9");
  EXPECT_NE(text.find("4 - 7           4            48.89%"), std::string::npos)
      << text;  // 22 of 45
  expect_line(text, "label weights", "none; every label weighs 1");
  const std::string brief = inspect({.path = folder / "c.h5", .brief = true});
  expect_line(brief, "documents", "10");
  expect_line(brief, "document lengths", "median 4");
  EXPECT_EQ(brief.find("share of tokens"), std::string::npos) << brief;
  EXPECT_EQ(brief, text.substr(0, brief.size()));  // the same, cut short
}

TEST(Inspect, FindsDamageInACorpus) {
  TempDirectory folder;
  test::write_text(folder / "a", std::string(5000, 'q'));
  tokenize({{folder / "a"}, folder / "c.h5", "bytes"});
  std::string bytes = test::read_text(folder / "c.h5");
  bytes[bytes.find("qqqqqqqqqqqqqqqq") + 4321] ^= 1;
  test::write_text(folder / "c.h5", bytes);
  expect_error(ExitCode::data, "dataset 'tokens': indices 0 to 4999",
               [&] { inspect({folder / "c.h5"}); });
  expect_error(ExitCode::data, "dataset 'tokens': indices 0 to 4999", [&] {
    inspect({.path = folder / "c.h5", .brief = true});  // reads no less
  });
  expect_error(ExitCode::io, "missing.h5", [&] { inspect({folder / "missing.h5"}); });
  expect_error(ExitCode::data, "neither a checkpoint", [&] { inspect({folder.path()}); });
  expect_error(ExitCode::usage, "name a corpus file", [&] { inspect({folder.path(), true}); });
}

void save(const fs::path& folder, std::int64_t step) {
  runtime::run_loopback(2, {}, [&](std::unique_ptr<runtime::Communicator> comm) {
    const runtime::Stream stream = runtime::Stream::cpu("io");
    const std::vector<float> values(15, 1.5f);
    const std::int64_t rank = comm->rank();
    const runtime::ConstTensorView view(reinterpret_cast<const std::byte*>(values.data()),
                                        runtime::DType::float32, runtime::Device{}, {3, 5});
    const runtime::TensorSlice slice{"layers.0.wq", {6, 5}, {rank * 3, 0}, view};
    const std::string config =
        "[training]\nsteps = 5\n[parallelism]\ncontext_parallel_scheme = \"double_ring\"\n"
        "context_parallel_backward = \"burst\"";
    save_checkpoint({folder}, {step, 777, 3, step, 9, config, "feed", {}}, {&slice, 1}, *comm,
                    stream);
  });
}

TEST(Inspect, DescribesACheckpoint) {
  TempDirectory folder;
  save(folder.path(), 4);
  save(folder.path(), 5);
  for (const fs::path& path :
       {folder / "step-00000005", folder / "step-00000005/", folder.path()}) {
    const std::string text = inspect({path});
    EXPECT_NE(text.find("step-00000005: checkpoint, format version 1, intact"), std::string::npos)
        << text;
    expect_line(text, "step", "5");
    expect_line(text, "seed", "9");
    expect_line(text, "tokens", "777");
    expect_line(text, "corpus digest", "feed");
    expect_line(text, "tensors", "1, 30 values, 120 bytes");
    EXPECT_NE(text.find("layers.0.wq float32 [6,5] in 2 slices"), std::string::npos) << text;
    EXPECT_NE(text.find("rank-00001-of-00002.h5"), std::string::npos) << text;
    // The stored configuration in today's words.
    EXPECT_NE(text.find("config:\n[training]\nsteps = 5\n[parallelism]\ncontext_parallel_scheme = "
                        "\"double_ring(backward=burst)\"\n"),
              std::string::npos)
        << text;
    EXPECT_EQ(text.find("context_parallel_backward"), std::string::npos) << text;
    const std::string brief = inspect({.path = path, .brief = true});
    expect_line(brief, "step", "5");
    expect_line(brief, "tensors", "1, 30 values, 120 bytes");
    expect_line(brief, "files", "2");
    for (const char* list : {"layers.0.wq", "rank-00001", "config:", "steps = 5"})
      EXPECT_EQ(brief.find(list), std::string::npos) << brief;
  }
  expect_line(inspect({folder / "step-00000004"}), "step", "4");
  fs::remove(folder / "step-00000005/rank-00001-of-00002.h5");
  expect_error(ExitCode::data, "rank-00001-of-00002.h5: is missing",
               [&] { inspect({folder.path()}); });
}

void write_weights(const fs::path& path, const std::string& name, std::int64_t size) {
  using namespace runtime::safetensors;
  const std::vector<TensorInfo> tensors{{name, Element::bf16, {size, 2}}};
  Writer writer(path, tensors, Metadata{{{"format", "pt"}}});
  writer.append_floats(std::vector<float>(static_cast<std::size_t>(2 * size)));
  writer.finish();
}

TEST(Inspect, DescribesWeights) {
  TempDirectory folder;
  write_weights(folder / "1.safetensors", "model.a\n", 3);
  write_weights(folder / "2.safetensors", "model.b", 7);
  const std::string file = inspect({folder / "1.safetensors"});
  expect_line(file, "metadata", "'format' 'pt'");
  expect_line(file, "tensors", "1, 6 values, 12 bytes");
  EXPECT_NE(file.find("'model.a\\x0a' BF16 [3,2]\n"), std::string::npos) << file;
  const std::string brief = inspect({.path = folder / "1.safetensors", .brief = true});
  EXPECT_EQ(brief, file.substr(0, brief.size()));
  EXPECT_LT(brief.size(), file.size());

  test::write_text(
      folder / runtime::safetensors::kIndexName,
      R"({"metadata": {}, "weight_map": {"model.b": "2.safetensors", "c": "1.safetensors"}})");
  const std::string all = inspect({folder.path()});
  expect_line(all, "tensors", "2, 20 values, 40 bytes");
  EXPECT_NE(all.find("'model.b' BF16 [7,2] in 2.safetensors\n"), std::string::npos) << all;
  expect_line(all, "not in its file", "'c'");
  expect_line(all, "not in the index", "'model.a\\x0a'");
  fs::resize_file(folder / "2.safetensors", 100);
  expect_error(ExitCode::data, "cut short", [&] { inspect({folder.path()}); });
}

}  // namespace
}  // namespace longhaul::launch
