// Every mask by name equals what the table says in words, pair by pair; wrong parameters are
// refused by name.
#include "attention/named_masks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/mask_words.h"
#include "tests/support/process.h"
#include "tests/support/random_masks.h"

namespace longhaul::attention {
namespace {

using runtime::ExitCode;
using test::Bitmap;
using test::expect_error;
using test::MaskWords;
using Offsets = std::vector<std::int64_t>;

std::int64_t below(std::int64_t end, std::mt19937& random) {
  return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
}

/// Rising from 0 to `tokens` in `parts`, some of them empty.
Offsets random_offsets(std::int64_t tokens, std::size_t parts, std::mt19937& random) {
  Offsets offsets{0, tokens};
  while (offsets.size() <= parts) offsets.push_back(below(tokens + 1, random));
  std::ranges::sort(offsets);
  return offsets;
}

using Choice = std::function<void(MaskParameters&)>;

/// All values worth trying of one input; what depends on others comes after them in `needs`.
std::vector<Choice> choices(MaskInput input, std::int64_t tokens, std::mt19937& random) {
  std::vector<Choice> all;
  const auto number = [&](std::optional<std::int64_t> MaskNumbers::*where,
                          const std::set<std::int64_t>& values) {
    for (const std::int64_t value : values)
      all.push_back([=](MaskParameters& p) { p.numbers.*where = value; });
  };
  const std::set<std::int64_t> widths{
      1, 2, 5, tokens + 1, std::int64_t{1} << 40, std::max<std::int64_t>(1, tokens)};
  const std::set<std::int64_t> lengths{0, std::min<std::int64_t>(1, tokens), tokens / 3, tokens};
  const auto arrays = [&](auto make) {
    for (const std::size_t parts : {1, 4, 9}) all.push_back(make(parts));
  };
  switch (input) {
    case MaskInput::window:
      number(&MaskNumbers::window, widths);
      break;
    case MaskInput::prefix:
      number(&MaskNumbers::prefix, lengths);
      break;
    case MaskInput::global:
      number(&MaskNumbers::global, lengths);
      break;
    case MaskInput::block:
      number(&MaskNumbers::block, widths);
      break;
    case MaskInput::documents:
      arrays([&](std::size_t parts) -> Choice {
        const Offsets offsets = random_offsets(tokens, parts, random);
        return [=](MaskParameters& p) { p.documents = offsets; };
      });
      break;
    case MaskInput::block_offsets:
      arrays([&](std::size_t parts) -> Choice {
        const Offsets offsets = random_offsets(tokens, parts, random);
        return [=](MaskParameters& p) { p.block_offsets = offsets; };
      });
      break;
    case MaskInput::prefixes:
      all.push_back([&random](MaskParameters& p) {
        p.prefixes.emplace();
        for (std::size_t d = 0; d + 1 < p.documents->size(); ++d)
          p.prefixes->push_back(below((*p.documents)[d + 1] - (*p.documents)[d] + 1, random));
      });
      break;
    case MaskInput::blocks:
      for (const std::uint32_t density : {0, 2, 9, 10}) {
        all.push_back([=, &random](MaskParameters& p) {
          const std::int64_t count = p.block_offsets
                                         ? static_cast<std::int64_t>(p.block_offsets->size()) - 1
                                         : (tokens + *p.numbers.block - 1) / *p.numbers.block;
          p.blocks = IntegerArray{{count, count}, {}};
          for (std::int64_t i = 0; i < count * count; ++i)
            p.blocks->values.push_back(random() % 10 < density ? 1 : 0);
        });
      }
      break;
    case MaskInput::slices:
      break;
  }
  return all;
}

void expect_words(const std::string& name, const MaskParameters& parameters, std::int64_t tokens) {
  const HeadMasks masks = make_mask(name, parameters, tokens);
  ASSERT_TRUE(masks.shared());
  ASSERT_EQ(masks.tokens(), tokens);
  const Mask& mask = masks.of(0);
  const MaskWords words(name, parameters, tokens);
  const Bitmap got(tokens, tokens, mask.slices());
  bool causal = true;
  std::int64_t area = 0;
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t j = 0; j < tokens; ++j) {
      const bool expected = words.sees(i, j);
      ASSERT_EQ(got.at(i, j), expected ? 1 : 0) << "query " << i << ", key " << j;
      area += expected;
      causal &= !expected || j <= i;
    }
  }
  EXPECT_EQ(mask.area(), area);
  EXPECT_EQ(mask.is_causal(), causal);
  EXPECT_TRUE(causal || !mask_rule(name).causal);
}

