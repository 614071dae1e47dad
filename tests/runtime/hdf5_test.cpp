#include "runtime/io/hdf5.h"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>

#include <numeric>
#include <random>

#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::hdf5 {
namespace {

using test::expect_error;
using test::TempDirectory;

template <class T>
std::vector<T> counting(std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i * 7 + 1);
  return values;
}

template <class T>
void round_trip(const Extents& sizes, Storage storage) {
  TempDirectory folder;
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) count *= size;
  const std::vector<T> values = counting<T>(count);
  {
    File file = File::create(folder / "x.h5");
    Dataset dataset = file.create_dataset("values", ElementOf<T>::value, sizes, storage);
    dataset.write<T>(Extents(sizes.size(), 0), sizes, std::span<const T>(values));
    file.close();
  }
  const File file = File::open(folder / "x.h5");
  const Dataset dataset = file.dataset("values");
  EXPECT_EQ(dataset.info().sizes, sizes);
  EXPECT_EQ(dataset.info().elements, count);
  EXPECT_EQ(dataset.read<T>(), values);
}

template <class T>
void round_trips() {
  for (const Extents& sizes :
       {Extents{0}, Extents{1}, Extents{7}, Extents{3, 0, 5}, Extents{2, 127, 3, 1}}) {
    round_trip<T>(sizes, Storage::contiguous);
    round_trip<T>(sizes, Storage::chunked_with_checksums);
  }
  round_trip<T>({}, Storage::contiguous);
}

TEST(Hdf5, RoundTripsEveryElementType) {
  round_trips<float>();
  round_trips<double>();
  round_trips<std::int32_t>();
  round_trips<std::int64_t>();
  round_trips<std::uint8_t>();
  round_trips<std::uint16_t>();
  round_trips<std::uint32_t>();
  round_trips<std::uint64_t>();
}

TEST(Hdf5, LargeDatasetsAreCutIntoChunks) {
  round_trip<float>({1301, 1009}, Storage::chunked_with_checksums);     // rows are cut
  round_trip<float>({2, 3, 1500007}, Storage::chunked_with_checksums);  // one row exceeds a chunk
}

TEST(Hdf5, ReadsBlocks) {
  TempDirectory folder;
  const auto values = counting<std::int32_t>(5 * 7 * 3);
  {
    File file = File::create(folder / "x.h5");
    file.write<std::int32_t>("x", {5, 7, 3}, values);
    file.close();
  }
  const File file = File::open(folder / "x.h5");
  std::vector<std::int32_t> block(2 * 3 * 1);
  file.dataset("x").read<std::int32_t>(Extents{3, 2, 2}, Extents{2, 3, 1}, block);
  std::vector<std::int32_t> expected;
  for (int i = 3; i < 5; ++i) {
    for (int j = 2; j < 5; ++j)
      expected.push_back(values[static_cast<std::size_t>((i * 7 + j) * 3 + 2)]);
  }
  EXPECT_EQ(block, expected);
  expect_error(ExitCode::internal, "outside", [&] {
    file.dataset("x").read<std::int32_t>(Extents{4, 5, 2}, Extents{2, 3, 1}, block);
  });
}

TEST(Hdf5, Attributes) {
  TempDirectory folder;
  {
    File file = File::create(folder / "x.h5");
    file.set_attribute("scale", 0.125);
    file.set_attribute("count", std::int64_t{-5000000000});
    file.set_attribute("text", "zigzag \xc3\xa9");
    file.set_attribute("empty", "");
    Dataset dataset = file.write<float>("x", {1}, std::vector<float>{1});
    dataset.set_attribute("unit", "seconds");
    file.close();
  }
  const File file = File::open(folder / "x.h5");
  EXPECT_EQ(file.float64_attribute("scale"), 0.125);
  EXPECT_EQ(file.int64_attribute("count"), -5000000000);
  EXPECT_EQ(file.float64_attribute("count"), -5e9);
  EXPECT_EQ(file.string_attribute("text"), "zigzag \xc3\xa9");
  EXPECT_EQ(file.string_attribute("empty"), "");
  EXPECT_EQ(file.dataset("x").string_attribute("unit"), "seconds");
  EXPECT_TRUE(file.has_attribute("scale"));
  EXPECT_FALSE(file.has_attribute("unit"));
  expect_error(ExitCode::data, "no attribute 'missing'", [&] { file.int64_attribute("missing"); });
  expect_error(ExitCode::data, "not an integer", [&] { file.int64_attribute("scale"); });
  expect_error(ExitCode::data, "not a string", [&] { file.string_attribute("scale"); });
  expect_error(ExitCode::data, "not a number", [&] { file.float64_attribute("text"); });
}

