#include "tests/support/sequence_words.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

namespace longhaul::test {
namespace {

/// The cells of a Markdown row.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream parts(line.substr(1));
  for (std::string cell; std::getline(parts, cell, '|');) cells.push_back(cell);
  return cells;
}

}  // namespace

DocumentWords words_of(const std::string& readme, const std::string& mask) {
  const auto start = readme.find("| mask | attention | `auto` positions | labels |");
  EXPECT_NE(start, std::string::npos) << "README.md has no table of documents";
  DocumentWords words;
  int rows = 0;
  std::istringstream lines(readme.substr(std::min(start, readme.size())));
  for (std::string line; std::getline(lines, line) && line.starts_with('|');) {
    const std::vector<std::string> cells = cells_of(line);
    if (cells.size() < 4 || cells[0].find("`" + mask + "`") == std::string::npos) continue;
    ++rows;
    words.crosses = cells[1] == " crosses documents ";
    EXPECT_TRUE(words.crosses || cells[1].starts_with(" stays inside a document")) << line;
    words.auto_positions = cells[2] == " `sequence` "   ? "sequence"
                           : cells[2] == " `document` " ? "document"
                                                        : "";
    words.crossing_labels = cells[3] == " cross documents ";
    words.answers = cells[3] == " stay inside an answer ";
    EXPECT_TRUE(words.crossing_labels || words.answers || cells[3] == " stay inside a document ")
        << line;
  }
  EXPECT_EQ(rows, 1) << "README.md's table of documents, mask " << mask;
  return words;
}

SequenceWords::SequenceWords(const TokenDocuments& corpus, std::int64_t begin, std::int64_t seq_len,
                             launch::DataConfig data, DocumentWords words)
    : corpus_(corpus), data_(std::move(data)), words_(std::move(words)) {
  const std::int64_t total = std::ssize(corpus.tokens);
  for (std::int64_t i = 0; i < seq_len; ++i) {
    rows_.push_back(row_of((begin + i) % total));
    rows_.back().round = (begin + i) / total;
  }
}

SequenceWords::Row SequenceWords::row_of(std::int64_t place) const {
  Row row;
  row.token = corpus_.tokens.at(static_cast<std::size_t>(place));
  row.place = row.in_document = place;
  for (const std::int64_t length : corpus_.lengths) {
    if (row.in_document < length) break;
    row.in_document -= length;
    ++row.document;
  }
  return row;
}

bool SequenceWords::same_document(std::int64_t a, std::int64_t b) const {
  return at(a).document == at(b).document && at(a).round == at(b).round;
}

std::int32_t SequenceWords::label(std::int64_t row) const {
  const Row& here = at(row);
  const bool corpus_ends = here.place + 1 == std::ssize(corpus_.tokens);
  if (words_.crossing_labels && row + 1 < size()) return at(row + 1).token;
  if (corpus_ends) return -1;
  const Row next = row_of(here.place + 1);
  if (words_.crossing_labels) return next.token;
  if (next.document != here.document) return -1;
  const bool answer_ends = words_.answers && !in_question(here) && answer(here) != answer(next);
  return answer_ends ? -1 : next.token;
}

std::int64_t SequenceWords::position(std::int64_t row) const {
  const std::string& rule = data_.positions == "auto" ? words_.auto_positions : data_.positions;
  if (rule == "sequence") return row;
  // As many as there are tokens before it: of its document, or of its question and its answer.
  std::int64_t before = 0;
  for (std::int64_t other = 0; other < row; ++other) {
    if (!same_document(other, row)) continue;
    const bool another_answer =
        words_.answers && !in_question(at(other)) && answer(at(other)) != answer(at(row));
    before += another_answer ? 0 : 1;
  }
  return before;
}

bool SequenceWords::near(std::int64_t query, std::int64_t key) const {
  return !data_.window || std::abs(query - key) < *data_.window;
}

bool SequenceWords::sees(std::int64_t query, std::int64_t key) const {
  // An answer follows its question, whatever lies between them.
  if (data_.mask != "shared_question" || !data_.window) return sees_at_all(query, key);
  return sees(query, key, *data_.window);
}

bool SequenceWords::sees(std::int64_t query, std::int64_t key, std::int64_t window) const {
  std::int64_t from_key = 0;
  for (std::int64_t other = key; other <= query; ++other)
    from_key += sees_at_all(query, other) ? 1 : 0;
  return sees_at_all(query, key) && from_key <= window;
}

bool SequenceWords::sees_at_all(std::int64_t i, std::int64_t j) const {
  const std::string& mask = data_.mask;
  const bool same = same_document(i, j);
  const Row &query = at(i), &key = at(j);
  if (mask == "full") return true;
  if (mask == "causal") return j <= i;
  if (mask == "full_window") return near(i, j);
  if (mask == "causal_window") return j <= i && near(i, j);
  if (mask == "global_window") return near(i, j) || i < *data_.global || j < *data_.global;
  if (mask == "prefix_causal") return j <= i || j < *data_.prefix;
  if (mask == "causal_blockwise") {
    const auto together = [&](std::int64_t a, std::int64_t b) {
      return data_.block ? a / *data_.block == b / *data_.block : same_document(a, b);
    };
    return j <= i && (together(i, j) || together(i, size() - 1));
  }
  if (!same) return false;
  if (mask == "full_document") return near(i, j);
  if (mask == "causal_document" || mask == "documents") return j <= i && near(i, j);
  if (mask == "prefix_document") return j <= i || key.in_document < *data_.prefix;
  if (mask == "block_causal_document")
    return key.in_document / *data_.block <= query.in_document / *data_.block;
  if (mask == "shared_question") {
    return j <= i && (in_question(key) || (!in_question(query) && answer(query) == answer(key)));
  }
  ADD_FAILURE() << "the test has no words for " << mask;
  return false;
}

}  // namespace longhaul::test
