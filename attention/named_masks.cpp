#include "attention/named_masks.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::concat;
using runtime::ExitCode;
using runtime::fail;
using Offsets = std::vector<std::int64_t>;

constexpr MaskInput kNumbers[] = {MaskInput::window, MaskInput::prefix, MaskInput::global,
                                  MaskInput::block};

/// Refuses offsets that do not rise from 0 to `tokens`.
void check_offsets(MaskInput which, const Offsets& offsets, std::int64_t tokens) {
  const char* dataset = name(which);
  if (offsets.empty() || offsets.front() != 0) {
    fail(ExitCode::data, "dataset '", dataset,
         "', row 0: ", offsets.empty() ? "missing" : concat(offsets.front()), "; expected 0");
  }
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] >= offsets[i - 1]) continue;
    fail(ExitCode::data, "dataset '", dataset, "', row ", i, ": ", offsets[i], ", less than row ",
         i - 1, ", which is ", offsets[i - 1], "; offsets must not fall");
  }
  if (offsets.back() != tokens) {
    fail(ExitCode::data, "dataset '", dataset, "' ends at ", offsets.back(), " in row ",
         offsets.size() - 1, "; expected ", tokens, ", the number of tokens");
  }
}

/// begin, begin + block, begin + 2 block, ..., end; where the first block has `gone` tokens before
/// `begin`, it and all that follow end so much earlier.
Offsets equal_blocks(std::int64_t begin, std::int64_t end, std::int64_t block,
                     std::int64_t gone = 0) {
  Offsets offsets{begin};
  for (std::int64_t left = block - gone; offsets.back() < end; left = block)
    offsets.push_back(left < end - offsets.back() ? offsets.back() + left : end);
  return offsets;
}

/// Queries [begin, end) see the keys from k_begin up to themselves.
Slice causal_slice(std::int64_t begin, std::int64_t end, std::int64_t k_begin) {
  return {begin, end, k_begin, end, -kUnbounded, 0};
}

/// [begin, prefix_end) see each other, the others what is before them.
std::vector<Slice> prefix_lm(std::int64_t begin, std::int64_t prefix_end, std::int64_t end) {
  return {{begin, prefix_end, begin, prefix_end}, causal_slice(prefix_end, end, begin)};
}

/// The part of a document that a sequence holds.
struct Piece {
  std::size_t document = 0;
  std::int64_t begin = 0, end = 0;  ///< token numbers
  std::int64_t before = 0;          ///< tokens of the document before `begin`
};

/// Slices being collected; empty ones are dropped by Mask::from_slices.
class Lowering {
 public:
  Lowering(const MaskRule& rule, const MaskParameters& parameters, std::int64_t tokens)
      : rule_(rule), given_(parameters), tokens_(tokens) {
    if (takes(MaskInput::documents)) {
      check_offsets(MaskInput::documents, *given_.documents, tokens);
    }
    if (takes(MaskInput::block_offsets))
      check_offsets(MaskInput::block_offsets, *given_.block_offsets, tokens);
    if (takes(MaskInput::prefixes)) check_prefixes();
  }

  std::vector<Slice> slices() {
    const std::string_view which = rule_.name;
    const MaskNumbers& n = given_.numbers;
    if (which == "full") return {{0, tokens_, 0, tokens_}};
    if (which == "causal") return {causal_slice(0, tokens_, 0)};
    if (which == "full_window") return {window(0, tokens_, *n.window)};
    if (which == "causal_window") {
      Slice band = window(0, tokens_, *n.window);
      band.hi = 0;
      return {band};
    }
    if (which == "global_window") {
      const std::int64_t all = *n.global;
      return {{0, all, 0, tokens_}, {all, tokens_, 0, all}, window(all, tokens_, *n.window)};
    }
    if (which == "prefix_causal") return prefix_lm(0, *n.prefix, tokens_);
    if (which == "causal_blockwise") return blockwise();
    std::vector<Slice> all;
    const Offsets& documents = *given_.documents;
    for (std::size_t d = 0; d + 1 < documents.size(); ++d) {
      const std::vector<Slice> own =
          document({d, documents[d], documents[d + 1], d == 0 ? given_.tokens_before : 0});
      all.insert(all.end(), own.begin(), own.end());
    }
    return all;
  }

