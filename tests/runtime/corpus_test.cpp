#include "runtime/io/corpus.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "runtime/io/hash.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

TEST(Hash, KnownAnswers) {  // of xxHash's own sanity check for empty input
  EXPECT_EQ(hex64(xxh3_64({})), "2d06800538d394c2");
  EXPECT_EQ(xxh3_128(""), "99aa06d3014798d86001c324468d497f");
  Digest digest;
  digest.update("ab");
  digest.update("c");
  EXPECT_EQ(digest.hex(), xxh3_128("abc"));
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary,
                                        unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (auto& token : tokens) {
    token = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocabulary));
  }
  return tokens;
}

void write_corpus(const fs::path& path, const std::vector<std::vector<std::int32_t>>& documents,
                  std::int64_t vocabulary) {
  CorpusWriter writer(path, vocabulary, "bytes");
  for (const auto& document : documents) {
    const std::span<const std::int32_t> tokens(document);
    writer.append(tokens.first(tokens.size() / 2));  // in two pieces
    writer.append(tokens.subspan(tokens.size() / 2));
    writer.end_document();
  }
  writer.finish();
}

TEST(Corpus, RoundTripsEveryTokenType) {
  for (const auto& [vocabulary, element] : {std::pair{std::int64_t{256}, hdf5::Element::uint8},
                                            {257, hdf5::Element::uint16},
                                            {65536, hdf5::Element::uint16},
                                            {65537, hdf5::Element::uint32},
                                            {kMaxVocabulary, hdf5::Element::uint32}}) {
    TempDirectory folder;
    std::vector<std::vector<std::int32_t>> documents;
    std::vector<std::int32_t> all;
    std::vector<std::int64_t> offsets{0};
    for (const std::int64_t length : {0, 1, 7, 0, 0, 127, 1000, 0}) {
      documents.push_back(random_tokens(length, vocabulary, static_cast<unsigned>(length)));
      all.insert(all.end(), documents.back().begin(), documents.back().end());
      offsets.push_back(std::ssize(all));
    }
    write_corpus(folder / "c.h5", documents, vocabulary);
    const Corpus corpus = Corpus::open(folder / "c.h5");
    EXPECT_EQ(corpus.info().tokens, 1135);
    EXPECT_EQ(corpus.info().documents, 8);
    EXPECT_EQ(corpus.info().vocabulary_size, vocabulary);
    EXPECT_EQ(corpus.info().tokenizer, "bytes");
    EXPECT_EQ(corpus.info().token_element, element);
    EXPECT_EQ(std::vector(corpus.documents().begin(), corpus.documents().end()), offsets);
    std::vector<std::int32_t> read(1135), part(3);
    corpus.read(0, read);
    EXPECT_EQ(read, all);
    corpus.read(6, part);
    EXPECT_EQ(part, std::vector(all.begin() + 6, all.begin() + 9));
    corpus.read(1135, {});
    corpus.read(130, part, 502);  // strided, up to the last token
    EXPECT_EQ(part, (std::vector{all[130], all[632], all[1134]}));
    expect_error(ExitCode::internal, "tokens 130", [&] { corpus.read(130, part, 503); });
    expect_error(ExitCode::internal, "tokens 1133", [&] { corpus.read(1133, part); });
    corpus.verify();
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "something was left";
  }
}

TEST(Corpus, ManyBlocks) {
  TempDirectory folder;
  const std::vector<std::int32_t> all = random_tokens((1 << 21) + 12345, 700, 3);
  write_corpus(folder / "c.h5", {all}, 700);
  const Corpus corpus = Corpus::open(folder / "c.h5");
  std::vector<std::int32_t> read(5000);
  corpus.read((1 << 20) - 2500, read);  // over a block border
  EXPECT_TRUE(std::equal(read.begin(), read.end(), all.begin() + (1 << 20) - 2500));
  corpus.verify();
}

TEST(Corpus, EmptyCorpora) {
  TempDirectory folder;
  write_corpus(folder / "none.h5", {}, 256);
  write_corpus(folder / "empty.h5", {{}, {}}, 256);
  EXPECT_EQ(Corpus::open(folder / "none.h5").info().documents, 0);
  EXPECT_EQ(Corpus::open(folder / "empty.h5").info().documents, 2);
  EXPECT_EQ(Corpus::open(folder / "empty.h5").info().tokens, 0);
  EXPECT_EQ(Corpus::open(folder / "empty.h5").info().unigram_entropy, 0);
  EXPECT_EQ(Corpus::open(folder / "empty.h5").measure_unigram_entropy(), 0);
}

