#include "runtime/io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
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
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

struct Spec {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> sizes;
};
const std::vector<Spec> kTensors{{"embedding.weight", DType::float32, {37, 11}},
                                 {"layers.0.norm", DType::bfloat16, {13}},
                                 {"layers.0.wq", DType::float64, {5, 7, 3}},
                                 {"layers.0.wq.exp_avg", DType::float32, {1, 1, 1, 1, 1}},
                                 {"counters", DType::int64, {2}},
                                 {"mask", DType::uint8, {1, 127}},
                                 {"empty", DType::int32, {0, 4}}};

std::int64_t product(const std::vector<std::int64_t>& sizes) {
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes) elements *= size;
  return elements;
}

/// The bytes of a whole tensor, from its name and a version alone.
std::vector<std::byte> global_bytes(const Spec& spec, std::int64_t version) {
  std::mt19937_64 random(std::hash<std::string>{}(spec.name) + static_cast<std::uint64_t>(version));
  std::vector<std::byte> bytes(
      static_cast<std::size_t>(product(spec.sizes) * size_bytes(spec.dtype)));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

struct Range {
  std::int64_t begin, end;
};
/// Even cut of `size` into `parts`, the first ones larger; ranks beyond the size get nothing.
Range part_of(std::int64_t size, int parts, int part) {
  const std::int64_t base = size / parts, extra = size % parts;
  const std::int64_t begin = part * base + std::min<std::int64_t>(part, extra);
  return {begin, begin + base + (part < extra ? 1 : 0)};
}

/// Rank `rank`'s slices when every tensor is cut along `dim` (its last one if it has fewer). The
/// views are strided views of the global tensors, which `memory` keeps.
std::vector<TensorSlice> slices_of(const std::vector<Spec>& specs, int rank, int ranks, int dim,
                                   std::int64_t version,
                                   std::vector<std::vector<std::byte>>& memory) {
  std::vector<TensorSlice> slices;
  for (const Spec& spec : specs) {
    const int cut = std::min(dim, static_cast<int>(spec.sizes.size()) - 1);
    const Range range = part_of(spec.sizes[static_cast<std::size_t>(cut)], ranks, rank);
    memory.push_back(global_bytes(spec, version));
    const ConstTensorView whole(memory.back().data(), spec.dtype, Device{}, spec.sizes);
    std::vector<std::int64_t> start(spec.sizes.size(), 0);
    start[static_cast<std::size_t>(cut)] = range.begin;
    slices.push_back({spec.name, spec.sizes, start, whole.slice(cut, range.begin, range.end)});
  }
  return slices;
}

CheckpointMetadata metadata_of(std::int64_t step) {
  return {step,     step * 8192,           step * 2,
          step - 1, 0xffffffffffffffffull, "[training]\nseq_len = 4096  # \"\xc3\xa9\"\n",
          "0123",   {{"note", "a\nb"}}};
}

void save(const fs::path& folder, std::int64_t step, int ranks, int dim = 0, std::int64_t keep = 0,
          std::int64_t version = -1, const std::vector<Spec>& specs = kTensors) {
  run_loopback(ranks, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices =
        slices_of(specs, comm->rank(), ranks, dim, version < 0 ? step : version, memory);
    save_checkpoint({folder, keep}, metadata_of(step), slices, *comm, stream);
  });
}

/// Reads every tensor in `parts` pieces along `dim`, and compares with what was saved.
void expect_reads(const Checkpoint& checkpoint, int parts, int dim, std::int64_t version,
                  const std::vector<Spec>& specs = kTensors) {
  for (const Spec& spec : specs) {
    std::vector<std::byte> result(global_bytes(spec, version).size(), std::byte{0xee});
    const TensorView whole(result.data(), spec.dtype, Device{}, spec.sizes);
    const int cut = std::min(dim, static_cast<int>(spec.sizes.size()) - 1);
    for (int part = 0; part < parts; ++part) {
      const Range range = part_of(spec.sizes[static_cast<std::size_t>(cut)], parts, part);
      std::vector<std::int64_t> start(spec.sizes.size(), 0);
      start[static_cast<std::size_t>(cut)] = range.begin;
      checkpoint.read(spec.name, start, whole.slice(cut, range.begin, range.end));
    }
    EXPECT_EQ(result, global_bytes(spec, version))
        << spec.name << " in " << parts << " parts of dim " << dim;
  }
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.insert(entry.path().filename().string());
  return names;
}

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