TEST(NamedMasks, EqualTheirWordsPairByPair) {
  std::mt19937 random(7);
  std::map<std::string, int> tried;
  for (const std::string& name : mask_names()) {
    if (name == "slices") continue;  // below
    const MaskRule& rule = mask_rule(name);
    for (const std::int64_t tokens : {0, 1, 2, 7, 23, 127}) {
      std::vector<MaskParameters> all(1);
      for (const std::vector<MaskInput>& need : rule.needs) {
        std::vector<MaskParameters> longer;
        for (const MaskInput input : need) {
          for (const Choice& choice : choices(input, tokens, random)) {
            for (MaskParameters parameters : all) {
              choice(parameters);
              longer.push_back(std::move(parameters));
            }
          }
        }
        all = std::move(longer);
      }
      for (const MaskInput input : rule.may_have) {  // all without it, and all with one or another
        const std::vector<Choice> values = choices(input, tokens, random);
        for (std::size_t i = 0, without = all.size(); i < without; ++i) {
          all.push_back(all[i]);
          values[i % values.size()](all.back());
        }
      }
      for (const MaskParameters& parameters : all) {
        const MaskNumbers& n = parameters.numbers;
        SCOPED_TRACE(runtime::concat(name, " of ", tokens, " tokens, window ",
                                     n.window.value_or(-1), ", prefix ", n.prefix.value_or(-1),
                                     ", global ", n.global.value_or(-1), ", block ",
                                     n.block.value_or(-1)));
        expect_words(name, parameters, tokens);
        if (HasFatalFailure()) return;
        ++tried[name];
      }
    }
  }
  for (const auto& [name, count] : tried) std::printf("%s: %d\n", name.c_str(), count);
  EXPECT_EQ(tried.size(), mask_names().size() - 1);
}

TEST(NamedMasks, SamplesOfEachEqualTheirWordsToo) {
  for (const std::int64_t tokens : {0, 1, 5, 7, 64, 127}) {
    const std::vector<test::MaskSample> samples = test::mask_samples(tokens, 3);
    const auto optional = static_cast<std::size_t>(std::ranges::count_if(
        mask_rules(), [](const MaskRule& rule) { return !rule.may_have.empty(); }));
    const std::size_t shared = mask_rules().size() + optional;
    EXPECT_EQ(optional, 3u);
    EXPECT_EQ(samples.size(), shared + 2);
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const auto& [name, parameters] = samples[i];
      SCOPED_TRACE(runtime::concat(name, " of ", tokens));
      const HeadMasks mask = make_mask(name, parameters, tokens);
      EXPECT_EQ(mask.tokens(), tokens);
      EXPECT_EQ(mask.shared(), i < shared);
      if (name != "slices" && mask.shared()) expect_words(name, parameters, tokens);
      if (tokens >= 64) {
        EXPECT_EQ(mask.groups().size(), mask.shared() ? 1u : 3u);
        EXPECT_GT(mask.of(0).area(), 0);
      }
    }
  }
}

TEST(NamedMasks, TheirScopesAreWhatTheyShow) {
  std::set<MaskScope> met;
  for (const auto& [name, parameters] : test::mask_samples(127)) {
    if (name == "slices") continue;
    const MaskWords words(name, parameters, 127);
    const Offsets documents{0, 25, 25, 63, 127};
    const auto document = [&](std::int64_t t) { return std::ranges::upper_bound(documents, t); };
    bool crosses = false;
    for (std::int64_t i = 0; i < 127; ++i) {
      for (std::int64_t j = 0; j < 127; ++j)
        crosses |= document(i) != document(j) && words.sees(i, j);
    }
    const MaskScope scope = mask_rule(name).scope;
    EXPECT_EQ(crosses, scope == MaskScope::sequence) << name;
    met.insert(scope);
  }
  EXPECT_EQ(met.size(), 3u);
}