TEST(Hdf5, EqualContentsGiveEqualBytes) {
  TempDirectory folder;
  for (const char* name : {"a.h5", "b.h5"}) {
    if (name[0] == 'b') ::usleep(1100000);  // timestamps have a resolution of one second
    File file = File::create(folder / name);
    file.set_attribute("version", std::int64_t{1});
    file.write<float>("x", {3, 5}, counting<float>(15));
    file.close();
  }
  EXPECT_EQ(test::read_text(folder / "a.h5"), test::read_text(folder / "b.h5"));
}

TEST(Hdf5, NamesWhatIsWrongWithAFile) {
  TempDirectory folder;
  expect_error(ExitCode::io, "missing.h5", [&] { File::open(folder / "missing.h5"); });
  test::write_text(folder / "text.h5", "this is no HDF5 file");
  expect_error(ExitCode::data, "text.h5", [&] { File::open(folder / "text.h5"); });
  test::write_text(folder / "empty.h5", "");
  expect_error(ExitCode::data, "empty.h5", [&] { File::open(folder / "empty.h5"); });
  std::filesystem::create_directory(folder / "folder.h5");
  expect_error(ExitCode::io, "folder.h5", [&] { File::open(folder / "folder.h5"); });
  {
    File file = File::create(folder / "x.h5");
    file.write<float>("x", {3, 1000}, counting<float>(3000));
    file.close();
  }
  expect_error(ExitCode::io, "x.h5", [&] { File::create(folder / "x.h5"); });
  const std::string bytes = test::read_text(folder / "x.h5");
  for (const double share : {0.01, 0.1, 0.5, 0.99}) {
    test::write_text(
        folder / "cut.h5",
        bytes.substr(0, static_cast<std::size_t>(share * static_cast<double>(bytes.size()))));
    expect_error(ExitCode::data, "cut.h5", [&] { File::open(folder / "cut.h5"); });
  }
  const File file = File::open(folder / "x.h5");
  expect_error(ExitCode::data, "no dataset 'q'; the file has: x", [&] { file.dataset("q"); });
  expect_error(ExitCode::data, "expected int64", [&] { file.dataset("x", Element::int64, 2); });
  expect_error(ExitCode::data, "expected 4", [&] { file.dataset("x", Element::float32, 4); });
  expect_error(ExitCode::data, "holds float32", [&] { file.dataset("x").read<double>(); });
  expect_error(ExitCode::data, "not the name", [&] { file.dataset("../x"); });
}

/// A file made with the C API, holding one dataset "x" of 100 int32 made as `change` asks.
template <class Change>
void make_odd(const std::filesystem::path& path, const Change& change, hid_t type = H5T_STD_I32LE,
              bool write = true) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hsize_t size = 100;
  const hid_t space = H5Screate_simple(1, &size, nullptr);
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  change(list);
  const hid_t dataset = H5Dcreate2(file, "x", type, space, H5P_DEFAULT, list, H5P_DEFAULT);
  ASSERT_GE(dataset, 0);
  const std::vector<std::int64_t> values(100, 3);
  if (write) {
    ASSERT_GE(H5Dwrite(dataset, H5Tget_class(type) == H5T_INTEGER ? H5T_NATIVE_INT64 : type,
                       H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
              0);
  }
  H5Dclose(dataset);
  H5Pclose(list);
  H5Sclose(space);
  ASSERT_GE(H5Fclose(file), 0);
}

