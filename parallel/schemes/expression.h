#pragma once
// How a scheme is written: NAME, or NAME(argument=value, ...), where a value is a number, true or
// false, a word, or again an expression. What arguments a scheme has, it declares in its own file.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace longhaul::parallel {

struct GivenArgument;

/// A scheme's name and the arguments that it is given. A word is an expression without arguments.
struct Expression {
  std::string name = "ring";
  std::vector<GivenArgument> arguments;
  std::size_t at = 0;  ///< where it stands in the text that it was read from

  // Not inline: g++ 12 has a false positive (maybe-uninitialized) on moves of the variant below.
  Expression();
  Expression(const char* name);  // NOLINT: a name alone is an expression
  Expression(std::string name);  // NOLINT
  Expression(const Expression&);
  Expression(Expression&&) noexcept;
  Expression& operator=(const Expression&);
  Expression& operator=(Expression&&) noexcept;
  ~Expression();

  /// "usp(heads=2, around=burst)". Of a canonical expression it is the name of what it says.
  std::string text() const;
  friend bool operator==(const Expression& a, const Expression& b) { return a.text() == b.text(); }

  // The value of an argument, of the type that it is declared with; nullopt where it is not given.
  std::optional<std::int64_t> integer(std::string_view argument) const;
  std::optional<double> decimal(std::string_view argument) const;
  std::optional<bool> boolean(std::string_view argument) const;
  std::optional<Expression> expression(std::string_view argument) const;  ///< or a word
  std::string word(std::string_view argument, const std::string& otherwise) const;

  using Value = std::variant<std::int64_t, double, bool, Expression>;
  /// The same with an argument set, behind the others where it is new.
  Expression with(std::string_view argument, Value value) const;

 private:
  const Value* find(std::string_view argument) const;
};

struct GivenArgument {
  std::string name;
  Expression::Value value;
  std::size_t at = 0, value_at = 0;
};

enum class ArgumentType : unsigned char { integer, decimal, boolean, word, ring };

/// What a scheme may be given.
struct Argument {
  const char* name;
  ArgumentType type;
  std::vector<std::string> choices = {};  ///< of words
  double minimum = 1;                     ///< of numbers
  const char* otherwise = "";             ///< the default's text; empty: chosen, see Scheme
};

/// What is wrong with an expression, and where in its text (from 0).
struct ExpressionFault {
  std::size_t at = 0;
  std::string message;
};

/// Of the text alone, whatever schemes there are. Throws ExpressionFault.
Expression parse_expression(const std::string& text);

/// With the arguments in declared order and without those that have their defaults; `ring` makes
/// the value of an argument of that type canonical. Throws ExpressionFault for an argument that is
/// not declared, not of its type or given twice.
Expression conform(
    const Expression& given, std::span<const Argument> declared,
    const std::function<Expression(const Expression& given, const std::string& argument)>& ring);

/// Parts of a text between commas that stand in no parentheses.
std::vector<std::string> split_outside_parentheses(const std::string& text);

}  // namespace longhaul::parallel
