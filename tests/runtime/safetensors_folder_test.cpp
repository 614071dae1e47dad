#include <gtest/gtest.h>

#include "runtime/io/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::safetensors {
namespace {

using test::expect_error;
using test::TempDirectory;

/// A file of these tensors, U8 and of one byte.
void write(const std::filesystem::path& path, const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) tensors.push_back({name, Element::u8, {1}});
  Writer writer(path, tensors, std::nullopt);
  while (const Entry* entry = writer.next()) {
    writer.append(std::as_bytes(std::span(entry->name).first(1)));
  }
  writer.finish();
}

std::string index_of(const std::string& weight_map) {
  return R"({"metadata": {"total_size": 1.5e3, "more": [1, {"a": null}, "\n", -0.5, true]}, "weight_map": {)" +
         weight_map + "}}";
}

TEST(SafetensorsFolder, OneFileOrThoseOfTheIndex) {
  const TempDirectory folder;
  write(folder / kWeightsName, {"b", "a"});
  {
    const Weights weights(folder.path());
    EXPECT_EQ(weights.files().size(), 1U);
    EXPECT_EQ(weights.tensors().size(), 2U);
    EXPECT_EQ(weights.tensors()[0].entry->name, "a");
    EXPECT_EQ(weights.index_text(), std::nullopt);
    EXPECT_EQ(weights.find("c").entry, nullptr);
  }
  // An index may name the single file.
  const std::string single = index_of(R"("a": "model.safetensors", "b": "model.safetensors")");
  folder.write(kIndexName, single);
  EXPECT_EQ(Weights(folder.path()).index_text(), single);

  write(folder / "2.safetensors", {"c", "a"});
  write(folder / "1.safetensors", {"d"});
  folder.write(kIndexName,
               index_of(R"("c":"2.safetensors","d":"1.safetensors","a":"2.safetensors")"));
  expect_error(ExitCode::data, "two models", [&] { Weights(folder.path()); });
  std::filesystem::remove(folder / kWeightsName);
  const Weights weights(folder.path());
  ASSERT_EQ(weights.files().size(), 2U);
  EXPECT_TRUE(weights.absent().empty());
  EXPECT_TRUE(weights.unlisted().empty());
  for (const char* name : {"a", "c", "d"}) {
    const Weights::Place place = weights.find(name);
    ASSERT_NE(place.entry, nullptr) << name;
    std::byte byte{};
    place.file->read(*place.entry, 0, std::span(&byte, 1));
    EXPECT_EQ(static_cast<char>(byte), name[0]);
    EXPECT_EQ(place.file, &weights.files()[name[0] == 'd' ? 0 : 1]);
  }
}

