// A corpus's label weights: how they are stored, checked and become rows; and a corpus that becomes
// shorter while it is read.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "runtime/io/corpus.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "runtime/io/sequences.h"
#include "tests/support/expect_error.h"
#include "tests/support/raw_sequences.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

/// A corpus of documents of these lengths whose token t is t % 251; `weight` of each token.
fs::path write_weighed(const fs::path& path, const std::vector<std::int64_t>& lengths,
                       const std::function<float(std::int64_t)>& weight) {
  CorpusWriter writer(path, 256, "bytes");
  std::int64_t token = 0;
  for (const std::int64_t length : lengths) {
    std::vector<std::int32_t> tokens;
    std::vector<float> weights;
    for (std::int64_t i = 0; i < length; ++i, ++token) {
      tokens.push_back(static_cast<std::int32_t>(token % 251));
      weights.push_back(weight(token));
    }
    // A document whose weights are all 1 need not say so, but may.
    const bool plain =
        length % 2 == 1 && std::ranges::all_of(weights, [](float w) { return w == 1; });
    writer.append(tokens, plain ? std::span<const float>() : weights);
    writer.end_document();
  }
  writer.finish();
  return path;
}

/// All weights of a corpus, 1 each where it has none.
std::vector<float> weights_of(const Corpus& corpus) {
  std::vector<float> weights(static_cast<std::size_t>(corpus.info().tokens), 1.0f);
  if (corpus.info().label_weights) corpus.read_label_weights(0, weights);
  return weights;
}

TEST(LabelWeights, AreStoredInTheSmallestTypeThatHoldsThem) {
  using Weight = std::function<float(std::int64_t)>;
  const std::vector<std::int64_t> lengths{300, 0, 1, 127, 7};
  const struct {
    Weight weight;
    std::optional<hdf5::Element> element;
  } cases[] = {
      {[](std::int64_t) { return 1.0f; }, std::nullopt},
      {[](std::int64_t t) { return t == 434 ? 0.0f : 1.0f; }, hdf5::Element::uint8},  // the last
      {[](std::int64_t t) { return static_cast<float>(t % 256); }, hdf5::Element::uint8},
      {[](std::int64_t t) { return t == 434 ? 256.0f : 1.0f; }, hdf5::Element::float32},
      {[](std::int64_t t) { return t == 300 ? 0.5f : 3.0f; }, hdf5::Element::float32},
      {[](std::int64_t t) { return t == 1 ? std::numeric_limits<float>::max() : 0.0f; },
       hdf5::Element::float32},
      {[](std::int64_t) { return 0.0f; }, hdf5::Element::uint8},
  };
  std::set<std::string> digests;
  for (const auto& [weight, element] : cases) {
    const TempDirectory folder;
    const Corpus corpus = Corpus::open(write_weighed(folder / "c.h5", lengths, weight));
    corpus.verify();
    EXPECT_EQ(corpus.info().label_weights, element);
    EXPECT_TRUE(digests.insert(corpus.digest()).second) << "weights are not in the digest";
    std::vector<float> expected;
    for (std::int64_t t = 0; t < 435; ++t) expected.push_back(weight(t));
    EXPECT_EQ(weights_of(corpus), expected);
    if (element) {
      std::vector<float> part(3);
      corpus.read_label_weights(130, part, 152);  // strided, up to the last
      EXPECT_EQ(part, (std::vector{expected[130], expected[282], expected[434]}));
      expect_error(ExitCode::internal, "label_weights 130",
                   [&] { corpus.read_label_weights(130, part, 153); });
    }
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "something was left";
  }
}

TEST(LabelWeights, OfAPlainCorpusChangeNothingOfIt) {
  const TempDirectory folder;
  const std::vector<std::int64_t> lengths{30, 7};
  write_weighed(folder / "ones.h5", lengths, [](std::int64_t) { return 1.0f; });
  CorpusWriter writer(folder / "plain.h5", 256, "bytes");
  for (const std::int64_t begin : {0, 30}) {
    std::vector<std::int32_t> tokens(begin == 0 ? 30 : 7);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(begin) + static_cast<std::int32_t>(i);
    writer.append(tokens);
    writer.end_document();
  }
  writer.finish();
  EXPECT_EQ(test::read_text(folder / "ones.h5"), test::read_text(folder / "plain.h5"));
}

