#include "parallel/schemes/expression.h"

#include <algorithm>
#include <charconv>

#include "runtime/config/suggest.h"
#include "runtime/config/toml_document.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;
using Value = Expression::Value;

std::string value_text(const Value& value) {
  struct Text {
    std::string operator()(std::int64_t v) const { return concat(v); }
    std::string operator()(double v) const { return runtime::toml_number(v); }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(const Expression& v) const { return v.text(); }
  };
  return std::visit(Text{}, value);
}

/// "a, b or c".
std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

constexpr int kDeepest = 16;  // expressions inside each other
constexpr std::int64_t kLargest = 1 << 20;

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
bool is_number(char c) { return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.'; }

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Expression whole() {
    Expression expression = parse();
    if (next() != '\0') wrong(at_, concat("expected the end, got '", text_.substr(at_), "'"));
    return expression;
  }

 private:
  [[noreturn]] static void wrong(std::size_t at, std::string message) {
    throw ExpressionFault{at, std::move(message)};
  }
  /// The next character that is no space; '\0' at the end.
  char next() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  std::string shown() { return next() == '\0' ? "the end" : concat("'", text_[at_], "'"); }
  void take(char expected) {
    if (next() != expected) wrong(at_, concat("expected '", expected, "', got ", shown()));
    ++at_;
  }
  std::string take_word(const char* what) {
    next();
    const std::size_t begin = at_;
    while (at_ < text_.size() && is_word(text_[at_])) ++at_;
    if (begin == at_ || is_number(text_[begin]))
      wrong(begin, concat("expected ", what, begin == at_ ? concat(", got ", shown()) : ""));
    return text_.substr(begin, at_ - begin);
  }

  Expression parse() {
    next();
    Expression expression;
    expression.at = at_;
    expression.name = take_word("a name");
    if (next() != '(') return expression;
    if (++depth_ > kDeepest) wrong(at_, concat("more than ", kDeepest, " inside each other"));
    ++at_;
    while (next() != ')') {
      if (!expression.arguments.empty()) take(',');
      next();
      GivenArgument argument;
      argument.at = at_;
      argument.name = take_word("an argument");
      take('=');
      next();
      argument.value_at = at_;
      argument.value = value();
      expression.arguments.push_back(std::move(argument));
      if (next() != ')' && next() != ',') wrong(at_, concat("expected ',' or ')', got ", shown()));
    }
    ++at_;
    --depth_;
    return expression;
  }

  Value value() {
    if (is_number(next())) return number();
    Expression expression = parse();
    if (expression.arguments.empty() && expression.name == "true") return true;
    if (expression.arguments.empty() && expression.name == "false") return false;
    return expression;
  }

  Value number() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (is_word(text_[at_]) || is_number(text_[at_]))) ++at_;
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    std::int64_t integer = 0;
    const auto whole = std::from_chars(first, last, integer);
    if (whole.ec == std::errc() && whole.ptr == last) return integer;
    double decimal = 0;
    const auto real = std::from_chars(first, last, decimal);
    if ((whole.ec == std::errc::result_out_of_range && whole.ptr == last) ||
        (real.ec == std::errc::result_out_of_range && real.ptr == last))
      wrong(begin, concat("'", std::string(first, last), "' ", runtime::kBeyond64Bits));
    if (real.ec == std::errc() && real.ptr == last) return decimal;
    wrong(begin, concat("'", std::string(first, last), "' is no number"));
  }

  const std::string& text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

std::string expectation(const Argument& argument) {
  switch (argument.type) {
    case ArgumentType::integer:
      return concat("an integer of at least ", argument.minimum, " and at most ", kLargest);
    case ArgumentType::decimal:
      return concat("a number of at least ", argument.minimum);
    case ArgumentType::boolean:
      return "true or false";
    case ArgumentType::word:
      return join(argument.choices);
    case ArgumentType::ring:
      return "a scheme";
  }
  return "?";
}

bool suits(const Argument& argument, const Value& value) {
  const auto* integer = std::get_if<std::int64_t>(&value);
  switch (argument.type) {
    case ArgumentType::integer:
      return integer != nullptr && static_cast<double>(*integer) >= argument.minimum &&
             *integer <= kLargest;
    case ArgumentType::decimal:
      return integer != nullptr ? static_cast<double>(*integer) >= argument.minimum
                                : std::holds_alternative<double>(value) &&
                                      std::get<double>(value) >= argument.minimum;
    case ArgumentType::boolean:
      return std::holds_alternative<bool>(value);
    case ArgumentType::word:
      return std::ranges::count(argument.choices, value_text(value)) != 0;
    case ArgumentType::ring:
      return std::holds_alternative<Expression>(value);
  }
  return false;
}

