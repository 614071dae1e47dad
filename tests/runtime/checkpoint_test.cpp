#include "runtime/io/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "runtime/comm/loopback.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "tests/support/expect_error.h"
#include "tests/support/saved_checkpoints.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using namespace test;
namespace fs = std::filesystem;

TEST(Checkpoint, RoundTripsOnOneRank) {
  TempDirectory folder;
  save(folder.path(), 10, 1);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000010"});
  EXPECT_EQ(names_in(folder / "step-00000010"),
            (std::set<std::string>{"manifest.json", "rank-00000-of-00001.h5"}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path(), 10);
  EXPECT_EQ(checkpoint.metadata(), metadata_of(10));
  ASSERT_EQ(checkpoint.tensors().size(), kTensors.size());
  EXPECT_EQ(checkpoint.tensor("layers.0.wq").sizes, (std::vector<std::int64_t>{5, 7, 3}));
  EXPECT_EQ(checkpoint.tensor("layers.0.norm").dtype, DType::bfloat16);
  EXPECT_TRUE(checkpoint.has("empty"));
  EXPECT_FALSE(checkpoint.has("full"));
  expect_reads(checkpoint, 1, 0, 10);
}

TEST(Checkpoint, AnySlicingReadsBackInAnyOther) {
  for (const int ranks : {1, 3, 4, 8}) {
    for (const int dim : {0, 1}) {
      TempDirectory folder;
      save(folder.path(), 7, ranks, dim);
      const Checkpoint checkpoint = Checkpoint::open(folder.path(), 7);
      for (const int parts : {1, 2, 3, 8}) {
        for (const int by : {0, 1, 2}) expect_reads(checkpoint, parts, by, 7);
      }
    }
  }
}

/// The bytes of a checkpoint's files, by name.
std::map<std::string, std::string> files_in(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : names_in(folder)) {
    std::ifstream file(folder / name, std::ios::binary);
    std::ostringstream bytes;
    bytes << file.rdbuf();
    files[name] = bytes.str();
  }
  return files;
}

TEST(Checkpoint, WhatIsStagedSomeRowsAtATimeIsWrittenAndReadTheSame) {
  TempDirectory direct, staged;
  save(direct.path(), 7, 3);
  // Blocks of one row, of a few rows that do not divide the tensors, and of everything.
  for (const std::int64_t bytes : {1, 100, 1 << 20}) {
    SCOPED_TRACE(bytes);
    std::int64_t held = 0;
    run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
      const Stream stream = Stream::cpu("io"), owner = Stream::cpu("owner");
      std::vector<std::vector<std::byte>> memory;
      auto slices = slices_of(kTensors, comm->rank(), 3, 0, 7, memory);
      std::int64_t largest_row = 0;
      for (TensorSlice& slice : slices) {
        slice.stream = owner;
        if (slice.view.elements() > 0)
          largest_row = std::max(largest_row, slice.view.bytes() / slice.view.size(0));
      }
      SaveOptions options{staged.path()};
      options.staged_bytes = bytes;
      save_checkpoint(options, metadata_of(7), slices, *comm, stream);
      EXPECT_LE(owner.memory().peak_bytes, std::max(bytes, largest_row));
      EXPECT_GT(owner.memory().buffers, 0);
      if (comm->rank() == 0) held = owner.memory().current_bytes;
    });
    EXPECT_EQ(held, 0);
    EXPECT_EQ(files_in(staged / "step-00000007"), files_in(direct / "step-00000007"));
    const Checkpoint checkpoint = Checkpoint::open(staged.path(), 7);
    const Stream owner = Stream::cpu("owner");
    for (const Spec& spec : kTensors) {
      const std::vector<std::byte> expected = global_bytes(spec, 7);
      std::vector<std::byte> result(expected.size(), std::byte{0xee});
      checkpoint.read(spec.name, std::vector<std::int64_t>(spec.sizes.size(), 0),
                      TensorView(result.data(), spec.dtype, Device{}, spec.sizes), owner, bytes);
      EXPECT_EQ(result, expected) << spec.name;
    }
  }
}