TEST(LabelWeights, SpanManyBlocks) {
  const TempDirectory folder;
  const std::int64_t block = std::int64_t{1} << 20;
  const std::vector<std::int64_t> lengths{block - 3, 10, 2 * block};
  const auto weight = [](std::int64_t t) {
    return t < (1 << 20) ? 1.0f : t % 3 == 0 ? 0.0f : 0.5f;
  };
  const Corpus corpus = Corpus::open(write_weighed(folder / "c.h5", lengths, weight));
  corpus.verify();
  std::vector<float> part(2000);
  corpus.read_label_weights(block - 1000, part);
  for (std::int64_t i = 0; i < 2000; ++i)
    ASSERT_EQ(part[static_cast<std::size_t>(i)], weight(block - 1000 + i)) << i;
}

TEST(LabelWeights, ThatAreNoneAreRefusedByTheWriter) {
  const TempDirectory folder;
  for (const float bad : {-1.0f, -1e-30f, INFINITY, std::nanf("")}) {
    CorpusWriter writer(folder / "c.h5", 256, "bytes");
    writer.append(std::vector<std::int32_t>{1, 2}, std::vector{1.0f, 0.5f});
    expect_error(ExitCode::data, "the weight of token 3 is", [&] {
      writer.append(std::vector<std::int32_t>{1, 2}, std::vector{1.0f, bad});
    });
    expect_error(ExitCode::internal, "1 weights of 2 tokens", [&] {
      writer.append(std::vector<std::int32_t>{1, 2}, std::vector{1.0f});
    });
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

/// A corpus of 100 tokens in blocks of 30, written by hand, so that each part can be wrong.
struct Parts {
  std::vector<float> weights = std::vector<float>(100, 0.5f);
  std::string required = "label_weights";
  std::int64_t version = 2;
  std::function<void(hdf5::File&)> write_weights = [this](hdf5::File& file) {
    file.write<float>("label_weights", {std::ssize(weights)}, weights);
  };
  std::vector<std::uint64_t> hashes;

  Parts() { rehash(); }
  void rehash() {
    hashes.clear();
    for (std::size_t at = 0; at < weights.size(); at += 30) {
      const auto block = std::span(weights).subspan(at, std::min<std::size_t>(30, 100 - at));
      hashes.push_back(xxh3_64(std::as_bytes(block)));
    }
  }
  void write(const fs::path& path) const {
    fs::remove(path);
    const std::vector<std::uint8_t> tokens(100, 7);
    const std::vector<std::int64_t> documents{0, 100};
    std::vector<std::uint64_t> token_hashes;
    for (const std::size_t count : {30u, 30u, 30u, 10u})
      token_hashes.push_back(xxh3_64(std::as_bytes(std::span(tokens).first(count))));
    hdf5::File file = hdf5::File::create(path);
    file.set_attribute("format_version", version);
    file.set_attribute("vocabulary_size", std::int64_t{256});
    file.set_attribute("tokenizer", "bytes");
    file.set_attribute("block_tokens", std::int64_t{30});
    file.set_attribute("documents_hash", hex64(xxh3_64(std::as_bytes(std::span(documents)))));
    if (version >= 2) {
      file.set_attribute("unigram_entropy", 0.0);
      file.set_attribute("requires", required);
    }
    file.write<std::uint8_t>("tokens", {100}, tokens);
    file.write<std::int64_t>("documents", {2}, documents);
    file.write<std::uint64_t>("block_hashes", {4}, token_hashes);
    if (write_weights) write_weights(file);
    file.write<std::uint64_t>("label_weight_hashes", {std::ssize(hashes)}, hashes);
    file.close();
  }
};

TEST(LabelWeights, OfBadCorporaAreRefusedNamingTheIndex) {
  const TempDirectory folder;
  const fs::path path = folder / "bad.h5";
  const auto refused = [&](const std::string& why, const std::function<void(Parts&)>& change) {
    Parts parts;
    change(parts);
    parts.write(path);
    expect_error(ExitCode::data, "bad.h5: " + why, [&] { Corpus::open(path).verify(); });
  };
  Parts().write(path);
  Corpus::open(path).verify();  // the parts are right before each is made wrong

  for (const float bad : {std::nanf(""), -0.25f, INFINITY, -INFINITY}) {
    refused("dataset 'label_weights': index 77 is ", [bad](Parts& p) {
      p.weights[77] = bad;
      p.rehash();
    });
  }
  refused("dataset 'label_weights': indices 60 to 89 hash", [](Parts& p) { p.weights[77] = 1; });
  refused("dataset 'label_weights': indices 30 to 59 hash", [](Parts& p) { p.hashes[1] ^= 1; });
  refused("dataset 'label_weight_hashes': holds 3 hashes", [](Parts& p) { p.hashes.pop_back(); });
  refused("no dataset 'label_weights'", [](Parts& p) { p.write_weights = nullptr; });
  refused("dataset 'label_weights': attribute 'requires' does not name it",
          [](Parts& p) { p.required = ""; });
  refused("dataset 'label_weights': attribute 'requires' does not name it",
          [](Parts& p) { p.version = 1; });
  refused("attribute 'requires' names 'more'", [](Parts& p) { p.required += ",more"; });
  refused("dataset 'label_weights': holds 99 values; expected one a token, 100", [](Parts& p) {
    p.write_weights = [](hdf5::File& f) {
      f.write<float>("label_weights", {99}, std::vector<float>(99));
    };
  });
  refused("dataset 'label_weights': holds float64; expected uint8 or float32", [](Parts& p) {
    p.write_weights = [](hdf5::File& f) {
      f.write<double>("label_weights", {100}, std::vector<double>(100));
    };
  });
  refused("dataset 'label_weights': has 2 dims", [](Parts& p) {
    p.write_weights = [](hdf5::File& f) {
      f.write<float>("label_weights", {100, 1}, std::vector<float>(100));
    };
  });
  refused("dataset 'label_weights': is chunked", [](Parts& p) {
    p.write_weights = [](hdf5::File& f) {
      f.create_dataset("label_weights", hdf5::Element::float32, hdf5::Extents{100},
                       hdf5::Storage::chunked_with_checksums);
    };
  });
}

TEST(LabelWeights, AreCheckedWhenTheirBlockIsFirstRead) {
  const TempDirectory folder;
  Parts parts;
  parts.weights[95] = std::nanf("");  // in the last block
  parts.rehash();
  parts.write(folder / "bad.h5");
  const Corpus corpus = Corpus::open(folder / "bad.h5");  // as fast as ever
  std::vector<float> out(90);
  corpus.read_label_weights(0, out);
  for (int i = 0; i < 2; ++i) {  // again and again
    expect_error(ExitCode::data, "bad.h5: dataset 'label_weights': index 95 is nan",
                 [&] { corpus.read_label_weights(1, out); });
  }
  // A sequence that needs it finds it.
  Rows rows;
  expect_error(ExitCode::data, "index 95 is nan", [&] {
    Sequences(corpus, 100, 1).read(0, std::vector<runtime::Run>{{94, 1, 1}}, rows);
  });
}

TEST(LabelWeights, BecomeThoseOfTheRowsLabels) {
  std::mt19937_64 random(11);
  const std::vector<std::int64_t> lengths{3, 0, 41, 1, 1, 90, 13, 7};
  constexpr std::int64_t kTotal = 156;
  const auto weight = [](std::int64_t t) { return static_cast<float>(t % 5) / 2; };
  const TempDirectory folder;
  const Corpus corpus = Corpus::open(write_weighed(folder / "c.h5", lengths, weight));
  std::vector<std::int32_t> numbers(kTotal);  // the tokens are their own indices
  for (std::int64_t t = 0; t < kTotal; ++t)
    numbers[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t);
  for (const std::int64_t seq_len : {1, 7, 64, 127}) {
    const Sequences sequences(corpus, seq_len, 3);
    for (std::int64_t number = 0; number < 2 * sequences.per_epoch(); ++number) {
      const auto plain =
          test::packed_sequence(numbers, lengths, sequences.first_token(number), seq_len);
      for (const runtime::Run& run :
           {runtime::Run{0, seq_len, 1},
            runtime::Run{seq_len / 3, (seq_len - seq_len / 3 + 1) / 2, 2}}) {
        Rows rows;
        sequences.read(number, std::vector{run}, rows);
        ASSERT_EQ(rows.label_weights.size(), static_cast<std::size_t>(run.count));
        for (std::int64_t i = 0; i < run.count; ++i) {
          const auto row = static_cast<std::size_t>(i);
          const std::int32_t label = plain.labels.at(static_cast<std::size_t>(run[i]));
          const float expected = label < 0 ? 0 : weight(label);  // of the token to predict
          EXPECT_EQ(rows.label_weights[row], expected) << number << " " << i;
          EXPECT_EQ(rows.labels[row], label) << number << " " << i;
          EXPECT_EQ(rows.tokens[row], plain.tokens.at(static_cast<std::size_t>(run[i])));
        }
      }
    }
  }
}

/// Cuts a file while it is open; the pages that were read before stay in memory, or are dropped.
TEST(Corpus, ThatBecomesShorterIsFoundAndNamed) {
  const TempDirectory folder;
  const fs::path path = folder / "c.h5";
  const std::vector<std::int64_t> lengths{400000, 100, 600000};
  const auto weight = [](std::int64_t t) { return static_cast<float>(t % 2); };
  for (const double kept : {0.0, 0.25, 0.75, 0.999}) {
    SCOPED_TRACE(kept);
    write_weighed(path, lengths, weight);
    const auto bytes = static_cast<double>(fs::file_size(path));
    const Corpus corpus = Corpus::open(path), untouched = Corpus::open(path);
    const Sequences sequences(corpus, 1000, 1), others(untouched, 1000, 1);
    Rows rows;
    for (std::int64_t number = 0; number < sequences.per_epoch(); ++number)
      sequences.read(number, std::vector<runtime::Run>{{0, 1000, 1}},
                     rows);  // every block is checked
    fs::resize_file(path, static_cast<std::uintmax_t>(bytes * kept));
    const std::string why = "c.h5: became shorter while it was in use: it had ";
    expect_error(ExitCode::data, why, [&] { static_cast<void>(sequences.documents(0)); });
    for (const Sequences* source : {&sequences, &others}) {
      int refused = 0;
      for (std::int64_t number = 0; number < sequences.per_epoch(); ++number) {
        try {
          Rows read;
          source->read(number, std::vector<runtime::Run>{{0, 1000, 1}}, read);
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::data);
          EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
          ++refused;
        }
      }
      EXPECT_EQ(refused, sequences.per_epoch());
    }
    if (kept < 0.5) expect_error(ExitCode::data, why, [&] { corpus.verify(); });
  }
}

/// Writes into a corpus while it is open, in place.
TEST(Corpus, ThatIsWrittenIntoIsCheckedAgain) {
  const TempDirectory folder;
  const fs::path path = folder / "c.h5";
  const auto weight = [](std::int64_t t) { return static_cast<float>(t % 2); };
  std::string good;
  for (const char* dataset : {"", "tokens", "documents", "label_weights"}) {
    SCOPED_TRACE(dataset);
    write_weighed(path, {3000, 100, 5000}, weight);
    good = test::read_text(path);
    const Corpus corpus = Corpus::open(path);
    const Sequences sequences(corpus, 1000, 1);
    const auto read_all = [&] {
      Rows rows;
      for (std::int64_t number = 0; number < sequences.per_epoch(); ++number)
        sequences.read(number, std::vector<runtime::Run>{{0, 1000, 1}}, rows);
    };
    read_all();
    const auto old = fs::last_write_time(path);
    if (*dataset != 0) {
      std::size_t at = good.find("\1\2\3\4\5\6\7\x8\x9\xa\xb\xc");              // tokens
      if (std::string(dataset) == "documents") at = good.find("\x1c\x0c") - 1;  // 3100
      if (std::string(dataset) == "label_weights") at = good.find(std::string("\0\1\0\1\0\1", 6));
      ASSERT_LT(at + 7, good.size());
      std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
      file.seekp(static_cast<std::streamoff>(at + 2));
      file.put(good[at + 2] == 1 ? '\0' : '\1');
    }
    fs::last_write_time(path, old + std::chrono::seconds(1));
    if (*dataset == 0) {
      read_all();  // touched, and as it was
    } else {
      expect_error(ExitCode::data, std::string("c.h5: dataset '") + dataset + "'", read_all);
    }
  }
}

TEST(Corpus, OthersFaultsAreNotTheirs) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer ends the process in a way of its own";
#endif
  const TempDirectory folder;
  write_weighed(folder / "c.h5", {100}, [](std::int64_t) { return 1.0f; });
  const auto fault = [&] {
    const Corpus corpus = Corpus::open(folder / "c.h5");
    const std::string other = folder.file("other");
    test::write_text(other, std::string(8192, 'x'));
    const FileHandle file = FileHandle::read(other);
    const auto* data = static_cast<const char*>(
        ::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, file.descriptor(), 0));
    fs::resize_file(other, 0);
    volatile char c = data[5000];
    static_cast<void>(c);
  };
  EXPECT_EXIT(fault(), testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace longhaul::runtime