 private:
  bool takes(MaskInput input) const {
    for (const std::vector<MaskInput>& choice : rule_.needs) {
      const auto first = std::ranges::find_if(choice, [&](MaskInput i) { return given_.has(i); });
      if (first != choice.end() && *first == input) return true;
    }
    return false;
  }
  void check_prefixes() const {
    const Offsets& prefixes = *given_.prefixes;
    const Offsets& documents = *given_.documents;
    if (prefixes.size() + 1 != documents.size()) {
      fail(ExitCode::data, "dataset 'prefixes' has ", prefixes.size(), " rows; expected ",
           documents.size() - 1, ", one per document");
    }
    for (std::size_t d = 0; d < prefixes.size(); ++d) {
      const std::int64_t length = documents[d + 1] - documents[d];
      if (prefixes[d] >= 0 && prefixes[d] <= length) continue;
      fail(ExitCode::data, "dataset 'prefixes', row ", d, ": ", prefixes[d], "; expected 0 to ",
           length, ", the length of document ", d);
    }
  }

  /// The band of a window on both sides, over queries and keys of [begin, end).
  static Slice window(std::int64_t begin, std::int64_t end, std::int64_t width) {
    const std::int64_t reach = std::min(width - 1, end - begin);
    return {begin, end, begin, end, -reach, reach};
  }
  std::vector<Slice> blockwise() const {
    Offsets offsets = takes(MaskInput::block) ? equal_blocks(0, tokens_, *given_.numbers.block)
                                              : *given_.documents;
    offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
    std::vector<Slice> all;
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
      const bool last = b + 2 == offsets.size();
      all.push_back(causal_slice(offsets[b], offsets[b + 1], last ? 0 : offsets[b]));
    }
    return all;
  }

  /// Where the piece's part of its document's prefix ends; `begin` when that lies before it. A
  /// dataset of prefixes counts from the piece's first token.
  std::int64_t prefix_end(const Piece& piece) const {
    const std::int64_t left = takes(MaskInput::prefix) ? *given_.numbers.prefix - piece.before
                                                       : (*given_.prefixes)[piece.document];
    return piece.begin + std::clamp<std::int64_t>(left, 0, piece.end - piece.begin);
  }
  std::vector<Slice> document(const Piece& piece) const {
    const std::string_view which = rule_.name;
    const MaskNumbers& n = given_.numbers;
    const auto [d, begin, end, before] = piece;
    if (which == "full_document")
      return {n.window ? window(begin, end, *n.window) : Slice{begin, end, begin, end}};
    if (which == "prefix_document") return prefix_lm(begin, prefix_end(piece), end);
    if (which == "block_causal_document") return staircase(piece);
    LONGHAUL_CHECK(which == "shared_question", "mask ", which, " has no lowering");
    return shared_question(piece);
  }
  std::vector<Slice> staircase(const Piece& piece) const {
    const std::int64_t block = *given_.numbers.block, begin = piece.begin;
    if (block == 1) return {causal_slice(begin, piece.end, begin)};
    std::vector<Slice> all;
    const Offsets offsets = equal_blocks(begin, piece.end, block, piece.before % block);
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
      all.push_back({offsets[b], offsets[b + 1], begin, offsets[b + 1]});
    return all;
  }
  /// Where a document's answers begin and end; the first may have begun before the piece.
  Offsets answers(const Piece& piece) const {
    const std::int64_t first = prefix_end(piece);
    if (takes(MaskInput::block)) {
      const std::int64_t block = *given_.numbers.block;
      const std::int64_t answered =  // tokens of answers before the piece
          takes(MaskInput::prefix) ? piece.before - *given_.numbers.prefix : 0;
      return equal_blocks(first, piece.end, block, std::max<std::int64_t>(0, answered) % block);
    }
    Offsets offsets{first};
    const Offsets& all = *given_.block_offsets;
    const auto after = std::upper_bound(all.begin(), all.end(), first);
    for (auto at = after; at != all.end() && *at < piece.end; ++at) {
      if (*at != offsets.back()) offsets.push_back(*at);
    }
    if (offsets.back() != piece.end) offsets.push_back(piece.end);
    return offsets;
  }
  std::vector<Slice> shared_question(const Piece& piece) const {
    const Offsets offsets = answers(piece);
    const auto [d, begin, end, before] = piece;
    // The question and its first answer are one triangle. The others see the question as a
    // rectangle together; with a window each by itself, as if it followed the question.
    const std::int64_t first_end = offsets.size() > 1 ? offsets[1] : end;
    const std::optional<std::int64_t>& width = given_.numbers.window;
    std::vector<Slice> slices{causal_slice(begin, first_end, begin)};
    if (!width) slices.push_back({first_end, end, begin, offsets.front()});
    for (std::size_t a = 1; a + 1 < offsets.size(); ++a) {
      const std::int64_t answer = offsets[a];
      slices.push_back(causal_slice(answer, offsets[a + 1], answer));
      if (width) {
        const std::int64_t moved = answer - offsets.front();  // tokens that it does not see
        slices.push_back({answer, offsets[a + 1], begin, offsets.front(), 1 - *width - moved});
      }
    }
    for (Slice& slice : slices) {
      if (width && slice.hi == 0) slice.lo = 1 - *width;
    }
    return slices;
  }

  const MaskRule& rule_;
  const MaskParameters& given_;
  const std::int64_t tokens_;
};