TEST(Corpus, UnigramEntropyInNats) {
  TempDirectory folder;
  write_corpus(folder / "c.h5", {{0, 0, 1}, {2, 2, 2, 2, 255}}, 256);  // 2, 1, 4, 1 of 8
  const double expected = 0.25 * std::log(4) + 2 * 0.125 * std::log(8) + 0.5 * std::log(2);
  EXPECT_NEAR(*Corpus::open(folder / "c.h5").info().unigram_entropy, expected, 1e-14);
  EXPECT_NEAR(Corpus::open(folder / "c.h5").measure_unigram_entropy(), expected, 1e-14);
  write_corpus(folder / "s.h5", {{0, 0, 1}, {2, 2, 2, 2, 90000000}}, 100000000);  // sparse counts
  EXPECT_NEAR(*Corpus::open(folder / "s.h5").info().unigram_entropy, expected, 1e-14);
  EXPECT_NEAR(Corpus::open(folder / "s.h5").measure_unigram_entropy(), expected, 1e-14);
}

TEST(Corpus, DigestTellsCorporaApart) {
  TempDirectory folder;
  const auto digest = [&](const std::vector<std::vector<std::int32_t>>& documents,
                          std::int64_t vocabulary) {
    write_corpus(folder / "c.h5", documents, vocabulary);
    return Corpus::open(folder / "c.h5").digest();
  };
  const std::string base = digest({{1, 2, 3}, {4}}, 256);
  EXPECT_EQ(base, digest({{1, 2, 3}, {4}}, 256));
  EXPECT_NE(base, digest({{1, 2, 3}, {5}}, 256));
  EXPECT_NE(base, digest({{1, 2}, {3, 4}}, 256));
  EXPECT_NE(base, digest({{1, 2, 3}, {4}}, 255));
}

