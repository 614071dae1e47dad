#include "runtime/io/token_files.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/mapping.h"

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPieceTokens = std::int64_t{1} << 16;
constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
constexpr std::int64_t kIndexHead = 34;  // bytes before the lengths
constexpr std::int64_t kLlmcHead = 256 * 4;

/// A number where it lies, aligned or not.
template <class T>
T number_at(std::span<const std::byte> bytes, std::int64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

std::string head_of(const fs::path& path, std::size_t bytes) {
  std::string head(bytes, '\0');
  head.resize(FileHandle::read(path).read_some(std::as_writable_bytes(std::span(head))));
  return head;
}

/// Token ids of one type, end to end.
class Ids {
 public:
  Ids(const Mapping& mapping, std::int64_t begin, fs::path path, std::int64_t vocabulary)
      : mapping_(&mapping), begin_(begin), path_(std::move(path)), vocabulary_(vocabulary) {}

  /// Tokens [first, first + ids.size()) of type T. Throws Error(data) for one outside of the
  /// vocabulary.
  template <class T>
  void read(std::int64_t first, std::span<std::int32_t> ids) const {
    const auto width = static_cast<std::int64_t>(sizeof(T));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t token = first + static_cast<std::int64_t>(i);
      const auto id =
          static_cast<std::int64_t>(number_at<T>(mapping_->bytes(), begin_ + token * width));
      if (id < 0 || id >= vocabulary_) {
        mapping_->require();  // pages that are lost read as 0, which is an id
        fail(ExitCode::data, path_.string(), ": token ", token, " is ", id,
             ", outside the vocabulary of ", vocabulary_);
      }
      ids[i] = static_cast<std::int32_t>(id);
    }
    mapping_->require();
  }

 private:
  const Mapping* mapping_;
  std::int64_t begin_;
  fs::path path_;
  std::int64_t vocabulary_;
};

/// What a dtype of the index is.
struct IndexType {
  std::int64_t width = 0;
  void (Ids::*read)(std::int64_t, std::span<std::int32_t>) const = nullptr;
};

IndexType index_type(int code) {
  switch (code) {
    case 1:
      return {1, &Ids::read<std::uint8_t>};
    case 2:
      return {1, &Ids::read<std::int8_t>};
    case 3:
      return {2, &Ids::read<std::int16_t>};
    case 4:
      return {4, &Ids::read<std::int32_t>};
    case 5:
      return {8, &Ids::read<std::int64_t>};
    case 8:
      return {2, &Ids::read<std::uint16_t>};
    default:
      return {};
  }
}

/// The index of a Megatron dataset, checked against the length of its data.
class MegatronIndex {
 public:
  explicit MegatronIndex(const fs::path& path) : path_(path), mapping_(path) {
    const auto bytes = mapping_.bytes();
    if (std::ssize(bytes) < kIndexHead) bad("is cut off within its first ", kIndexHead, " bytes");
    if (const auto version = number_at<std::uint64_t>(bytes, 9); version != 1)
      bad("is of version ", version, "; expected 1");
    const int code = number_at<std::uint8_t>(bytes, 17);
    type_ = index_type(code);
    if (type_.width == 0)
      bad("its dtype is ", code,
          "; expected an integer one, of 1 (uint8), 2 (int8), 3 (int16), 4 "
          "(int32), 5 (int64), 8 (uint16)");
    sequences_ = count_at(18);
    boundaries_ = count_at(26);
    const auto wanted = static_cast<__int128>(kIndexHead) + static_cast<__int128>(12) * sequences_ +
                        static_cast<__int128>(8) * boundaries_;
    if (wanted + sequences_ == std::ssize(bytes) && sequences_ > 0)
      bad("has a mode for each sequence: a multimodal dataset, which holds more than text");
    if (wanted != std::ssize(bytes)) {
      bad("holds ", bytes.size(), " bytes, which ", sequences_, " sequences and ", boundaries_,
          " boundaries of documents do not make up");
    }
  }

  const IndexType& type() const { return type_; }
  std::int64_t bytes() const { return std::ssize(mapping_.bytes()); }

  /// Token at which each document ends. `data`: bytes of the data.
  std::vector<std::int64_t> document_ends(std::int64_t data) const {
    std::vector<std::int64_t> ends;
    const std::int64_t places = kIndexHead + 4 * sequences_, documents = places + 8 * sequences_;
    const auto boundary = [&](std::int64_t i) {
      return number_at<std::int64_t>(mapping_.bytes(), documents + 8 * i);
    };
    if (boundaries_ < 1 || boundary(0) != 0) bad("its first document does not begin at sequence 0");
    std::int64_t next = 1, tokens = 0;
    const auto end_documents = [&](std::int64_t sequence) {
      for (; next < boundaries_ && boundary(next) == sequence; ++next) ends.push_back(tokens);
    };
    for (std::int64_t s = 0; s < sequences_; ++s) {
      end_documents(s);
      const auto length = number_at<std::int32_t>(mapping_.bytes(), kIndexHead + 4 * s);
      const auto place = number_at<std::int64_t>(mapping_.bytes(), places + 8 * s);
      if (length < 0 || place != tokens * type_.width) {
        bad("sequence ", s, " holds ", length, " tokens at byte ", place,
            "; expected at least 0, at byte ", tokens * type_.width);
      }
      tokens += length;
      if (tokens > data / type_.width) bad("sequence ", s, " ends behind the data");
    }
    end_documents(sequences_);
    mapping_.require();
    if (next != boundaries_ || boundary(boundaries_ - 1) != sequences_) {
      bad("boundary ", std::min(next, boundaries_ - 1), " of documents is ",
          boundary(std::min(next, boundaries_ - 1)), "; expected rising ones from 0 to ",
          sequences_, ", the number of sequences");
    }
    if (tokens * type_.width != data) {
      bad("its sequences hold ", tokens, " tokens, ", tokens * type_.width,
          " bytes; the data holds ", data);
    }
    return ends;
  }