TEST(SafetensorsFolder, WhatIndexAndFilesDifferInIsTold) {
  const TempDirectory folder;
  write(folder / "1.safetensors", {"a", "b"});
  write(folder / "2.safetensors", {"c", "d"});
  folder.write(kIndexName,
               index_of(R"("a": "1.safetensors", "c": "1.safetensors", "d": "2.safetensors",
                                       "head": "2.safetensors")"));
  const Weights weights(folder.path());
  EXPECT_EQ(std::vector(weights.absent().begin(), weights.absent().end()),
            (std::vector<std::string>{"c", "head"}));
  EXPECT_EQ(std::vector(weights.unlisted().begin(), weights.unlisted().end()),
            (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(weights.find("head").entry, nullptr);
  EXPECT_EQ(weights.find("c").file, &weights.files()[1]);

  write(folder / "3.safetensors", {"d"});
  folder.write(kIndexName, index_of(R"("d": "3.safetensors", "c": "2.safetensors")"));
  expect_error(ExitCode::data, "tensor 'd' lies in ", [&] { Weights(folder.path()); });
}

TEST(SafetensorsFolder, FoldersWithoutAreRefused) {
  const TempDirectory folder;
  expect_error(ExitCode::io, "is no folder", [&] { Weights(folder / "nowhere"); });
  expect_error(ExitCode::data, "holds neither model.safetensors", [&] { Weights(folder.path()); });
  folder.write("pytorch_model.bin", "");
  expect_error(ExitCode::data, "save the model again", [&] { Weights(folder.path()); });
  folder.write(kIndexName, index_of(R"("a": "gone.safetensors")"));
  expect_error(ExitCode::data, "'gone.safetensors', which is not in the folder",
               [&] { Weights(folder.path()); });
}

TEST(SafetensorsFolder, HostileIndexesAreRefused) {
  const TempDirectory folder;
  write(folder / "a.safetensors", {"a"});
  const auto refused = [&](const std::string& part, const std::string& text) {
    folder.write(kIndexName, text);
    expect_error(ExitCode::data, part, [&] { Weights(folder.path()); });
  };
  const std::string map = R"("weight_map": {"a": "a.safetensors"})";
  refused("expected '{'; it ends", "");
  refused("no metadata", "{" + map + "}");
  refused("an object as metadata", R"({"metadata": null, )" + map + "}");
  refused("no weight_map", R"({"metadata": {}})");
  refused("names no tensor", index_of(""));
  refused("expected nothing more", index_of(R"("a": "a.safetensors")") + "}");
  refused("tensor 'a' twice", index_of(R"("a": "a.safetensors", "a": "a.safetensors")"));
  refused("weight_map is there twice", R"({"metadata": {}, )" + map + ", " + map + "}");
  refused("metadata is there twice", R"({"metadata": {}, "metadata": {}, )" + map + "}");
  refused("expected a string; found '7'", index_of(R"("a": 7)"));
  for (const char* name : {"../a.safetensors", "/a.safetensors", "a.bin", "", "b/a.safetensors",
                           "a.safetensors\\u0000.safetensors", ".."}) {
    refused("of the same folder", index_of(concat("\"a\": \"", name, '"')));
  }
  refused("nested deeper than 64", R"({"metadata": {"a": )" + std::string(1 << 20, '['));
  refused("nested deeper than 64",
          R"({"x": )" + std::string(100, '[') + std::string(100, ']') + "}");
  for (const char* value :
       {"01", "1.", ".5", "-", "1e", "+1", "nul", "NaN", "[1,]", "{\"a\":1,}", "[1 2]", "tru"}) {
    SCOPED_TRACE(value);
    refused("expected", concat(R"({"metadata": {"a": )", value, "}, ", map, "}"));
  }
  std::filesystem::resize_file(folder / kIndexName, (std::uintmax_t{16} << 20) + 1);
  expect_error(ExitCode::data, "at most 16777216 are read", [&] { Weights(folder.path()); });
}

std::vector<std::vector<std::string>> dealt(std::vector<std::int64_t> sizes, std::int64_t most) {
  std::vector<TensorInfo> tensors;
  for (const std::int64_t size : sizes) {
    tensors.push_back(
        {std::string(1, static_cast<char>('a' + tensors.size())), Element::bf16, {size}});
  }
  std::vector<std::vector<std::string>> names;
  for (const Shard& shard : deal_to_shards(tensors, most)) {
    for (auto& file = names.emplace_back(); const TensorInfo& tensor : shard.tensors)
      file.push_back(tensor.name);
  }
  return names;
}

TEST(SafetensorsFolder, ShardsAreGreedyInTheOrderGiven) {
  using Names = std::vector<std::vector<std::string>>;
  EXPECT_EQ(dealt({6, 6, 2, 6, 2, 2}, 20), (Names{{"a"}, {"b", "c"}, {"d", "e", "f"}}));
  EXPECT_EQ(dealt({6, 6, 2, 6, 2, 2}, 48), (Names{{"a", "b", "c", "d", "e", "f"}}));
  EXPECT_EQ(dealt({6, 6, 2, 6, 2, 2}, 47), (Names{{"a", "b", "c", "d", "e"}, {"f"}}));
  // A tensor above the limit is a file at once; the open one goes on behind it.
  EXPECT_EQ(dealt({2, 11, 2, 12, 10, 1}, 20), (Names{{"b"}, {"d"}, {"a", "c"}, {"e"}, {"f"}}));
  EXPECT_EQ(dealt({10}, 20), (Names{{"a"}}));
  EXPECT_EQ(dealt({11}, 20), (Names{{"a"}}));
  EXPECT_EQ(dealt({0, 0, 10, 0}, 20), (Names{{"a", "b", "c", "d"}}));
  EXPECT_EQ(dealt({}, 20), (Names{{}}));
}

TEST(SafetensorsFolder, ShardsAndIndexAreNamedAsTransformersDoes) {
  const std::vector<TensorInfo> tensors{{"model.b", Element::f32, {3, 5}},
                                        {"model.a", Element::bf16, {7}},
                                        {"é\"\x7f", Element::f16, {}}};
  EXPECT_EQ(deal_to_shards(tensors)[0].file, "model.safetensors");
  const std::vector<Shard> shards = deal_to_shards(tensors, 60);
  ASSERT_EQ(shards.size(), 2U);
  EXPECT_EQ(shards[0].file, "model-00001-of-00002.safetensors");
  EXPECT_EQ(shards[1].file, "model-00002-of-00002.safetensors");
  EXPECT_EQ(index_text(shards), R"({
  "metadata": {
    "total_parameters": 23,
    "total_size": 76
  },
  "weight_map": {
    "model.a": "model-00002-of-00002.safetensors",
    "model.b": "model-00001-of-00002.safetensors",
    "\u00e9\"\u007f": "model-00002-of-00002.safetensors"
  }
}
)");
}

}  // namespace
}  // namespace longhaul::runtime::safetensors