/// Of documents of any lengths, what begins at any token of theirs.
TEST(NamedMasks, OfACutDocumentGoOn) {
  std::mt19937 random(3);
  for (const MaskRule& rule : mask_rules()) {
    if (rule.scope == MaskScope::sequence) continue;
    for (int trial = 0; trial < 60; ++trial) {
      MaskParameters whole;
      Offsets documents = random_offsets(40, 1 + trial % 5, random);
      documents.erase(std::unique(documents.begin(), documents.end()), documents.end());
      whole.documents = documents;
      if (rule.takes(MaskInput::prefix)) whole.numbers.prefix = below(20, random);
      if (rule.takes(MaskInput::block)) whole.numbers.block = 1 + below(9, random);
      if (trial % 2 == 1 && rule.takes(MaskInput::window))
        whole.numbers.window = 1 + below(9, random);
      const std::int64_t cut = below(21, random);  // at least a prefix is left
      const auto next = std::ranges::upper_bound(documents, cut);
      MaskParameters rest;
      rest.numbers = whole.numbers;
      rest.documents = Offsets{0};
      rest.tokens_before = cut - next[-1];
      for (auto at = next; at != documents.end(); ++at) rest.documents->push_back(*at - cut);
      SCOPED_TRACE(runtime::concat(rule.name, ", trial ", trial, ", cut at ", cut));
      const MaskWords words(rule.name, whole, 40);
      const Bitmap got(40 - cut, 40 - cut, make_mask(rule.name, rest, 40 - cut).of(0).slices());
      for (std::int64_t i = cut; i < 40; ++i) {
        for (std::int64_t j = cut; j < 40; ++j)
          ASSERT_EQ(got.at(i - cut, j - cut), words.sees(i, j)) << "query " << i << ", key " << j;
      }
    }
  }
}

TEST(NamedMasks, LowerToFewSlices) {
  const auto count = [](const char* name, const MaskParameters& p) {
    return make_mask(name, p, 1000).of(0).slices().size();
  };
  MaskParameters p;
  p.numbers.window = 10;
  EXPECT_EQ(count("full_window", p), 1u);
  EXPECT_EQ(count("causal_window", p), 1u);
  p.numbers.global = 5;
  EXPECT_EQ(count("global_window", p), 3u);
  p = {};
  p.numbers.prefix = 100;
  EXPECT_EQ(count("prefix_causal", p), 2u);
  p.numbers.block = 300;
  p.documents = Offsets{0, 1000};
  EXPECT_EQ(count("shared_question", p), 4u);  // three answers, two of which look back
  p.numbers.prefix.reset();
  EXPECT_EQ(count("block_causal_document", p), 4u);
  p = {};
  p.numbers.block = 100;
  p.blocks = IntegerArray{{10, 10}, std::vector<std::int64_t>(100, 1)};
  EXPECT_EQ(count("block_sparse", p), 1u);
  for (std::size_t m = 0; m < 10; ++m) p.blocks->values[m * 10 + 4] = 0;  // a column less
  EXPECT_EQ(count("block_sparse", p), 2u);
  p.blocks->values[54] = 1;  // one row whole again: two runs above, one, two below
  EXPECT_EQ(count("block_sparse", p), 5u);
}