TEST(Checkpoint, StagedTensorsAreContiguous) {
  TempDirectory folder;
  save(folder.path(), 7, 1);
  const Checkpoint checkpoint = Checkpoint::open(folder.path(), 7);
  const Stream owner = Stream::cpu("owner");
  std::vector<float> wide(1000);
  const TensorView strided =
      TensorView(reinterpret_cast<std::byte*>(wide.data()), DType::float32, Device{}, {10, 10})
          .slice(1, 0, 5);
  EXPECT_THROW(checkpoint.read("layers.0.wq", std::vector<std::int64_t>{0, 0}, strided, owner),
               Error);
  EXPECT_THROW(HostRows(strided, owner, 100), Error);
}

TEST(Checkpoint, RanksOpenTogether) {
  TempDirectory folder;
  save(folder.path(), 3, 4);
  save(folder.path(), 5, 4);
  for (const int ranks : {1, 3, 5}) {
    run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> comm) {
      const Stream stream = Stream::cpu("io");
      const auto newest = Checkpoint::open_newest(folder.path(), *comm, stream);
      ASSERT_TRUE(newest.has_value());
      EXPECT_EQ(newest->metadata().step, 5);
      expect_reads(*newest, ranks, 0, 5);
      EXPECT_EQ(Checkpoint::open(folder.path(), 3, *comm, stream).metadata().step, 3);
      EXPECT_FALSE(Checkpoint::open_newest(folder / "none", *comm, stream).has_value());
    });
  }
  // Damage in a file that one rank digests is an error on all.
  const fs::path file = folder / "step-00000005/rank-00002-of-00004.h5";
  std::string bytes = test::read_text(file);
  bytes[bytes.size() / 2] ^= 4;
  test::write_text(file, bytes);
  std::atomic<int> refused = 0;
  run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    expect_error(ExitCode::data, "rank-00002-of-00004.h5",
                 [&] { Checkpoint::open_newest(folder.path(), *comm, stream); });
    ++refused;
  });
  EXPECT_EQ(refused, 3);
}

TEST(Checkpoint, EveryFlipTruncationAndLossIsRefusedNamingTheFile) {
  TempDirectory folder;
  save(folder.path(), 10, 3);
  save(folder.path(), 20, 3);
  const fs::path step = folder / "step-00000020";
  std::mt19937 random(11);
  for (const std::string& name : names_in(step)) {
    const std::string good = test::read_text(step / name);
    const auto expect_refused = [&] {
      expect_error(ExitCode::data, name, [&] { Checkpoint::open(folder.path(), 20); });
      expect_error(ExitCode::data, "set checkpoint.resume = 10",
                   [&] { Checkpoint::open(folder.path(), 20); });
    };
    for (int i = 0; i < 120; ++i) {  // thirty flips in every quarter of the file
      const std::size_t quarter = good.size() / 4;
      std::string damaged = good;
      damaged[static_cast<std::size_t>(i % 4) * quarter + random() % quarter] ^=
          static_cast<char>(1 << random() % 8);
      test::write_text(step / name, damaged);
      expect_refused();
    }
    for (const std::size_t at :
         {std::size_t{0}, good.size() - 1, good.size() - 2, good.size() - 4}) {
      std::string damaged = good;
      damaged[at] ^= 1;
      test::write_text(step / name, damaged);
      expect_refused();
    }
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{1}, good.size() / 2, good.size() - 1}) {
      test::write_text(step / name, good.substr(0, size));
      expect_refused();
    }
    test::write_text(step / name, good + "x");
    expect_refused();
    fs::remove(step / name);
    expect_refused();
    test::write_text(folder / "elsewhere", good);
    fs::create_symlink(folder / "elsewhere", step / name);
    try {
      Checkpoint::open(folder.path(), 20);
      ADD_FAILURE() << "a symbolic link was followed";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
    fs::remove(step / name);
    test::write_text(step / name, good);
  }
  expect_reads(Checkpoint::open(folder.path(), 20), 1, 0, 20);
  // Swapped files, and a whole checkpoint under another step's name.
  fs::rename(step / "rank-00000-of-00003.h5", folder / "swap");
  fs::rename(step / "rank-00001-of-00003.h5", step / "rank-00000-of-00003.h5");
  fs::rename(folder / "swap", step / "rank-00001-of-00003.h5");
  expect_error(ExitCode::data, "rank-00000-of-00003.h5",
               [&] { Checkpoint::open(folder.path(), 20); });
  fs::rename(folder / "step-00000010", folder / "step-00000030");
  expect_error(ExitCode::data, "is of step 10", [&] { Checkpoint::open(folder.path(), 30); });
}

