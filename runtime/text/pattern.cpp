#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <new>

#include "runtime/error.h"
#include "runtime/text/pattern_impl.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kStackBegin = std::size_t{1} << 15, kStackEnd = std::size_t{1} << 23;

template <auto release>
struct Release {
  void operator()(auto* owned) const { release(owned); }
};
template <class Owned, auto release>
using Owner = std::unique_ptr<Owned, Release<release>>;

std::string message(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  ::pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

template <class Made>
Made* require_made(Made* made) {
  if (made == nullptr) throw std::bad_alloc();
  return made;
}

}  // namespace

struct Pattern::State {
  Owner<pcre2_code, ::pcre2_code_free> code;
};

struct Pattern::Room::State {
  Owner<pcre2_match_data, ::pcre2_match_data_free> match{
      require_made(::pcre2_match_data_create(1, nullptr))};
  Owner<pcre2_match_context, ::pcre2_match_context_free> context{
      require_made(::pcre2_match_context_create(nullptr))};
  Owner<pcre2_jit_stack, ::pcre2_jit_stack_free> stack{
      ::pcre2_jit_stack_create(kStackBegin, kStackEnd, nullptr)};  // null without such compiling

  State() {
    if (stack) ::pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

Pattern::Room::Room() : state_(std::make_unique<State>()) {}
Pattern::Room::~Room() = default;

Pattern::Pattern(std::string_view oniguruma, std::string place)
    : state_(std::make_unique<State>()), place_(std::move(place)) {
  const std::string pattern = pcre2_pattern(oniguruma, place_);
  int error = 0;
  PCRE2_SIZE where = 0;
  state_->code.reset(
      ::pcre2_compile(units(pattern), pattern.size(), PCRE2_UTF, &error, &where, nullptr));
  if (!state_->code)
    fail(ExitCode::data, place_, ": '", oniguruma, "' is no regular expression: ", message(error));
  std::uint32_t matches_nothing = 0;
  ::pcre2_pattern_info(state_->code.get(), PCRE2_INFO_MATCHEMPTY, &matches_nothing);
  if (matches_nothing != 0)
    fail(ExitCode::data, place_, ": '", oniguruma,
         "' matches the empty text; each match has to be a piece");
  const int compiled = ::pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE);
  if (compiled != 0 && compiled != PCRE2_ERROR_JIT_BADOPTION)
    fail(ExitCode::data, place_, ": '", oniguruma, "': ", message(compiled));
}

Pattern::~Pattern() = default;

std::optional<Pattern::Match> Pattern::find(std::string_view text, std::size_t from,
                                            Room& room) const {
  const int found =
      ::pcre2_match(state_->code.get(), units(text), text.size(), from, PCRE2_NO_UTF_CHECK,
                    room.state_->match.get(), room.state_->context.get());
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    fail(ExitCode::data, place_, ": matching its regular expression at byte ", from, " of ",
         text.size(), " failed: ", message(found));
  }
  const PCRE2_SIZE* bounds = ::pcre2_get_ovector_pointer(room.state_->match.get());
  return Match{bounds[0], bounds[1]};
}

}  // namespace longhaul::runtime