TEST(NamedMasks, SlicesAndBlocksOfEachHead) {
  MaskParameters p;
  p.slices =
      IntegerArray{{3, 2, 5}, {0, 6,  0, 6,  1, 6,  12, 0, 12, 1,  //
                               0, 12, 0, 12, 0, -1, -1, 7, 99, 9,  // the second row is padding
                               0, 12, 0, 12, 0, 3,  8,  5, 5,  0}};
  const HeadMasks heads = make_mask("slices", p, 12);
  EXPECT_EQ(heads.heads(), 3);
  ASSERT_EQ(heads.groups().size(), 2u);
  EXPECT_EQ(heads.groups()[1].head_begin, 1);
  EXPECT_EQ(heads.of(0),
            Mask::from_slices(12, {{0, 6, 0, 6, -kUnbounded, 0}, {6, 12, 0, 12, -kUnbounded, 0}}));
  EXPECT_EQ(heads.of(1), Mask::full(12));
  EXPECT_EQ(heads.of(2), Mask::full(12));

  p.slices = IntegerArray{{2, 5}, {0, 6, 0, 6, 1, 6, 12, 0, 12, 1}};
  const HeadMasks shared = make_mask("slices", p, 12);
  EXPECT_TRUE(shared.shared());
  EXPECT_EQ(shared.of(0), heads.of(0));

  p = {};
  p.blocks = IntegerArray{{2, 2, 2}, {1, 0, 1, 1, 0, 1, 0, 0}};
  p.numbers.block = 4;
  const HeadMasks blocks = make_mask("block_sparse", p, 7);
  EXPECT_EQ(blocks.heads(), 2);
  EXPECT_EQ(blocks.of(0), Mask::from_slices(7, {{0, 4, 0, 4}, {4, 7, 0, 7}}));
  EXPECT_EQ(blocks.of(1), Mask::from_slices(7, {{0, 4, 4, 7}}));
  p.numbers.block.reset();
  p.block_offsets = Offsets{0, 4, 7};
  EXPECT_EQ(make_mask("block_sparse_variable", p, 7).digest(), blocks.digest());
}

TEST(NamedMasks, EqualMasksHaveEqualDigests) {
  MaskParameters p;
  p.documents = Offsets{0, 3, 3, 11};
  const auto digest = [&](const char* name) { return make_mask(name, p, 11).digest(); };
  EXPECT_EQ(digest("documents"), digest("causal_document"));
  EXPECT_EQ(digest("documents"), HeadMasks(Mask::documents(*p.documents)).digest());
  EXPECT_EQ(digest("full"), HeadMasks(Mask::full(11)).digest());
  EXPECT_EQ(digest("causal"), HeadMasks(Mask::causal(11)).digest());
  EXPECT_NE(digest("full_document"), digest("causal_document"));
  // Parameters that say the same, or the same as another mask.
  p.numbers.block = 1;
  EXPECT_EQ(digest("block_causal_document"), HeadMasks(Mask::documents(*p.documents)).digest());
  p.numbers.block = 8;
  const std::uint64_t whole = digest("block_causal_document");
  p.numbers = {};
  EXPECT_EQ(whole, digest("full_document"));
  p.numbers.window = 11;
  EXPECT_EQ(digest("causal_window"), HeadMasks(Mask::causal(11)).digest());
  EXPECT_EQ(digest("full_window"), HeadMasks(Mask::full(11)).digest());
  p.numbers.window = 10;
  EXPECT_NE(digest("causal_window"), HeadMasks(Mask::causal(11)).digest());
  p.numbers = {};
  p.numbers.prefix = 0;
  EXPECT_EQ(digest("prefix_causal"), HeadMasks(Mask::causal(11)).digest());
}

TEST(NamedMasks, ANumberCountsBeforeTheDatasetBehindIt) {
  MaskParameters p;
  p.documents = Offsets{0, 4, 11};
  p.prefixes = Offsets{9, 9, 9};  // would be refused
  p.numbers.prefix = 2;
  EXPECT_EQ(make_mask("prefix_document", p, 11).of(0).area(), 10 + 1 + 28 + 1);
  p.numbers.prefix.reset();
  expect_error(ExitCode::data, "'prefixes'", [&] { make_mask("prefix_document", p, 11); });
}

struct Wrong {
  const char* mask;
  std::function<void(MaskParameters&)> damage;
  ExitCode code;
  std::vector<std::string> parts;
};