/// Replaces text in a manifest and signs it anew, as an attacker would.
void edit_manifest(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = test::read_text(path);
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const std::size_t tail = text.rfind(",\n\"xxh3_128\": \"");
  text.replace(tail + 15, 32, xxh3_128(text.substr(0, tail)));
  test::write_text(path, text);
}

TEST(Checkpoint, ManifestsThatLieAreRefused) {
  TempDirectory folder;
  save(folder.path(), 1, 2);
  const fs::path manifest = folder / "step-00000001/manifest.json";
  const std::string good = test::read_text(manifest);
  edit_manifest(manifest, "\"step\": 1", "\"step\": 1");  // the editing itself is sound
  Checkpoint::open(folder.path(), 1);
  for (const auto& [from, to, why] : {
           std::array<std::string, 3>{"rank-00001-of-00002.h5", "../../../etc/passwd",
                                      "expected 'rank-00001"},
           {"rank-00001-of-00002.h5", "/etc/passwd", "names file '/etc/passwd'"},
           {"rank-00001-of-00002.h5", "rank-00000-of-00002.h5", "names file"},
           {"\"name\": \"mask\"", "\"name\": \"../mask\"", "is not allowed"},
           {"\"name\": \"mask\"", "\"name\": \"embedding.weight\"", "out of order"},
           {"\"dtype\": \"uint8\"", "\"dtype\": \"uint9\"", "uint9"},
           {"\"format_version\": 1", "\"format_version\": 2", "format_version is 2"},
           {"\"step\": 1", "\"step\": \"1\"", "not a manifest"},
           {"\"file\": 1", "\"file\": 2", "file number 2"},
           {"\"file\": 1", "\"file\": -1", "file number -1"},
           {"\"cursor\":", "\"curses\":", "not a manifest"},
           {"\"metadata\":", "\"metadata\" ", "not a manifest"},
       }) {
    edit_manifest(manifest, from, to);
    expect_error(ExitCode::data, why, [&] { Checkpoint::open(folder.path(), 1); });
    expect_error(ExitCode::data, "manifest.json", [&] { Checkpoint::open(folder.path(), 1); });
    test::write_text(manifest, good);
  }
  // Sizes and slices: the JSON is indented by one blank a level, a number a line.
  std::string flat;
  for (const char c : good) {
    if (c != '\n' && c != ' ') flat += c;
  }
  ASSERT_NE(flat.find("\"sizes\":[13]"), std::string::npos);
  for (const char* size :
       {"14", "12", "-13", "4611686018427387904", "99999999999999999999", "1e3"}) {
    std::string text = test::read_text(manifest);
    const std::size_t name = text.find("layers.0.norm\"");
    const std::size_t at = text.find("13", text.find("\"sizes\"", name));
    text.replace(at, 2, size);
    test::write_text(manifest, text);
    edit_manifest(manifest, "{\"body\"", "{\"body\"");
    expect_error(ExitCode::data, "manifest.json", [&] { Checkpoint::open(folder.path(), 1); });
    test::write_text(manifest, good);
  }
}

