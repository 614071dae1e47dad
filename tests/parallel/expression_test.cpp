// How schemes are written: the grammar, arguments as they are declared, canonical text, and where
// in the text it is wrong.
#include "parallel/schemes/expression.h"

#include <gtest/gtest.h>

#include "parallel/policy.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"
#include "tests/support/expect_error.h"

namespace longhaul::parallel {
namespace {

/// A scheme with an argument of every type; `inside` takes another of its kind.
const std::vector<Argument> kDeclared{
    {.name = "servers", .type = ArgumentType::integer, .otherwise = "1"},
    {.name = "tolerance", .type = ArgumentType::decimal, .minimum = 0, .otherwise = "0.05"},
    {.name = "resend", .type = ArgumentType::boolean, .otherwise = "true"},
    {.name = "order", .type = ArgumentType::word, .choices = {"first", "last"}},
    {.name = "inside", .type = ArgumentType::ring}};

Expression conform_made_up(const Expression& given, const std::string& argument) {
  if (given.name != "made_up") throw ExpressionFault{given.at, "no scheme for " + argument};
  return conform(given, kDeclared, conform_made_up);
}

std::string canonical_text(const std::string& text) {
  return conform_made_up(parse_expression(text), "the test").text();
}

TEST(Expression, CanonicalTextHasDeclaredOrderAndNoDefaults) {
  const std::pair<const char*, const char*> cases[] = {
      {"made_up", "made_up"},
      {" made_up ( ) ", "made_up"},
      {"made_up(servers=1, tolerance=0.05, resend=true)", "made_up"},
      {"made_up(order=last,servers=7)", "made_up(servers=7, order=last)"},
      {"made_up( resend = false , tolerance = 1e-1 )", "made_up(tolerance=0.1, resend=false)"},
      {"made_up(tolerance=2)", "made_up(tolerance=2)"},
      {"made_up(inside=made_up(inside=made_up, servers=127),order=first)",
       "made_up(order=first, inside=made_up(servers=127, inside=made_up))"}};
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(canonical_text(text), expected);
    EXPECT_EQ(canonical_text(expected), expected) << "of its own text";
  }
}

TEST(Expression, ValuesAreReadAsTheyAreDeclared) {
  const Expression e = conform(
      parse_expression("made_up(servers=5, tolerance=3, resend=false, inside=made_up(servers=2))"),
      kDeclared, conform_made_up);
  EXPECT_EQ(e.integer("servers"), 5);
  EXPECT_EQ(e.decimal("tolerance"), 3.0);
  EXPECT_EQ(e.boolean("resend"), false);
  EXPECT_EQ(e.word("order", "first"), "first");
  EXPECT_EQ(e.expression("inside")->integer("servers"), 2);
  EXPECT_EQ(e.integer("absent"), std::nullopt);
  EXPECT_EQ(e.with("servers", 6).with("order", "last").text(),
            "made_up(servers=6, tolerance=3, resend=false, inside=made_up(servers=2), order=last)");
}

TEST(Expression, FaultsTellWhereTheyAre) {
  struct Case {
    const char* text;
    std::size_t at;
    const char* message;
  };
  const Case cases[] = {
      {"", 0, "expected a name, got the end"},
      {"  ", 2, "expected a name, got the end"},
      {"7up", 0, "expected a name"},
      {"made_up x", 8, "expected the end, got 'x'"},
      {"made_up(", 8, "expected an argument, got the end"},
      {"made_up(=3)", 8, "expected an argument, got '='"},
      {"made_up(servers)", 15, "expected '=', got ')'"},
      {"made_up(servers=)", 16, "expected a name, got ')'"},
      {"made_up(servers=3", 17, "expected ',' or ')', got the end"},
      {"made_up(servers=3 order=last)", 18, "expected ',' or ')', got 'o'"},
      {"made_up(servers=3))", 18, "expected the end, got ')'"},
      {"made_up(,)", 8, "expected an argument, got ','"},
      {"made_up(servers=3,)", 18, "expected an argument, got ')'"},
      {"made_up(servers=3.x)", 16, "'3.x' is no number"},
      {"made_up(servers=99999999999999999999)", 16, "is not representable in 64 bits"},
      {"made_up(servers=0)", 16, "made_up has servers=0; expected an integer of at least 1"},
      {"made_up(servers=-2)", 16, "servers=-2"},
      {"made_up(servers=1048577)", 16, "at most 1048576"},
      {"made_up(servers=1.5)", 16, "expected an integer"},
      {"made_up(servers=two)", 16, "made_up has servers=two; expected an integer"},
      {"made_up(tolerance=-0.5)", 18, "expected a number of at least 0"},
      {"made_up(tolerance=-nan)", 18, "tolerance"},
      {"made_up(resend=1)", 15, "expected true or false"},
      {"made_up(order=middle)", 14, "made_up has order=middle; expected first or last"},
      {"made_up(order=first(servers=2))", 14, "expected first or last"},
      {"made_up(order=true)", 14, "expected first or last"},
      {"made_up(inside=3)", 15, "expected a scheme"},
      {"made_up(servers=2, servers=3)", 19, "'servers' is given twice"},
      {"made_up(serverss=2)", 8,
       "made_up has no argument 'serverss'; it takes servers, tolerance, resend, order or inside; "
       "did you mean 'servers'?"},
      {"made_up(inside=made_up(inside=other))", 30, "no scheme for made_up inside"}};
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.text);
    try {
      ADD_FAILURE() << canonical_text(wrong.text);
    } catch (const ExpressionFault& fault) {
      EXPECT_EQ(fault.at, wrong.at) << fault.message;
      EXPECT_NE(fault.message.find(wrong.message), std::string::npos) << fault.message;
    }
  }
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "made_up(inside=";
  EXPECT_THROW(parse_expression(deep), ExpressionFault);
}