TEST(NamedMasks, WrongParametersAreRefusedByName) {
  const auto good = [](const MaskRule& rule) {
    MaskParameters p;
    p.numbers.spelling = "--";
    if (rule.takes(MaskInput::window)) p.numbers.window = 3;
    if (rule.takes(MaskInput::prefix)) p.numbers.prefix = 2;
    if (rule.takes(MaskInput::global)) p.numbers.global = 2;
    if (rule.takes(MaskInput::block)) p.numbers.block = 4;
    p.documents = Offsets{0, 5, 12};
    p.prefixes = Offsets{1, 7};
    p.block_offsets = Offsets{0, 3, 8, 12};
    p.blocks = IntegerArray{{3, 3}, {1, 0, 0, 1, 1, 0, 0, 1, 1}};
    p.slices = IntegerArray{{2, 2, 5}, {0, 6, 0, 6, 1, 6, 12, 0, 12, 1,  //
                                        0, 6, 0, 6, 1, 6, 12, 0, 12, 1}};
    return p;
  };
  const std::vector<Wrong> cases = {
      {"full_window", [](auto& p) { p.numbers.window.reset(); }, ExitCode::config, {"--window"}},
      {"full_window",
       [](auto& p) { p.numbers.window = 0; },
       ExitCode::config,
       {"full_window: --window 0", "at least 1"}},
      {"causal_window", [](auto& p) { p.numbers.window = -5; }, ExitCode::config, {"--window -5"}},
      {"global_window",
       [](auto& p) { p.numbers.global = 13; },
       ExitCode::config,
       {"--global 13", "0 to 12"}},
      {"global_window", [](auto& p) { p.numbers.global = -1; }, ExitCode::config, {"--global -1"}},
      {"global_window", [](auto& p) { p.numbers.global.reset(); }, ExitCode::config, {"--global"}},
      {"prefix_causal",
       [](auto& p) { p.numbers.prefix = 13; },
       ExitCode::config,
       {"--prefix 13", "0 to 12"}},
      {"prefix_causal", [](auto& p) { p.numbers.prefix.reset(); }, ExitCode::config, {"--prefix"}},
      {"block_sparse", [](auto& p) { p.numbers.block = 0; }, ExitCode::config, {"--block 0"}},
      {"block_sparse", [](auto& p) { p.numbers.block.reset(); }, ExitCode::config, {"--block"}},
      {"causal",
       [](auto& p) { p.numbers.window = 3; },
       ExitCode::config,
       {"causal: --window 3", "not used"}},
      {"block_sparse_variable",
       [](auto& p) { p.numbers.block = 3; },
       ExitCode::config,
       {"--block 3", "not used"}},
      {"causal_blockwise",
       [](auto& p) {
         p.numbers.block.reset();
         p.documents.reset();
       },
       ExitCode::config,
       {"--block or dataset 'documents'"}},
      {"prefix_document",
       [](auto& p) {
         p.numbers.prefix.reset();
         p.prefixes.reset();
       },
       ExitCode::config,
       {"--prefix or dataset 'prefixes'"}},
      {"documents", [](auto& p) { p.documents.reset(); }, ExitCode::data, {"'documents'"}},
      {"full_document",
       [](auto& p) { p.documents = Offsets{}; },
       ExitCode::data,
       {"'documents', row 0"}},
      {"documents",
       [](auto& p) {
         p.documents = Offsets{2, 12};
       },
       ExitCode::data,
       {"'documents', row 0: 2"}},
      {"documents",
       [](auto& p) {
         p.documents = Offsets{0, 7, 5, 12};
       },
       ExitCode::data,
       {"'documents', row 2: 5", "row 1", "7"}},
      {"shared_question",
       [](auto& p) {
         p.documents = Offsets{0, 11};
       },
       ExitCode::data,
       {"'documents' ends at 11 in row 1", "12"}},
      {"prefix_document",
       [](auto& p) {
         p.numbers.prefix.reset();
         p.prefixes = Offsets{1, 8};
       },
       ExitCode::data,
       {"'prefixes', row 1: 8", "0 to 7"}},
      {"prefix_document",
       [](auto& p) {
         p.numbers.prefix.reset();
         p.prefixes = Offsets{-1, 3};
       },
       ExitCode::data,
       {"'prefixes', row 0: -1"}},
      {"shared_question",
       [](auto& p) {
         p.numbers.prefix.reset();
         p.prefixes = Offsets{1};
       },
       ExitCode::data,
       {"'prefixes' has 1 rows", "2"}},
      {"shared_question",
       [](auto& p) {
         p.numbers.block.reset();
         p.block_offsets = Offsets{0, 4};
       },
       ExitCode::data,
       {"'block_offsets' ends at 4"}},
      {"block_sparse_variable",
       [](auto& p) {
         p.block_offsets = Offsets{0, 9, 8, 12};
       },
       ExitCode::data,
       {"'block_offsets', row 2: 8"}},
      {"block_sparse_variable",
       [](auto& p) {
         p.block_offsets = Offsets{0, 12};
       },
       ExitCode::data,
       {"'blocks' is [3, 3]", "[1, 1]"}},
      {"block_sparse",
       [](auto& p) {
         p.numbers.block = 5;
         p.blocks->sizes = {9, 1};
       },
       ExitCode::data,
       {"'blocks' is [9, 1]", "[3, 3]"}},
      {"block_sparse",
       [](auto& p) { p.blocks->values[5] = 2; },
       ExitCode::data,
       {"'blocks', row 1, column 2: 2"}},
      {"block_sparse",
       [](auto& p) {
         p.blocks = IntegerArray{{2, 3, 3}, std::vector<std::int64_t>(18, 1)};
         p.blocks->values[13] = -1;
       },
       ExitCode::data,
       {"'blocks', head 1, row 1, column 1: -1"}},
      {"block_sparse", [](auto& p) { p.blocks.reset(); }, ExitCode::data, {"'blocks'"}},
      {"slices", [](auto& p) { p.slices.reset(); }, ExitCode::data, {"'slices'"}},
      {"slices",
       [](auto& p) {
         p.slices->sizes = {4, 5, 1};
       },
       ExitCode::data,
       {"'slices'", "5"}},
      {"slices", [](auto& p) { p.slices->sizes = {20}; }, ExitCode::data, {"'slices'", "[20]"}},
      {"slices",
       [](auto& p) { p.slices->values[19] = 4; },
       ExitCode::data,
       {"'slices', head 1, row 1: type 4"}},
      {"slices",
       [](auto& p) { p.slices->values[16] = 13; },
       ExitCode::data,
       {"'slices', head 1, row 1: queries [6, 13)"}},
      {"slices",
       [](auto& p) { p.slices->values[15] = 3; },
       ExitCode::data,
       {"'slices', head 1", "slices 0 (", "and 1 (", "overlap"}},
      {"slices",
       [](auto& p) {
         p.slices->sizes = {4, 5};
         p.slices->values = {0, 6, 0, 6, 1, 3, 3, 0, 0, 0, 9, 9, 9, 9, 9, 5, 12, 0, 12, 1};
       },
       ExitCode::data,
       {"'slices', mask slices 0 (", "and 3 (", "overlap"}},  // padding counts in row numbers
  };
  for (const Wrong& wrong : cases) {
    SCOPED_TRACE(runtime::concat(wrong.mask, ": ", wrong.parts[0]));
    MaskParameters p = good(mask_rule(wrong.mask));
    make_mask(wrong.mask, p, 12);
    wrong.damage(p);
    for (const std::string& part : wrong.parts)
      expect_error(wrong.code, part, [&] { make_mask(wrong.mask, p, 12); });
  }
  expect_error(ExitCode::config, "'document'; expected one of full, causal, full_document",
               [] { make_mask("document", {}, 12); });
  expect_error(ExitCode::config, "unknown mask ''", [] { make_mask("", {}, 12); });
}

TEST(NamedMasks, TheReadmeShowsTheTable) {
  const std::string readme =
      test::read_text(std::string(LONGHAUL_SOURCE_DIR) + "/attention/README.md");
  EXPECT_NE(readme.find(mask_reference()), std::string::npos)
      << "attention/README.md differs from mask_reference():\n"
      << mask_reference();
}

}  // namespace
}  // namespace longhaul::attention