TEST(Checkpoint, RefusesSlicesThatOverlapOrLeaveHoles) {
  TempDirectory folder;
  const std::vector<float> values(100, 1);
  const auto save_two = [&](std::int64_t first_end, std::int64_t second_begin,
                            std::int64_t second_end) {
    run_loopback(2, {}, [&](std::unique_ptr<Communicator> comm) {
      const Stream stream = Stream::cpu("io");
      const Range range = comm->rank() == 0 ? Range{0, first_end} : Range{second_begin, second_end};
      const ConstTensorView view(reinterpret_cast<const std::byte*>(values.data()), DType::float32,
                                 Device{}, {range.end - range.begin});
      const TensorSlice slice{"w", {10}, {range.begin}, view};
      save_checkpoint({folder.path()}, metadata_of(1), {&slice, 1}, *comm, stream);
    });
  };
  expect_error(ExitCode::internal, "overlap", [&] { save_two(5, 4, 10); });
  expect_error(ExitCode::internal, "hold 9 elements", [&] { save_two(5, 6, 10); });
  expect_error(ExitCode::internal, "spans 5 + 6", [&] { save_two(5, 5, 11); });
  EXPECT_TRUE(names_in(folder.path()).empty());
  save_two(5, 5, 10);
  EXPECT_EQ(list_checkpoints(folder.path()), std::vector<std::int64_t>{1});
}

TEST(Checkpoint, ReadRefusesWhatTheTensorIsNot) {
  TempDirectory folder;
  save(folder.path(), 1, 1);
  const Checkpoint checkpoint = Checkpoint::open(folder.path(), 1);
  std::vector<std::byte> memory(8 * 37 * 11);
  const auto read = [&](const std::string& name, DType dtype,
                        std::initializer_list<std::int64_t> sizes,
                        const std::vector<std::int64_t>& start) {
    checkpoint.read(name, start, TensorView(memory.data(), dtype, Device{}, sizes));
  };
  expect_error(ExitCode::data, "no tensor 'w'", [&] { read("w", DType::float32, {1}, {0}); });
  expect_error(ExitCode::data, "is float32; expected bfloat16", [&] {
    read("embedding.weight", DType::bfloat16, {1, 1}, {0, 0});
  });
  expect_error(ExitCode::data, "has 2 dims",
               [&] { read("embedding.weight", DType::float32, {1}, {0}); });
  expect_error(ExitCode::data, "expected at least 12", [&] {
    read("embedding.weight", DType::float32, {1, 2}, {0, 10});
  });
  expect_error(ExitCode::config, "steps there: 1", [&] { Checkpoint::open(folder.path(), 2); });
  expect_error(ExitCode::config, "steps there: none",
               [&] { Checkpoint::open(folder / "none", 2); });
}

TEST(Checkpoint, WaitsForASlowRankAsLongAsItSaysAndNoLonger) {
  TempDirectory folder;
  const auto save = [&](double timeout_seconds) {
    run_loopback(3, {.timeout_seconds = 0.2, .recorders = {}},
                 [&](std::unique_ptr<Communicator> comm) {
                   const Stream stream = Stream::cpu("save");
                   const Tensor tensor({4, 7}, DType::float32, stream);
                   fill(tensor, comm->rank(), stream);
                   stream.synchronize(deadline_in(10));
                   // A disk that takes longer than the communicator would wait.
                   if (comm->rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(1));
                   const std::vector<TensorSlice> slices{
                       {"t", {12, 7}, {4 * comm->rank(), 0}, tensor.view()}};
                   CheckpointMetadata metadata;
                   metadata.step = 5;
                   SaveOptions options;
                   options.folder = folder.path();
                   options.timeout_seconds = timeout_seconds;
                   save_checkpoint(options, metadata, slices, *comm, stream);
                   EXPECT_EQ(comm->set_timeout(1), 0.2);  // is as before
                 });
  };
  save(30);
  EXPECT_EQ(Checkpoint::open(folder.path(), 5).tensor("t").sizes,
            (std::vector<std::int64_t>{12, 7}));
  expect_error(ExitCode::hang, "for rank 1", [&] { save(0.4); });
}

}  // namespace
}  // namespace longhaul::runtime