TEST(Checkpoint, PrunesOldestFirstAndNeverTheNewOne) {
  TempDirectory folder;
  for (const std::int64_t step : {10, 20, 30, 40}) save(folder.path(), step, 2, 0, 3);
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{20, 30, 40}));
  save(folder.path(), 25, 2, 0, 1);  // after resuming from an older one
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{25, 30, 40}));
  fs::create_directory(folder / "step-00000050.tmp-dead");  // of a save that died
  fs::create_directory(folder / "step-notes");
  fs::create_directory(folder / "step-5");
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{25, 30, 40}));
  save(folder.path(), 50, 2, 0, 1);
  EXPECT_EQ(names_in(folder.path()),
            (std::set<std::string>{"step-00000050", "step-notes", "step-5"}));
}

TEST(Checkpoint, LaterOnesAreSetAsideInTheFolderItself) {
  TempDirectory folder;
  // Another disk, where this machine has one.
  const bool memory = fs::is_directory("/dev/shm");
  const fs::path disk =
      memory ? fs::path(concat("/dev/shm/longhaul-", unique_suffix())) : folder / "disk";
  const Cleanup remove([&] { fs::remove_all(disk); });
  fs::create_directory(disk);
  fs::create_directory(folder / "near");
  fs::create_directory_symlink(disk, folder / "link");
  for (const fs::path& named : {folder / "near/", folder / "link", folder / "near/../near/."}) {
    SCOPED_TRACE(named);
    const std::set<std::string> beside = names_in(folder.path());
    for (const std::int64_t step : {1, 2, 3}) save(named, step, 1);
    test::write_text(named / "heartbeat.json", "{}");
    const fs::path first = set_aside_newer_checkpoints(named, 1);
    EXPECT_EQ(list_checkpoints(first), (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(list_checkpoints(named), std::vector<std::int64_t>{1});
    EXPECT_EQ(names_in(named),
              (std::set<std::string>{"step-00000001", "heartbeat.json", first.filename()}));
    EXPECT_EQ(names_in(folder.path()), beside);
    EXPECT_EQ(set_aside_newer_checkpoints(named, 1), "");
    const fs::path second = set_aside_newer_checkpoints(named, 0);
    EXPECT_TRUE(fs::equivalent(second.parent_path(), named));
    EXPECT_NE(second, first);
    expect_reads(Checkpoint::open(second, 1), 1, 0, 1);
    save(named, 4, 1, 0, 1);  // and what a run removes there is not what was set aside
    EXPECT_EQ(list_checkpoints(first), (std::vector<std::int64_t>{2, 3}));
    for (const auto& entry : fs::directory_iterator(named)) fs::remove_all(entry.path());
  }
}

/// A save by three ranks whose caller loses the folder at the n-th time that it is asked.
void expect_lost(const fs::path& folder, std::int64_t step, int lost_at) {
  std::atomic<int> asked = 0, refused = 0;
  run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices = slices_of(kTensors, comm->rank(), 3, 0, step, memory);
    SaveOptions options{folder, 1};
    options.before_change = [&] {
      EXPECT_EQ(comm->rank(), 0);
      if (++asked >= lost_at) fail(ExitCode::launch, "another run has it");
    };
    expect_error(ExitCode::launch, "another run has it",
                 [&] { save_checkpoint(options, metadata_of(step), slices, *comm, stream); });
    ++refused;
  });
  EXPECT_EQ(refused, 3);
  EXPECT_EQ(asked, lost_at) << "it went on after it had been told";
}

TEST(Checkpoint, AFolderThatIsLostInTheMiddleOfASaveIsLeftAlone) {
  TempDirectory folder;
  save(folder.path(), 1, 2);
  save(folder.path(), 4, 2, 0, 0, 100);
  fs::create_directory(folder / "step-00000009.tmp-of-the-other-run");
  const std::set<std::string> before = names_in(folder.path());
  for (const std::int64_t step : {4, 5}) {
    for (const int lost_at : {1, 2}) {  // before it begins, and before its own appears
      SCOPED_TRACE(lost_at);
      if (lost_at > 1) fs::remove(folder / "step-00000009.tmp-of-the-other-run");
      expect_lost(folder.path(), step, lost_at);
      fs::create_directory(folder / "step-00000009.tmp-of-the-other-run");
      EXPECT_EQ(names_in(folder.path()), before);
      expect_reads(Checkpoint::open(folder.path(), 4), 1, 0, 100);
    }
  }
  fs::remove(folder / "step-00000009.tmp-of-the-other-run");
  expect_lost(folder.path(), 5, 3);  // before older ones go
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{1, 4, 5}));
}