TEST(CorpusWriter, LeavesNothingWithoutFinish) {
  TempDirectory folder;
  {
    CorpusWriter writer(folder / "c.h5", 256, "bytes");
    writer.append(std::vector<std::int32_t>{1, 2});
    writer.end_document();
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  {
    CorpusWriter writer(folder / "c.h5", 10, "bytes");
    expect_error(ExitCode::data, "token 1 is 10", [&] {
      writer.append(std::vector<std::int32_t>{9, 10});
    });
    expect_error(ExitCode::data, "is -1", [&] { writer.append(std::vector<std::int32_t>{-1}); });
  }
  {
    CorpusWriter writer(folder / "c.h5", 10, "bytes");
    writer.append(std::vector<std::int32_t>{9});
    expect_error(ExitCode::internal, "not ended", [&] { writer.finish(); });
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  expect_error(ExitCode::io, "nowhere",
               [&] { CorpusWriter(folder / "nowhere/c.h5", 256, "bytes"); });
}

/// A corpus written by hand, so that each part can be wrong.
struct Parts {
  std::vector<std::uint8_t> tokens = std::vector<std::uint8_t>(100, 7);
  std::vector<std::int64_t> documents{0, 10, 10, 60, 100};
  std::int64_t version = 2, vocabulary = 256, block_tokens = 30;
  double entropy = 0;  // all tokens are one
  std::string required;
  std::function<void(hdf5::File&)> write_tokens, write_documents;
  std::vector<std::uint64_t> hashes;
  std::string documents_hash;
  std::string skip_attribute;

  Parts() { rehash(); }
  void rehash() {
    hashes.clear();
    for (std::size_t at = 0; at < tokens.size(); at += 30) {
      const std::size_t count = std::min<std::size_t>(30, tokens.size() - at);
      hashes.push_back(xxh3_64(std::as_bytes(std::span(tokens).subspan(at, count))));
    }
    documents_hash = hex64(xxh3_64(std::as_bytes(std::span(documents))));
  }
  void write(const fs::path& path) const {
    fs::remove(path);
    hdf5::File file = hdf5::File::create(path);
    const auto attribute = [&](const std::string& name, const auto& value) {
      if (name != skip_attribute) file.set_attribute(name, value);
    };
    attribute("format_version", version);
    attribute("vocabulary_size", vocabulary);
    attribute("tokenizer", std::string("bytes"));
    attribute("block_tokens", block_tokens);
    attribute("documents_hash", documents_hash);
    if (version >= 2) {
      attribute("unigram_entropy", entropy);
      attribute("requires", required);
    }
    if (write_tokens) {
      write_tokens(file);
    } else {
      file.write<std::uint8_t>("tokens", {std::ssize(tokens)}, tokens);
    }
    if (write_documents) {
      write_documents(file);
    } else {
      file.write<std::int64_t>("documents", {std::ssize(documents)}, documents);
    }
    file.write<std::uint64_t>("block_hashes", {std::ssize(hashes)}, hashes);
    file.close();
  }
};

TEST(Corpus, RefusesBadCorporaNamingTheIndex) {
  TempDirectory folder;
  const fs::path path = folder / "bad.h5";
  const auto refused = [&](const std::string& why, const std::function<void(Parts&)>& change) {
    Parts parts;
    change(parts);
    parts.write(path);
    expect_error(ExitCode::data, why, [&] { Corpus::open(path).verify(); });
    expect_error(ExitCode::data, "bad.h5", [&] { Corpus::open(path).verify(); });
  };
  Parts().write(path);
  Corpus::open(path).verify();  // the parts are right before each is made wrong

  refused("'documents': index 3 is 5; less than index 2, which is 10", [](Parts& p) {
    p.documents[3] = 5;
    p.rehash();
  });
  refused("'documents': index 0 is 1; expected 0", [](Parts& p) {
    p.documents[0] = 1;
    p.rehash();
  });
  refused("'documents': index 4 is 99; expected the token count, 100", [](Parts& p) {
    p.documents[4] = 99;
    p.rehash();
  });
  refused("'documents': index 4 is 101", [](Parts& p) {
    p.documents[4] = 101;
    p.rehash();
  });
  refused("'documents': index 1 is -1", [](Parts& p) { p.documents[1] = -1; });
  refused("'documents': indices 0 to 4 hash", [](Parts& p) { p.documents[1] = 9; });
  refused("'documents': is empty", [](Parts& p) { p.documents.clear(); });
  refused("'tokens': index 42 is 200, outside the vocabulary of 200", [](Parts& p) {
    p.vocabulary = 200;
    p.tokens[42] = 200;
    p.rehash();
  });
  refused("'tokens': indices 90 to 99 hash", [](Parts& p) { p.tokens[99] = 8; });
  refused("'tokens': indices 30 to 59 hash", [](Parts& p) { p.hashes[1] ^= 1; });
  refused("'block_hashes': holds 3 hashes", [](Parts& p) { p.hashes.pop_back(); });
  refused("'block_hashes': holds 4 hashes", [](Parts& p) { p.block_tokens = 10; });
  refused("'block_tokens' is 0", [](Parts& p) { p.block_tokens = 0; });
  refused("'vocabulary_size' is 0", [](Parts& p) { p.vocabulary = 0; });
  refused("'vocabulary_size' is -5", [](Parts& p) { p.vocabulary = -5; });
  refused("'vocabulary_size' is 2147483649",
          [](Parts& p) { p.vocabulary = (std::int64_t{1} << 31) + 1; });
  refused("'format_version' is 3", [](Parts& p) { p.version = 3; });
  refused("'format_version' is 0", [](Parts& p) { p.version = 0; });
  refused("'requires' names 'packed_bits'", [](Parts& p) { p.required = "packed_bits,more"; });
  refused("'unigram_entropy' is -0.5", [](Parts& p) { p.entropy = -0.5; });
  refused("'unigram_entropy' is 5.6", [](Parts& p) { p.entropy = 5.6; });  // above ln 256
  refused("'unigram_entropy' is nan", [](Parts& p) { p.entropy = std::nan(""); });
  refused("'unigram_entropy' is 0.25 nats; the tokens have 0", [](Parts& p) { p.entropy = 0.25; });
  for (const char* name : {"format_version", "vocabulary_size", "tokenizer", "block_tokens",
                           "documents_hash", "unigram_entropy", "requires"}) {
    refused(std::string("no attribute '") + name + "'", [&](Parts& p) { p.skip_attribute = name; });
  }
  refused("no dataset 'tokens'", [](Parts& p) { p.write_tokens = [](hdf5::File&) {}; });
  refused("no dataset 'documents'", [](Parts& p) { p.write_documents = [](hdf5::File&) {}; });
  refused("'tokens': holds float32; expected uint8, uint16 or uint32", [](Parts& p) {
    p.write_tokens = [](hdf5::File& f) {
      f.write<float>("tokens", {100}, std::vector<float>(100));
    };
  });
  refused("'tokens': holds int64", [](Parts& p) {
    p.write_tokens = [](hdf5::File& f) {
      f.write<std::int64_t>("tokens", {100}, std::vector<std::int64_t>(100));
    };
  });
  refused("'tokens': has 2 dims", [](Parts& p) {
    p.write_tokens = [](hdf5::File& f) {
      f.write<std::uint8_t>("tokens", {10, 10}, std::vector<std::uint8_t>(100));
    };
  });
  refused("'documents': holds int32; expected int64", [](Parts& p) {
    p.write_documents = [](hdf5::File& f) {
      f.write<std::int32_t>("documents", {2}, std::vector<std::int32_t>{0, 100});
    };
  });
  refused("'documents': has 2 dims", [](Parts& p) {
    p.write_documents = [](hdf5::File& f) {
      f.write<std::int64_t>("documents", {1, 2}, std::vector<std::int64_t>{0, 100});
    };
  });
  refused("is chunked", [](Parts& p) {
    p.write_tokens = [](hdf5::File& f) {
      f.create_dataset("tokens", hdf5::Element::uint8, hdf5::Extents{100},
                       hdf5::Storage::chunked_with_checksums);
    };
  });
}

TEST(Corpus, OfVersionOneGetsItsEntropyOnRequestAndKeepsItsDigest) {
  TempDirectory folder;
  const fs::path path = folder / "old.h5";
  Parts parts;
  parts.version = 1;
  for (std::size_t i = 0; i < 50; ++i) parts.tokens[i] = 200;
  parts.rehash();
  parts.write(path);
  const Corpus old = Corpus::open(path);  // stays open, as a run that reads it would have it
  EXPECT_EQ(old.info().format_version, 1);
  EXPECT_FALSE(old.info().unigram_entropy);
  old.verify();
  add_unigram_entropy(path);
  const Corpus now = Corpus::open(path);
  now.verify();
  EXPECT_EQ(now.info().format_version, 2);
  EXPECT_NEAR(now.info().unigram_entropy.value_or(-1), std::log(2), 1e-14);
  EXPECT_EQ(now.digest(), old.digest());
  EXPECT_EQ(now.info().block_tokens, 30);  // not the writer's own
  EXPECT_TRUE(std::ranges::equal(now.documents(), old.documents()));
  std::vector<std::int32_t> before(100), after(100);
  old.read(0, before);
  now.read(0, after);
  EXPECT_EQ(before, after);
  const auto written = fs::last_write_time(path);
  add_unigram_entropy(path);  // has it
  EXPECT_EQ(fs::last_write_time(path), written);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "something was left";
}

TEST(Corpus, ThatIsDamagedStaysAsItWasWhenItsEntropyIsAsked) {
  TempDirectory folder;
  Parts parts;
  parts.version = 1;
  parts.tokens[95] = 9;  // against its hash
  parts.write(folder / "old.h5");
  const std::string bytes = test::read_text(folder / "old.h5");
  expect_error(ExitCode::data, "indices 90 to 99", [&] { add_unigram_entropy(folder / "old.h5"); });
  EXPECT_EQ(test::read_text(folder / "old.h5"), bytes);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "something was left";
}

TEST(Corpus, TokensAreCheckedWhenTheirBlockIsFirstRead) {
  TempDirectory folder;
  Parts parts;
  parts.tokens[95] = 9;  // in the last block, against its hash
  parts.write(folder / "bad.h5");
  const Corpus corpus = Corpus::open(folder / "bad.h5");
  std::vector<std::int32_t> out(90);
  corpus.read(0, out);
  expect_error(ExitCode::data, "indices 90 to 99", [&] { corpus.read(1, out); });
  expect_error(ExitCode::data, "indices 90 to 99", [&] { corpus.read(1, out); });  // again
}

TEST(Corpus, RefusesTruncation) {
  TempDirectory folder;
  write_corpus(folder / "c.h5", {random_tokens(10007, 256, 1)}, 256);
  const std::string bytes = test::read_text(folder / "c.h5");
  for (const std::size_t size :
       {bytes.size() - 1, bytes.size() / 2, std::size_t{600}, std::size_t{48}, std::size_t{3}}) {
    test::write_text(folder / "cut.h5", bytes.substr(0, size));
    expect_error(ExitCode::data, "cut.h5", [&] { Corpus::open(folder / "cut.h5").verify(); });
  }
  test::write_text(folder / "cut.h5", bytes.substr(0, bytes.size() - 1));
  expect_error(ExitCode::data, concat("the file ends at byte ", bytes.size() - 1),
               [&] { Corpus::open(folder / "cut.h5"); });
}

TEST(Corpus, EveryFlippedBitOfItsDataIsFound) {
  TempDirectory folder;
  const auto tokens = random_tokens(5003, 256, 1);
  write_corpus(folder / "c.h5", {tokens, {}, tokens}, 256);
  const std::string bytes = test::read_text(folder / "c.h5");
  const Corpus good = Corpus::open(folder / "c.h5");
  std::vector<std::int32_t> expected(10006);
  good.read(0, expected);
  std::mt19937 random(5);
  int refused = 0;
  for (int i = 0; i < 200; ++i) {
    std::string damaged = bytes;
    damaged[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    test::write_text(folder / "damaged.h5", damaged);
    try {  // a flip in a gap between objects changes nothing that a reader sees
      const Corpus corpus = Corpus::open(folder / "damaged.h5");
      corpus.verify();
      EXPECT_EQ(corpus.digest(), good.digest());
      std::vector<std::int32_t> read(10006);
      corpus.read(0, read);
      EXPECT_EQ(read, expected);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace longhaul::runtime