/// Blocks that are seen, joined first along a row and then over rows with the same run of keys.
std::vector<Slice> block_slices(const std::int64_t* seen, const Offsets& offsets) {
  struct Open {
    std::size_t first = 0, last = 0;  // key blocks
    std::int64_t q_begin = 0;
  };
  std::vector<Slice> slices;
  std::vector<Open> open;
  const std::size_t count = offsets.size() - 1;
  for (std::size_t m = 0; m <= count; ++m) {
    std::vector<Open> row;
    for (std::size_t n = 0; m < count && n < count; ++n) {
      if (seen[m * count + n] == 0) continue;
      const std::size_t first = n;
      while (n + 1 < count && seen[m * count + n + 1] != 0) ++n;
      row.push_back({first, n, offsets[m]});
    }
    for (const Open& above : open) {  // both lists are sorted by `first`
      const auto same = std::ranges::lower_bound(row, above.first, {}, &Open::first);
      if (same != row.end() && same->first == above.first && same->last == above.last) {
        same->q_begin = above.q_begin;
      } else {
        slices.push_back(
            {above.q_begin, offsets[m], offsets[above.first], offsets[above.last + 1]});
      }
    }
    open = std::move(row);
  }
  return slices;
}

/// One mask of an array [.., ..], or one a head of an array [H, .., ..]. `mask_of` takes the first
/// value of a head's part; what it throws is said to be of that dataset and head.
template <class MaskOf>
HeadMasks over_heads(MaskInput which, const IntegerArray& array, const MaskOf& mask_of) {
  const bool per_head = array.sizes.size() == 3;
  const auto in = [&](std::int64_t head) {
    try {
      const std::int64_t stride = array.sizes.end()[-1] * array.sizes.end()[-2];
      return mask_of(array.values.data() + head * stride);
    } catch (const runtime::Error& error) {
      fail(error.code(), "dataset '", name(which), "', ",
           per_head ? concat("head ", head, ", ") : "", error.what());
    }
  };
  if (!per_head) return in(0);
  std::vector<Mask> masks;
  for (std::int64_t head = 0; head < array.sizes[0]; ++head) masks.push_back(in(head));
  return HeadMasks::per_head(std::move(masks));
}

/// `expected` is [m,m] or the like; one more dim in front of it is the heads'.
void check_sizes(MaskInput which, const IntegerArray& array, std::int64_t rows,
                 std::int64_t columns) {
  const std::vector<std::int64_t>& sizes = array.sizes;
  const bool fits = (sizes.size() == 2 || (sizes.size() == 3 && sizes[0] > 0)) &&
                    (rows < 0 || sizes.end()[-2] == rows) && sizes.end()[-1] == columns;
  if (fits) return;
  std::string has;
  for (const std::int64_t size : sizes) has += (has.empty() ? "" : ", ") + concat(size);
  const std::string expected = concat(rows < 0 ? "n" : concat(rows), ", ", columns);
  fail(ExitCode::data, "dataset '", name(which), "' is [", has, "]; expected [", expected,
       "] or, with one for each query head, [H, ", expected, "]");
}

HeadMasks make_block_sparse(const IntegerArray& blocks, const Offsets& offsets,
                            std::int64_t tokens) {
  const auto count = static_cast<std::int64_t>(offsets.size()) - 1;
  check_sizes(MaskInput::blocks, blocks, count, count);
  return over_heads(MaskInput::blocks, blocks, [&](const std::int64_t* seen) {
    for (std::int64_t i = 0; i < count * count; ++i) {
      if (seen[i] == 0 || seen[i] == 1) continue;
      fail(ExitCode::data, "row ", i / count, ", column ", i % count, ": ", seen[i],
           "; expected 0 or 1");
    }
    return Mask::from_slices(tokens, block_slices(seen, offsets));
  });
}