TEST(Expression, SchemesAreWrittenAsExpressions) {
  const std::pair<const char*, const char*> cases[] = {
      {"ring", "ring"},
      {"double_ring(backward=burst,inner=4,outer=2)",
       "double_ring(outer=2, inner=4, backward=burst)"},
      {"double_ring(backward=auto)", "double_ring"},
      {"usp(around=ring, nesting=heads_inside, heads=2)", "usp(heads=2)"},
      {"usp(around=double_ring(outer=2,backward=ring),nesting=ring_inside)",
       "usp(nesting=ring_inside, around=double_ring(outer=2, backward=ring))"}};
  for (const auto& [text, expected] : cases) EXPECT_EQ(parse_scheme(text).text(), expected);
  const std::pair<const char*, const char*> wrong[] = {
      {"rign", "scheme 'rign', character 1: unknown scheme 'rign'; expected ring, burst, "},
      {"rign", "did you mean 'ring'?"},
      {"ring(outer=2)", "scheme 'ring(outer=2)', character 6: ring takes no arguments"},
      {"ulysses(heads=2)", "ulysses takes no arguments"},
      {"double_ring(heads=2)",
       "character 13: double_ring has no argument 'heads'; it takes outer, inner or backward"},
      {"usp(backward=burst)", "usp has no argument 'backward'; it takes heads, nesting or around"},
      {"usp(nesting=beside)", "usp has nesting=beside; expected heads_inside or ring_inside"},
      {"usp(around=ulysses)",
       "character 12: unknown scheme 'ulysses' for usp around; expected ring, burst or "
       "double_ring"},
      {"usp(around=burst(outer=2))", "character 18: burst takes no arguments"},
      {"double_ring(outer=2,inner=2", "character 28: expected ',' or ')', got the end"},
      {"auto(backward=ring)", "unknown scheme 'auto'"}};
  for (const auto& [text, message] : wrong)
    test::expect_error(runtime::ExitCode::config, message, [&] { parse_scheme(text); });
}

TEST(Expression, EverySchemeIsItsOwnNameAndSignature) {
  for (const std::string& name : scheme_names()) {
    EXPECT_EQ(parse_scheme(name).text(), name);
    EXPECT_TRUE(signature(scheme_from_name(name)).starts_with(name));
  }
  EXPECT_EQ(signature(scheme_from_name("usp")),
            "usp(heads=, nesting=heads_inside|ring_inside, around=SCHEME)");
}

TEST(Expression, ResolvedTextHasTheDegreesThatTheSchemeChooses) {
  const auto text = [](const std::string& scheme, int ranks, int heads, int kv_heads) {
    return resolved({parse_scheme(scheme), ranks, heads, kv_heads}).text();
  };
  EXPECT_EQ(text("ring", 7, 4, 4), "ring");
  EXPECT_EQ(text("double_ring", 8, 4, 4), "double_ring(outer=4, inner=2)");
  EXPECT_EQ(text("double_ring", 7, 4, 4), "double_ring(outer=7, inner=1)");
  EXPECT_EQ(text("double_ring(inner=4, backward=ring)", 8, 4, 4),
            "double_ring(outer=2, inner=4, backward=ring)");
  EXPECT_EQ(text("usp", 16, 8, 2), "usp(heads=4)");
  EXPECT_EQ(text("usp(nesting=ring_inside)", 32, 24, 6), "usp(heads=2, nesting=ring_inside)");
  EXPECT_EQ(text("usp(around=double_ring)", 16, 8, 8),
            "usp(heads=4, around=double_ring(outer=2, inner=2))");
  // Alone it would be four heads; what is inside needs eight ranks, and so leaves two.
  EXPECT_EQ(text("usp(around=double_ring(outer=2, inner=4))", 16, 8, 8),
            "usp(heads=2, around=double_ring(outer=2, inner=4))");
}

TEST(Expression, SplitsAtCommasOutsideParentheses) {
  using Parts = std::vector<std::string>;
  EXPECT_EQ(
      split_outside_parentheses("5:burst,10:usp(heads=2,around=double_ring(outer=2)),12:ring"),
      (Parts{"5:burst", "10:usp(heads=2,around=double_ring(outer=2))", "12:ring"}));
  EXPECT_EQ(split_outside_parentheses(""), Parts{""});
  EXPECT_EQ(split_outside_parentheses("a,,b"), (Parts{"a", "", "b"}));
}

TEST(Policy, AnythingElseIsAnExpression) {
  const Shapes shapes{4, 4, 8, 8, runtime::DType::float32};
  EXPECT_EQ(choose_scheme("usp(heads=2,around=burst)", shapes, {}).text(),
            "usp(heads=2, around=burst)");
  test::expect_error(runtime::ExitCode::config, "unknown scheme 'atuo'",
                     [&] { choose_scheme("atuo", shapes, {}); });
}

}  // namespace
}  // namespace longhaul::parallel