TEST(Checkpoint, AFailedSaveAsksFirstWhoseTheFolderIsAndNamesWhatIsThere) {
  for (const bool lost : {true, false}) {
    TempDirectory folder;
    save(folder.path(), 9, 1);  // of a step that is still to come: another run's
    int asked = 0;
    run_loopback(1, {}, [&](std::unique_ptr<Communicator> comm) {
      const Stream stream = Stream::cpu("io");
      std::vector<std::vector<std::byte>> memory;
      const auto slices = slices_of(kTensors, 0, 1, 0, 6, memory);
      SaveOptions options{folder.path()};
      options.before_change = [&] {
        // As a new owner's save does to what it takes for an attempt that died.
        if (++asked == 2) {
          for (const std::string& name : names_in(folder.path())) {
            if (name.starts_with("step-00000006.tmp")) fs::remove_all(folder / name);
          }
        } else if (asked == 3 && lost) {
          fail(ExitCode::launch, "another run has it");
        }
      };
      expect_error(lost ? ExitCode::launch : ExitCode::io,
                   lost ? "another run has it" : "the checkpoint of step 9 is complete and safe",
                   [&] { save_checkpoint(options, metadata_of(6), slices, *comm, stream); });
    });
    EXPECT_EQ(asked, 3);
    EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000009"});
  }
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  TempDirectory folder;
  save(folder.path(), 10, 3, 0, 2, 100);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 100);
  save(folder.path(), 10, 2, 0, 2, 101);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 101);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000010"});
  // Where folders cannot be exchanged, a crash can leave the older version under another name.
  fs::rename(folder / "step-00000010", folder / "step-00000010.replaced-1");
  EXPECT_EQ(list_checkpoints(folder.path()), std::vector<std::int64_t>{10});
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 101);
  save(folder.path(), 10, 1, 0, 2, 102);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 102);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000010"});
}

TEST(Checkpoint, RefusesUnusableTensorsBeforeAnythingIsCommitted) {
  TempDirectory folder;
  save(folder.path(), 1, 1);
  const Spec odd{"a/b", DType::float32, {4}};
  expect_error(ExitCode::internal, "a/b", [&] { save(folder.path(), 2, 3, 0, 0, -1, {odd}); });
  const Spec twice{"w", DType::float32, {4}};
  expect_error(ExitCode::internal, "overlap", [&] {
    save(folder.path(), 2, 1, 0, 0, -1, {twice, twice});
  });
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000001"});
}

/// Runs `body` in a child process, which ends with its result.
template <class Body>
pid_t start_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 99;
    try {
      result = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    std::fflush(nullptr);
    ::_exit(result);
  }
  return child;
}

const std::vector<Spec> kLarger{{"a", DType::float32, {301, 307}},
                                {"b", DType::float64, {40007}},
                                {"c", DType::bfloat16, {64, 64, 9}}};

TEST(Checkpoint, AKilledSaveAlwaysLeavesAWholeCheckpoint) {
  TempDirectory folder;
  save(folder.path(), 0, 2, 0, 2, -1, kLarger);
  std::mt19937 random(3);
  std::set<std::int64_t> newest_steps;
  std::int64_t first = 1;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = start_child([&]() -> int {
      for (std::int64_t step = first;; ++step) save(folder.path(), step, 2, 0, 2, -1, kLarger);
    });
    ASSERT_GT(child, 0);
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + random() % 250000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    const std::vector<std::int64_t> steps = list_checkpoints(folder.path());
    ASSERT_FALSE(steps.empty());
    for (const std::int64_t step : steps) {  // each is whole, and of one version
      const Checkpoint checkpoint = Checkpoint::open(folder.path(), step);
      EXPECT_EQ(checkpoint.metadata(), metadata_of(step));
      expect_reads(checkpoint, 1, 0, step, kLarger);
    }
    EXPECT_GE(steps.back() + 1, first) << "a committed checkpoint was lost";
    first = steps.back() + 1;
    newest_steps.insert(steps.back());
  }
  EXPECT_GT(newest_steps.size(), 2u) << "the children hardly ever saved anything";
  // The last attempt's remains go with the next save.
  save(folder.path(), first, 1, 0, 1, -1, kLarger);
  EXPECT_EQ(names_in(folder.path()).size(), 1u);
}