HeadMasks make_slices(const IntegerArray& array, std::int64_t tokens) {
  check_sizes(MaskInput::slices, array, -1, 5);
  const std::int64_t count = array.sizes.end()[-2];
  return over_heads(MaskInput::slices, array, [&](const std::int64_t* rows) {
    std::vector<Slice> slices;
    for (std::int64_t row = 0; row < count; ++row, rows += 5) {
      if (rows[0] == rows[1] || rows[2] == rows[3]) {
        slices.push_back({0, 0, 0, 0});  // keeps the rows' numbers for errors
        continue;
      }
      if (rows[4] < 0 || rows[4] > 3) {
        fail(ExitCode::data, "row ", row, ": type ", rows[4],
             "; expected 0 full, 1 causal, 2 inverse causal or 3 both");
      }
      if (rows[0] < 0 || rows[1] < rows[0] || rows[1] > tokens || rows[2] < 0 ||
          rows[3] < rows[2] || rows[3] > tokens) {
        fail(ExitCode::data, "row ", row, ": queries [", rows[0], ", ", rows[1], ") and keys [",
             rows[2], ", ", rows[3], ") do not lie in [0, ", tokens, ")");
      }
      slices.push_back(
          slice_from_type(rows[0], rows[1], rows[2], rows[3], static_cast<int>(rows[4])));
    }
    return Mask::from_slices(tokens, std::move(slices));
  });
}

/// Refuses numbers that the mask does not take and numbers out of range.
void check_numbers(const MaskRule& rule, const MaskNumbers& numbers, std::int64_t tokens) {
  for (const MaskInput number : kNumbers) {
    const std::optional<std::int64_t>& value = numbers.of(number);
    if (!value) continue;
    const std::string start =
        concat("mask ", rule.name, ": ", numbers.spelling, name(number), " ", *value);
    if (!rule.takes(number)) fail(ExitCode::config, start, " is not used by it; leave it out");
    // A wider window or block than the sequence means all of it; a longer prefix is a mistake.
    const bool length = number == MaskInput::prefix || number == MaskInput::global;
    if (!length && *value < 1) fail(ExitCode::config, start, "; expected at least 1 token");
    if (length && (*value < 0 || *value > tokens)) {
      fail(ExitCode::config, start, "; expected 0 to ", tokens,
           ", the number of tokens in a sequence");
    }
  }
}

/// Refuses a mask with none of the inputs of one of its needs.
void check_needs(const MaskRule& rule, const MaskParameters& parameters) {
  for (const std::vector<MaskInput>& choice : rule.needs) {
    if (std::ranges::any_of(choice, [&](MaskInput i) { return parameters.has(i); })) continue;
    std::string all;
    for (const MaskInput input : choice) {
      if (!all.empty()) all += " or ";
      all += is_number(input) ? concat(parameters.numbers.spelling, name(input))
                              : concat("dataset '", name(input), "'");
    }
    const bool number = std::ranges::any_of(choice, is_number);
    fail(number ? ExitCode::config : ExitCode::data, "mask ", rule.name, " needs ", all);
  }
}

}  // namespace

const std::optional<std::int64_t>& MaskNumbers::of(MaskInput number) const {
  LONGHAUL_CHECK(is_number(number), name(number), " is no number");
  return number == MaskInput::window   ? window
         : number == MaskInput::prefix ? prefix
         : number == MaskInput::global ? global
                                       : block;
}

bool MaskParameters::has(MaskInput input) const {
  switch (input) {
    case MaskInput::documents:
      return documents.has_value();
    case MaskInput::prefixes:
      return prefixes.has_value();
    case MaskInput::blocks:
      return blocks.has_value();
    case MaskInput::block_offsets:
      return block_offsets.has_value();
    case MaskInput::slices:
      return slices.has_value();
    default:
      return numbers.of(input).has_value();
  }
}

HeadMasks make_mask(std::string_view name, const MaskParameters& parameters, std::int64_t tokens) {
  const MaskRule& rule = mask_rule(name);
  check_numbers(rule, parameters.numbers, tokens);
  check_needs(rule, parameters);
  LONGHAUL_CHECK(parameters.tokens_before >= 0, parameters.tokens_before,
                 " tokens of a document before the first");
  if (rule.name == std::string_view("causal_document")) {
    // The most common one by far, and often of thousands of documents: nothing to search for.
    check_offsets(MaskInput::documents, *parameters.documents, tokens);
    const Mask mask = Mask::documents(*parameters.documents);
    const std::optional<std::int64_t>& window = parameters.numbers.window;
    return window ? mask.within(1 - *window, kUnbounded) : mask;
  }
  if (rule.takes(MaskInput::slices)) return make_slices(*parameters.slices, tokens);
  if (rule.takes(MaskInput::blocks)) {
    if (rule.takes(MaskInput::block))
      return make_block_sparse(*parameters.blocks,
                               equal_blocks(0, tokens, *parameters.numbers.block), tokens);
    check_offsets(MaskInput::block_offsets, *parameters.block_offsets, tokens);
    return make_block_sparse(*parameters.blocks, *parameters.block_offsets, tokens);
  }
  return Mask::from_slices(tokens, Lowering(rule, parameters, tokens).slices());
}

}  // namespace longhaul::attention