[[noreturn]] void not_declared(const Expression& scheme, const GivenArgument& given,
                               std::span<const Argument> declared) {
  if (declared.empty()) throw ExpressionFault{given.at, concat(scheme.name, " takes no arguments")};
  std::vector<std::string> names;
  for (const Argument& argument : declared) names.emplace_back(argument.name);
  const runtime::Suggestion near = runtime::nearest(given.name, names);
  const std::string hint = near.close ? concat("; did you mean '", near.word, "'?") : "";
  throw ExpressionFault{given.at, concat(scheme.name, " has no argument '", given.name,
                                         "'; it takes ", join(names), hint)};
}

}  // namespace

Expression::Expression() = default;
Expression::Expression(const char* text) : name(text) {}
Expression::Expression(std::string text) : name(std::move(text)) {}
Expression::Expression(const Expression&) = default;
Expression::Expression(Expression&&) noexcept = default;
Expression& Expression::operator=(const Expression&) = default;
Expression& Expression::operator=(Expression&&) noexcept = default;
Expression::~Expression() = default;

std::string Expression::text() const {
  if (arguments.empty()) return name;
  std::string all;
  for (const GivenArgument& argument : arguments)
    all += concat(all.empty() ? "" : ", ", argument.name, "=", value_text(argument.value));
  return concat(name, "(", all, ")");
}

const Expression::Value* Expression::find(std::string_view argument) const {
  const auto found = std::ranges::find(arguments, argument, &GivenArgument::name);
  return found != arguments.end() ? &found->value : nullptr;
}

std::optional<std::int64_t> Expression::integer(std::string_view argument) const {
  const Value* value = find(argument);
  return value != nullptr ? std::optional(std::get<std::int64_t>(*value)) : std::nullopt;
}

std::optional<double> Expression::decimal(std::string_view argument) const {
  const Value* value = find(argument);
  if (value == nullptr) return {};
  const auto* integer = std::get_if<std::int64_t>(value);
  return integer != nullptr ? static_cast<double>(*integer) : std::get<double>(*value);
}

std::optional<bool> Expression::boolean(std::string_view argument) const {
  const Value* value = find(argument);
  return value != nullptr ? std::optional(std::get<bool>(*value)) : std::nullopt;
}

std::optional<Expression> Expression::expression(std::string_view argument) const {
  const Value* value = find(argument);
  return value != nullptr ? std::optional(std::get<Expression>(*value)) : std::nullopt;
}

std::string Expression::word(std::string_view argument, const std::string& otherwise) const {
  const Value* value = find(argument);
  return value != nullptr ? std::get<Expression>(*value).name : otherwise;
}

Expression Expression::with(std::string_view argument, Value value) const {
  Expression changed = *this;
  const auto found = std::ranges::find(changed.arguments, argument, &GivenArgument::name);
  if (found != changed.arguments.end()) {
    found->value = std::move(value);
  } else {
    changed.arguments.push_back({std::string(argument), std::move(value)});
  }
  return changed;
}

Expression parse_expression(const std::string& text) { return Parser(text).whole(); }

Expression conform(const Expression& given, std::span<const Argument> declared,
                   const std::function<Expression(const Expression&, const std::string&)>& ring) {
  for (auto argument = given.arguments.begin(); argument != given.arguments.end(); ++argument) {
    if (std::ranges::none_of(declared, [&](const Argument& a) { return a.name == argument->name; }))
      not_declared(given, *argument, declared);
    if (std::find_if(given.arguments.begin(), argument, [&](const GivenArgument& other) {
          return other.name == argument->name;
        }) != argument)
      throw ExpressionFault{argument->at, concat("'", argument->name, "' is given twice")};
  }
  Expression result(given.name);
  result.at = given.at;
  for (const Argument& argument : declared) {
    const auto found =
        std::ranges::find(given.arguments, std::string(argument.name), &GivenArgument::name);
    if (found == given.arguments.end()) continue;
    GivenArgument kept = *found;
    if (!suits(argument, kept.value)) {
      throw ExpressionFault{kept.value_at,
                            concat(given.name, " has ", argument.name, "=", value_text(kept.value),
                                   "; expected ", expectation(argument))};
    }
    if (argument.type == ArgumentType::ring)
      kept.value = ring(std::get<Expression>(kept.value), concat(given.name, " ", argument.name));
    if (value_text(kept.value) != argument.otherwise) result.arguments.push_back(std::move(kept));
  }
  return result;
}

std::vector<std::string> split_outside_parentheses(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == ',' && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

}  // namespace longhaul::parallel