TEST(Hdf5, RefusesOddStorage) {
  TempDirectory folder;
  const auto path = folder / "odd.h5";
  const auto expect_refused = [&](const std::string& why) {
    expect_error(ExitCode::data, why, [&] { File::open(path).dataset("x"); });
  };
  const hsize_t chunk = 10;
  make_odd(path, [](hid_t list) { H5Pset_layout(list, H5D_COMPACT); });
  expect_refused("compact storage");
  make_odd(path, [&](hid_t list) { H5Pset_external(list, (folder / "raw").c_str(), 0, 400); });
  expect_refused("other files");
  make_odd(path, [&](hid_t list) {
    H5Pset_chunk(list, 1, &chunk);
    H5Pset_deflate(list, 6);
  });
  expect_refused("filter 1");
  make_odd(
      path, [](hid_t) {}, H5T_STD_I32LE, false);
  expect_refused("never written");
  make_odd(
      path, [&](hid_t list) { H5Pset_chunk(list, 1, &chunk); }, H5T_STD_I32LE, false);
  expect_refused("claims");
  make_odd(
      path, [](hid_t) {}, H5T_STD_I32BE);
  expect_refused("little-endian");
  make_odd(
      path, [](hid_t) {}, H5T_STD_I16LE);
  expect_refused("little-endian");
  make_odd(path, [&](hid_t list) { H5Pset_chunk(list, 1, &chunk); });
  EXPECT_EQ(File::open(path).dataset("x").read<std::int32_t>(), std::vector<std::int32_t>(100, 3));
}

TEST(Hdf5, RefusesLinksGroupsAndVirtualDatasets) {
  TempDirectory folder;
  make_odd(folder / "target.h5", [](hid_t) {});
  const auto path = folder / "links.h5";
  {
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external((folder / "target.h5").c_str(), "/x", file, "external", H5P_DEFAULT,
                       H5P_DEFAULT);
    H5Lcreate_soft("/group", file, "soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(H5Gcreate2(file, "group", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    const hsize_t size = 100;
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_virtual(list, space, (folder / "target.h5").c_str(), "/x", space);
    H5Dclose(H5Dcreate2(file, "virtual", H5T_STD_I32LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
    H5Pclose(list);
    H5Sclose(space);
    ASSERT_GE(H5Fclose(file), 0);
  }
  const File file = File::open(path);
  expect_error(ExitCode::data, "link", [&] { file.dataset("external"); });
  expect_error(ExitCode::data, "link", [&] { file.dataset("soft"); });
  expect_error(ExitCode::data, "not a dataset", [&] { file.dataset("group"); });
  expect_error(ExitCode::data, "virtual storage", [&] { file.dataset("virtual"); });
}

TEST(Hdf5, ReadsStringsOfVariableLength) {
  TempDirectory folder;
  make_odd(folder / "x.h5", [](hid_t) {});
  {
    const hid_t file = H5Fopen((folder / "x.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, H5T_VARIABLE);
    const hid_t id = H5Acreate2(file, "text", type, space, H5P_DEFAULT, H5P_DEFAULT);
    const char* text = "a longer text";
    ASSERT_GE(H5Awrite(id, type, &text), 0);
    H5Aclose(id);
    H5Sclose(space);
    H5Tclose(type);
    ASSERT_GE(H5Fclose(file), 0);
  }
  EXPECT_EQ(File::open(folder / "x.h5").string_attribute("text"), "a longer text");
}

TEST(Hdf5, ChecksumsCatchEveryFlipInTheData) {
  TempDirectory folder;
  const auto values = counting<float>(5000);
  {
    File file = File::create(folder / "x.h5");
    file.create_dataset("x", Element::float32, Extents{5000}, Storage::chunked_with_checksums)
        .write<float>(Extents{0}, Extents{5000}, std::span<const float>(values));
    file.close();
  }
  const std::string bytes = test::read_text(folder / "x.h5");
  const std::string needle(reinterpret_cast<const char*>(values.data()), 64);
  const std::size_t data_at = bytes.find(needle);
  ASSERT_NE(data_at, std::string::npos);
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    std::string damaged = bytes;
    damaged[data_at + random() % 20000] ^= static_cast<char>(1 << random() % 8);
    test::write_text(folder / "damaged.h5", damaged);
    expect_error(ExitCode::data, "dataset 'x'",
                 [&] { File::open(folder / "damaged.h5").dataset("x").read<float>(); });
  }
}

}  // namespace
}  // namespace longhaul::runtime::hdf5
