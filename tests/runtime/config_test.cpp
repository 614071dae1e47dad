// The engine of strict configuration, on a schema of this test's own.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include <nlohmann/json.hpp>

#include "runtime/config/draft.h"
#include "runtime/config/expand.h"
#include "runtime/config/suggest.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "tests/support/process.h"

namespace longhaul::runtime {
namespace {

struct Row : Configuration {
  std::string name;
  double rate = 0;
  std::optional<std::int64_t> size;
  std::vector<std::int64_t> numbers;
};

struct Settings : Configuration {
  struct {
    std::vector<std::string> kinds, names;
    std::vector<std::int64_t> sizes;
    ConfigRows<Row> rows;
  } lists;
  struct {
    std::int64_t count = 0;
    double rate = 0;
    bool flag = false;
    std::string text;
    DType dtype = DType::float32;
    WordOrInteger when;
    std::optional<std::int64_t> maybe;
    struct {
      std::optional<double> share;
      std::optional<bool> on;
      std::vector<double> limits;
    } inner;
  } one;
};

#define KEY(section_, name_) LONGHAUL_CONFIG_KEY(Settings, section_, name_)

const ConfigSchema& test_schema() {
  static const ConfigSchema keys(
      {{KEY(lists, kinds), .explanation = "Kinds.", .default_value = "[]",
        .choices = {"full_attention", "sliding_attention"}},
       {KEY(lists, names), .explanation = "Names.", .default_value = "[\"a\", \"b\"]"},
       {KEY(lists, sizes), .explanation = "Sizes.", .derived_default = "none", .minimum = 1,
        .maximum = 9},
       {KEY(lists, rows), .explanation = "Rows.", .derived_default = "none",
        .columns = {{LONGHAUL_CONFIG_COLUMN(Row, name), .explanation = "Name.", .is_path = true},
                    {LONGHAUL_CONFIG_COLUMN(Row, rate), .explanation = "Rate.",
                     .default_value = "0.5", .minimum = 0},
                    {LONGHAUL_CONFIG_COLUMN(Row, size), .explanation = "Size.",
                     .derived_default = "none", .minimum = 1},
                    {LONGHAUL_CONFIG_COLUMN(Row, numbers), .explanation = "Numbers.",
                     .derived_default = "none", .maximum = 9}}},
       {KEY(one, count), .explanation = "Count.", .minimum = 1, .maximum = 1 << 20},
       {KEY(one, rate), .before_it_existed = "0.25", .explanation = "Rate.",
        .default_value = "0.5"},
       {KEY(one, flag), .explanation = "Flag.", .default_value = "false"},
       {KEY(one, text), .explanation = "Text.", .default_value = "\"t\""},
       {KEY(one, dtype), .explanation = "Dtype.", .default_value = "\"float32\"",
        .choices = {"float32", "bfloat16"}},
       {KEY(one, when), .explanation = "When.", .default_value = "\"never\"",
        .choices = {"auto", "never"}, .minimum = 0},
       {KEY(one, maybe), .explanation = "Maybe.", .derived_default = "none"},
       {KEY(one.inner, share), .explanation = "Share.", .derived_default = "none", .minimum = 0,
        .maximum = 1},
       {KEY(one.inner, on), .explanation = "On.", .derived_default = "none"},
       {KEY(one.inner, limits), .explanation = "Limits.", .derived_default = "none", .minimum = 0,
        .maximum = INFINITY}},
      {"one.gone", "lists.past"});
  return keys;
}
#undef KEY

class Draft final : public ConfigDraft {
 public:
  Draft() : ConfigDraft(test_schema(), "file.toml") {}
  Settings settings;
  Configuration& configuration() override { return settings; }
};

Settings load(const std::string& text, const std::vector<std::string>& overrides = {}) {
  Draft draft;
  read_config_text(draft, text, overrides);
  draft.check();
  return draft.settings;
}

/// What is wrong, a line each, without the heading.
std::vector<std::string> problems(const std::string& text,
                                  const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> lines;
  try {
    load(text, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    std::istringstream all(error.what());
    std::string line;
    std::getline(all, line);
    while (std::getline(all, line)) lines.push_back(line);
  }
  return lines;
}

using Lines = std::vector<std::string>;
constexpr const char* kCount = "[one]\ncount = 3\n";

TEST(ConfigEngine, ListsOfStringsAndIntegersLoad) {
  const Settings settings = load(std::string(kCount) +
                                 "[lists]\nkinds = [\"full_attention\",\n"
                                 "  \"sliding_attention\", \"full_attention\"]\nsizes = [9, 1, 7]");
  EXPECT_EQ(settings.lists.kinds, (Lines{"full_attention", "sliding_attention", "full_attention"}));
  EXPECT_EQ(settings.lists.names, (Lines{"a", "b"}));
  EXPECT_EQ(settings.lists.sizes, (std::vector<std::int64_t>{9, 1, 7}));
  EXPECT_EQ(load(std::string(kCount) + "[lists]\nnames = []").lists.names, Lines{});
}

TEST(ConfigEngine, OverridesGiveListsAsToml) {
  const Settings settings =
      load(kCount, {"lists.names=[\"x\",\"y, z\"]", "lists.sizes=[2]", "lists.sizes=[3, 4]"});
  EXPECT_EQ(settings.lists.names, (Lines{"x", "y, z"}));
  EXPECT_EQ(settings.lists.sizes, (std::vector<std::int64_t>{3, 4}));
}

TEST(ConfigEngine, ListsOfTablesLoadInEverySpelling) {
  const Settings inlined = load(std::string(kCount) +
                                "[lists]\nrows = [{name = \"a$$\", rate = 2},\n"
                                "  {size = 3, name = \"b\", numbers = [4, 5]}]");
  ASSERT_EQ(inlined.lists.rows.rows.size(), 2u);
  EXPECT_EQ(inlined.lists.rows.rows[0].name, "a$");
  EXPECT_EQ(inlined.lists.rows.rows[0].rate, 2);
  EXPECT_EQ(inlined.lists.rows.rows[0].size, std::nullopt);
  EXPECT_EQ(inlined.lists.rows.rows[1].rate, 0.5);
  EXPECT_EQ(inlined.lists.rows.rows[1].size, 3);
  EXPECT_EQ(inlined.lists.rows.rows[1].numbers, (std::vector<std::int64_t>{4, 5}));
  // Written out it is one line that loads to the same.
  Settings copy = inlined;
  const std::string text = to_toml(test_schema(), copy);
  EXPECT_NE(
      text.find("\nrows = [{name = \"a$$\", rate = 2.0}, {name = \"b\", rate = 0.5, size = 3, "
                "numbers = [4, 5]}]\n"),
      std::string::npos)
      << text;
  EXPECT_NE(to_json(test_schema(), copy)
                .find("\"rows\":[{\"name\":\"a$\",\"rate\":2.0,\"size\":null,\"numbers\":[]},"),
            std::string::npos);
  const std::size_t begin = text.find("rows = ") + 7;
  const std::string row_text = text.substr(begin, text.find('\n', begin) - begin);
  for (Settings settings :
       {load(text),
        load(std::string(kCount) + "[[lists.rows]]\nname = \"a$$\"\nrate = 2.0\n[[lists.rows]]\n"
                                   "name = \"b\"\nsize = 3\nnumbers = [4, 5]\n"),
        load(kCount, {"lists.rows=[{name = \"x\"}]", "lists.rows=" + row_text})}) {
    EXPECT_EQ(to_toml(test_schema(), settings), text);
  }
  Settings overridden =
      load(text, {"lists.rows=[{name = \"x\"}]"});  // a row keeps nothing of an earlier one
  EXPECT_NE(to_toml(test_schema(), overridden).find("rows = [{name = \"x\", rate = 0.5}]\n"),
            std::string::npos);
  EXPECT_EQ(to_toml(test_schema(), copy = load(kCount)).find("rows"), std::string::npos);
  EXPECT_NE(config_reference(test_schema(), copy)
                .find("| `rows` | list of `{name = string, rate = float, size = integer, numbers = "
                      "list of integers}` | none | Rows. |"),
            std::string::npos);
}

TEST(ConfigEngine, WrongTablesAreToldAtTheirOwnPlaces) {
  EXPECT_EQ(
      problems("[one]\ncount = 3\n[lists]\nrows = [{name = 1, rate = -1}, 7,\n  {rate = 1, "
               "sise = 2},\n {name = \"a\", numbers = [1, 10], x = {y = 1}}]"),
      (Lines{"file.toml:4:17: lists.rows[0].name = 1: expected a non-empty string, got an integer",
             "file.toml:4:27: lists.rows[0].rate = -1: expected a number of at least 0",
             "file.toml:4:32: lists.rows[1] = 7: expected a list, each element a table of name, "
             "rate, size, numbers, got an integer",
             "file.toml:5:3: lists.rows[2] = {rate = 1, sise = 2}: missing key 'name': expected a "
             "non-empty string",
             "file.toml:5:21: lists.rows[2].sise = 2: unknown key; expected name, rate, size, "
             "numbers; did you mean 'size'?",
             "file.toml:6:29: lists.rows[3].numbers[1] = 10: expected at most 9",
             "file.toml:6:38: lists.rows[3].x = {y = 1}: unknown key; expected name, rate, size, "
             "numbers"}));
  EXPECT_EQ(problems(std::string(kCount) + "[lists]\nrows = {name = \"a\"}"),
            (Lines{"file.toml:4:8: lists.rows = {name = \"a\"}: expected a list, each element a "
                   "table of name, rate, size, numbers, got a table"}));
}

TEST(ConfigEngine, AWrongElementIsToldAtItsOwnPlace) {
  EXPECT_EQ(problems("[one]\ncount = 3\n[lists]\nkinds = [\"full_attention\",\n"
                     "         \"sliding_atention\", 7]\nnames = [\"\", [1, 2]]\n"
                     "sizes = [3, 0, \"four\", 10, 5]"),
            (Lines{"file.toml:5:10: lists.kinds[1] = \"sliding_atention\": expected one of "
                   "\"full_attention\", \"sliding_attention\"; did you mean "
                   "\"sliding_attention\"?",
                   "file.toml:5:30: lists.kinds[2] = 7: expected one of \"full_attention\", "
                   "\"sliding_attention\", got an integer",
                   "file.toml:6:10: lists.names[0] = \"\": expected a non-empty string",
                   "file.toml:6:14: lists.names[1] = [1, 2]: expected a non-empty string, got an "
                   "array",
                   "file.toml:7:13: lists.sizes[1] = 0: expected an integer of at least 1 and at "
                   "most 9",
                   "file.toml:7:16: lists.sizes[2] = \"four\": expected an integer of at least 1 "
                   "and at most 9, got a string",
                   "file.toml:7:24: lists.sizes[3] = 10: expected at most 9"}));
}

TEST(ConfigEngine, AListIsNoScalarAndAScalarNoList) {
  EXPECT_EQ(
      problems("[one]\ncount = [3]\n[lists]\nsizes = 3\nkinds = \"full_attention\""),
      (Lines{"file.toml:2:9: one.count = [3]: expected an integer of at least 1, got an array",
             "file.toml:4:9: lists.sizes = 3: expected a list, each element an integer of at "
             "least 1 and at most 9, got an integer",
             "file.toml:5:9: lists.kinds = \"full_attention\": expected a list, each element "
             "one of \"full_attention\", \"sliding_attention\", got a string"}));
  EXPECT_EQ(problems(kCount, {"lists.sizes=[1, 22]", "lists.names=[a, b]"}),
            (Lines{"--set lists.sizes=[1, 22]: lists.sizes[1] = 22: expected at most 9",
                   "--set lists.names=[a, b]: lists.names = \"[a, b]\": expected a list, "
                   "each element a non-empty string, got a string"}));
}

TEST(ConfigEngine, WrittenTextIsCanonicalAndLoadsAgain) {
  Settings settings = load(kCount, {"lists.names=[ \"q\\\"uote\" ,\"tab\\t\"]", "lists.sizes=[1,2]",
                                    "one.when=12", "one.maybe=-4", "one.rate=1"});
  const std::string text = to_toml(test_schema(), settings);
  EXPECT_EQ(text,
            "[lists]\nkinds = []\nnames = [\"q\\\"uote\", \"tab\\u0009\"]\nsizes = [1, 2]\n\n"
            "[one]\ncount = 3\nrate = 1.0\nflag = false\ntext = \"t\"\ndtype = \"float32\"\n"
            "when = 12\nmaybe = -4\n");
  Settings again = load(text);
  EXPECT_EQ(to_toml(test_schema(), again), text);
  const auto json = nlohmann::json::parse(to_json(test_schema(), settings));
  EXPECT_EQ(json["lists"]["names"], (Lines{"q\"uote", "tab\t"}));
  EXPECT_EQ(json["lists"]["sizes"], (std::vector<int>{1, 2}));
  EXPECT_EQ(json["one"]["when"], 12);
}

TEST(ConfigEngine, ATableInASectionHasKeysOfItsOwn) {
  const std::string header = std::string(kCount) + "[one.inner]\nshare = 1\nlimits = [0, inf]\n",
                    line = std::string(kCount) + "inner = { limits = [0.0, inf], share = 1.0 }\n";
  Settings by_header = load(header, {"one.inner.on=true"}),
           by_line = load(line, {"one.inner.on=true"});
  EXPECT_EQ(by_header.one.inner.share, 1.0);
  EXPECT_EQ(by_header.one.inner.on, true);
  EXPECT_EQ(by_header.one.inner.limits, (std::vector<double>{0, INFINITY}));
  const std::string text = to_toml(test_schema(), by_header);
  EXPECT_TRUE(text.ends_with("[one.inner]\nshare = 1.0\non = true\nlimits = [0.0, inf]\n")) << text;
  EXPECT_EQ(to_toml(test_schema(), by_line), text);
  Settings without = load(kCount);
  EXPECT_EQ(to_toml(test_schema(), without).find("[one.inner]"), std::string::npos);
  const auto json = nlohmann::json::parse(to_json(test_schema(), by_header));
  EXPECT_EQ(json["one"]["inner"]["on"], true);
  EXPECT_EQ(json["one"]["count"], 3);

  EXPECT_EQ(
      problems(std::string(kCount) + "[one.inner]\nshre = 1\nshare = 2\nlimits = [true]\n"),
      (Lines{"file.toml:4:1: unknown key 'shre' in [one.inner]; did you mean 'share'?",
             "file.toml:5:9: one.inner.share = 2: expected a number of at least 0 and at most 1",
             "file.toml:6:11: one.inner.limits[0] = true: expected a number of at least 0, got "
             "a boolean"}));
  EXPECT_EQ(
      problems(std::string(kCount) + "inner = 3\n"),
      (Lines{"file.toml:3:1: 'one.inner' is a section: expected [one.inner] and its keys, got "
             "an integer"}));
  // Its names mean nothing outside of it.
  EXPECT_EQ(problems(std::string(kCount) + "limits = [1]\n").size(), 1u);

  const auto parsed =
      parse_toml(std::string(kCount) + "[one.inner]\nshare = 1\nother = 2\n[two]\nx = 1\n");
  EXPECT_EQ(unknown_keys(test_schema(), std::get<std::vector<TomlSection>>(parsed)),
            (Lines{"one.inner.other", "two.x"}));
}

TEST(ConfigEngine, TheReferenceNamesTypes) {
  Settings any;
  const std::string reference = config_reference(test_schema(), any);
  for (const char* row :
       {"| `kinds` | list of `\"full_attention\"`, `\"sliding_attention\"` | `[]` "
        "| Kinds. |",
        "| `names` | list of strings | `[\"a\", \"b\"]` | Names. |",
        "| `sizes` | list of integers | none | Sizes. |", "| `share` | float | none | Share. |",
        "| `on` | boolean | none | On. |", "| `limits` | list of floats | none | Limits. |",
        "| `when` | `\"auto\"`, `\"never\"` or integer | `\"never\"` | When. |",
        "| `count` | integer | required | Count. |"}) {
    EXPECT_NE(reference.find(row), std::string::npos) << row << "\n" << reference;
  }
}

TEST(ConfigEngine, RetiredKeysAreKeptForTheProgramToAnswer) {
  Draft draft;
  read_config_text(draft, "[one]\ncount = 3\ngone = \"old\"", {"lists.past=[1]"});
  draft.check();
  ASSERT_NE(draft.given("one.gone"), nullptr);
  EXPECT_EQ(describe_value(*draft.given("one.gone")), "\"old\"");
  EXPECT_EQ(describe_value(*draft.given("lists.past")), "[1]");
  EXPECT_EQ(draft.given("one.when"), nullptr);
  draft.key_problem("lists.past", "[1]", "gone");
  draft.key_problem("one.gone", "\"old\"", "use another");
  try {
    draft.check();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("\nfile.toml:3:8: one.gone = \"old\": use another\n--set lists.past=[1]: "
                        "lists.past = [1]: gone"),
              std::string::npos)
        << error.what();
  }
}

TEST(ExpandPath, FollowsTheShell) {
  ::setenv("LONGHAUL_TEST_A", "a b", 1);
  ::setenv("LONGHAUL_TEST_EMPTY", "", 1);
  ::unsetenv("LONGHAUL_TEST_UNSET");
  const char* home = std::getenv("HOME");
  ASSERT_NE(home, nullptr);
  struct Case {
    std::string text, path;
  };
  for (const auto& [text, path] :
       std::initializer_list<Case>{{"", ""},
                                   {"a/b.h5", "a/b.h5"},
                                   {"~", home},
                                   {"~/x", std::string(home) + "/x"},
                                   {"x/~", "x/~"},
                                   {"x~/~y", "x~/~y"},
                                   {"./~x", "./~x"},
                                   {"$LONGHAUL_TEST_A", "a b"},
                                   {"${LONGHAUL_TEST_A}", "a b"},
                                   {"x/$LONGHAUL_TEST_A/y", "x/a b/y"},
                                   {"x${LONGHAUL_TEST_A}1$LONGHAUL_TEST_A.h5", "xa b1a b.h5"},
                                   {"$$LONGHAUL_TEST_A", "$LONGHAUL_TEST_A"},
                                   {"$$$LONGHAUL_TEST_A", "$a b"},
                                   {"cost$", "cost$"},
                                   {"$5/$ /$.", "$5/$ /$."}}) {
    const ExpandedPath result = expand_path(text);
    EXPECT_EQ(result.path, path) << text;
    EXPECT_EQ(result.wrong, "") << text;
  }
  for (const auto& [text, wrong] :
       std::initializer_list<Case>{{"$LONGHAUL_TEST_UNSET/x", "LONGHAUL_TEST_UNSET is not set"},
                                   {"x/${LONGHAUL_TEST_UNSET}", "LONGHAUL_TEST_UNSET is not set"},
                                   {"$LONGHAUL_TEST_EMPTY/x", "LONGHAUL_TEST_EMPTY is empty"},
                                   {"~user", "(~user)"},
                                   {"~user/x", "(~user)"},
                                   {"${}", "does not begin with ${NAME}"},
                                   {"${A", "does not begin with ${NAME}"},
                                   {"${A-b}", "does not begin with ${NAME}"},
                                   {"${1}", "does not begin with ${NAME}"}})
    EXPECT_NE(expand_path(text).wrong.find(wrong), std::string::npos) << text;
}

TEST(Counted, TakesTheNounThatTheNumberAsksFor) {
  EXPECT_EQ(counted(0, "rank"), "0 ranks");
  EXPECT_EQ(counted(1, "rank"), "1 rank");
  EXPECT_EQ(counted(2, "data rank"), "2 data ranks");
  EXPECT_EQ(counted(1, "pass"), "1 pass");
  EXPECT_EQ(counted(3, "pass"), "3 passes");
  EXPECT_EQ(counted(2, "entry"), "2 entries");
  EXPECT_EQ(counted(2, "key"), "2 keys");
  EXPECT_EQ(counted(2, "batch"), "2 batches");
  EXPECT_EQ(counted(1234567, "token"), "1,234,567 tokens");
  EXPECT_EQ(counted(-1000, "token"), "-1,000 tokens");
}

TEST(Suggest, EditDistance) {
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("seq_lne", "seq_len"), 1u);
  EXPECT_EQ(edit_distance("Steps", "steps"), 0u);
  const std::vector<std::string> words = {"lr", "eps", "beta1"};
  EXPECT_EQ(nearest("beta3", words).word, "beta1");
  EXPECT_TRUE(nearest("beta3", words).close);
  EXPECT_FALSE(nearest("momentum_of_inertia", words).close);
}

TEST(Config, AStoredTextTakesWhatHeldBeforeAKeyExisted) {
  const auto rate = [](const std::string& text) {
    Draft draft;
    read_stored_config(draft, text);
    draft.check();
    return draft.settings.one.rate;
  };
  EXPECT_EQ(rate("[one]\ncount = 1"), 0.25);
  EXPECT_EQ(rate("[one]\ncount = 1\nrate = 0.75"), 0.75);
  EXPECT_EQ(load("[one]\ncount = 1").one.rate, 0.5);
  EXPECT_EQ(load("[one]\ncount = 1").one.text, "t");
}

}  // namespace
}  // namespace longhaul::runtime