 private:
  template <class... Words>
  [[noreturn]] void bad(const Words&... words) const {
    fail(ExitCode::data, path_.string(), ": the index of a Megatron dataset ", words...);
  }
  /// A number of things that the file has room for.
  std::int64_t count_at(std::int64_t at) const {
    const auto count = number_at<std::uint64_t>(mapping_.bytes(), at);
    if (count > static_cast<std::uint64_t>(mapping_.bytes().size()))
      bad("says that it has ", count, " entries, and holds ", mapping_.bytes().size(), " bytes");
    return static_cast<std::int64_t>(count);
  }

  const fs::path path_;
  const Mapping mapping_;
  IndexType type_;
  std::int64_t sequences_ = 0, boundaries_ = 0;
};

}  // namespace

bool is_megatron_index(const fs::path& path) {
  return head_of(path, kIndexMagic.size()) == kIndexMagic;
}

fs::path megatron_data(const fs::path& index) { return fs::path(index).replace_extension(".bin"); }

void read_megatron(const fs::path& path, std::int64_t vocabulary, const TakeTokens& take) {
  const MegatronIndex index(path);
  const fs::path data_path = megatron_data(path);
  if (fs::file_size(data_path) == 0) fail(ExitCode::data, data_path.string(), ": holds no token");
  const Mapping data(data_path);
  const std::vector<std::int64_t> ends = index.document_ends(std::ssize(data.bytes()));
  const Ids ids(data, 0, data_path, vocabulary);
  std::vector<std::int32_t> tokens;
  std::int64_t at = 0;
  for (const std::int64_t end : ends) {
    do {
      tokens.resize(static_cast<std::size_t>(std::min(kPieceTokens, end - at)));
      (ids.*index.type().read)(at, tokens);
      at += std::ssize(tokens);
      take({tokens, at == end, index.bytes() + at * index.type().width});
    } while (at < end);
  }
}

namespace {

struct LlmcHead {
  std::int64_t version = 0, width = 0;
};
/// Of this magic; no width for none.
LlmcHead llmc_head(std::int32_t magic) {
  if (magic == 20240520) return {1, 2};
  if (magic == 20240801) return {7, 4};
  return {};
}

}  // namespace

bool is_llmc(const fs::path& path) {
  const std::string head = head_of(path, 4);
  return head.size() == 4 &&
         llmc_head(number_at<std::int32_t>(std::as_bytes(std::span(head)), 0)).width != 0;
}

void read_llmc(const fs::path& path, std::int64_t vocabulary, std::int64_t document_start,
               const TakeTokens& take) {
  const Mapping data(path);
  const auto bytes = data.bytes();
  const auto bad = [&](const auto&... words) {
    fail(ExitCode::data, path.string(), ": a file of tokens of llm.c ", words...);
  };
  if (std::ssize(bytes) < kLlmcHead) bad("is cut off within its first ", kLlmcHead, " bytes");
  const LlmcHead head = llmc_head(number_at<std::int32_t>(bytes, 0));
  if (head.width == 0) bad("has no magic of one");
  if (const auto version = number_at<std::int32_t>(bytes, 4); version != head.version)
    bad("is of version ", version, "; expected ", head.version);
  const std::int64_t count = number_at<std::int32_t>(bytes, 8);
  if (count < 0 || kLlmcHead + count * head.width != std::ssize(bytes)) {
    bad("says that it has ", count, " tokens of ", head.width, " bytes behind the first ",
        kLlmcHead, ", and holds ", bytes.size());
  }
  const Ids ids(data, kLlmcHead, path, vocabulary);
  std::vector<std::int32_t> tokens;
  for (std::int64_t at = 0; at < count; at += std::ssize(tokens)) {
    tokens.resize(static_cast<std::size_t>(std::min(kPieceTokens, count - at)));
    if (head.width == 2) {
      ids.read<std::uint16_t>(at, tokens);
    } else {
      ids.read<std::uint32_t>(at, tokens);
    }
    const std::int64_t read = kLlmcHead + (at + std::ssize(tokens)) * head.width;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] != document_start || (at == 0 && i == 0)) continue;
      take({std::span(tokens).subspan(begin, i - begin), true, read});
      begin = i;
    }
    take({std::span(tokens).subspan(begin), at + std::ssize(tokens) == count, read});
  }
}

}  // namespace longhaul::runtime