TEST(Checkpoint, AKilledReplacementKeepsOneOfTheTwo) {
  TempDirectory folder;
  save(folder.path(), 5, 2, 0, 2, 0, kLarger);
  std::mt19937 random(4);
  for (int round = 0; round < 8; ++round) {
    const pid_t child = start_child([&]() -> int {
      for (std::int64_t version = 1;; version = 1 - version) {
        save(folder.path(), 5, 2, 0, 2, version, kLarger);
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + random() % 200000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    const Checkpoint checkpoint = Checkpoint::open(folder.path(), 5);
    std::vector<std::byte> a(4 * 301 * 307);
    checkpoint.read("a", std::vector<std::int64_t>{0, 0},
                    TensorView(a.data(), DType::float32, Device{}, {301, 307}));
    const std::int64_t version = a == global_bytes(kLarger[0], 0) ? 0 : 1;
    expect_reads(checkpoint, 1, 0, version, kLarger);
  }
}

TEST(Checkpoint, AFullDiskAbandonsTheAttempt) {
  TempDirectory folder;
  save(folder.path(), 1, 2, 0, 1, -1, kLarger);
  // A limit on file size fails a write just as a full device does (EFBIG for ENOSPC).
  for (const std::int64_t limit : {1000, 5000, 100000, 380000}) {
    const pid_t child = start_child([&]() -> int {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit size{static_cast<rlim_t>(limit), RLIM_INFINITY};
      if (::setrlimit(RLIMIT_FSIZE, &size) != 0) return 98;
      const auto open_files = names_in("/proc/self/fd").size();
      int failures = 0;
      for (int attempt = 0; attempt < 3; ++attempt) {
        try {
          save(folder.path(), 2, 2, 0, 1, -1, kLarger);
        } catch (const Error& error) {
          if (error.code() != ExitCode::io) std::fprintf(stderr, "child: %s\n", error.what());
          failures += error.code() == ExitCode::io;
        }
      }
      const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
      if (::setrlimit(RLIMIT_FSIZE, &none) != 0) return 97;
      if (names_in(folder.path()) != std::set<std::string>{"step-00000001"}) return 96;
      if (names_in("/proc/self/fd").size() != open_files) return 95;
      return failures;
    });
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 3) << "with a limit of " << limit << " bytes";
    expect_reads(Checkpoint::open(folder.path(), 1), 1, 0, 1, kLarger);
  }
  // The same process goes on saving once there is room.
  save(folder.path(), 2, 2, 0, 1, -1, kLarger);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000002"});
}

TEST(Checkpoint, WhatCannotBeSetAsideLeavesNothingEmpty) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to make folders of another user";
  TempDirectory folder;
  save(folder.path(), 7, 1);
  // Whoever may write into the folder, but not move what others have put there.
  fs::permissions(folder.path(), fs::perms::all | fs::perms::sticky_bit);
  const pid_t child = start_child([&]() -> int {
    if (::setresuid(65534, 65534, 65534) != 0) return 98;
    try {
      set_aside_newer_checkpoints(folder.path(), 0);
    } catch (const Error& error) {
      return static_cast<int>(error.code());
    }
    return 97;
  });
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::io));
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000007"});
}

TEST(Checkpoint, AnUnwritableFolderIsAnIoErrorOnEveryRank) {
  TempDirectory folder;
  test::write_text(folder / "file", "");
  std::atomic<int> refused = 0;
  run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices = slices_of(kTensors, comm->rank(), 3, 0, 1, memory);
    expect_error(ExitCode::io, "file", [&] {
      save_checkpoint({folder / "file"}, metadata_of(1), slices, *comm, stream);
    });
    ++refused;
  });
  EXPECT_EQ(refused, 3);
}

}  // namespace
}  // namespace longhaul::runtime
