#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/json_reader_impl.h"
#include "runtime/io/safetensors_impl.h"

namespace longhaul::runtime::safetensors {
namespace {

constexpr std::int64_t kMostFieldBytes = 64;  // of the fields' names and types

std::int64_t length_of_header(const FileHandle& file, std::int64_t file_bytes) {
  const auto refuse = [&](const auto&... parts) {
    fail(ExitCode::data, file.path().string(), ": is no safetensors file: ", parts...);
  };
  if (file_bytes < kLengthBytes) {
    refuse("it holds ", file_bytes, " bytes; its first ", kLengthBytes,
           " say how long the header is");
  }
  std::array<std::byte, kLengthBytes> bytes{};
  file.read_at(0, bytes);
  std::uint64_t length = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  }
  if (length > static_cast<std::uint64_t>(kMostHeaderBytes)) {
    refuse("its header has ", length, " bytes; at most ", kMostHeaderBytes, " are read");
  }
  if (static_cast<std::int64_t>(length) > file_bytes - kLengthBytes) {
    refuse("its header has ", length, " bytes, and ", file_bytes - kLengthBytes,
           " follow its length: it is cut short, or was never one");
  }
  return static_cast<std::int64_t>(length);
}

/// Reads what a header says, and counts what is kept of it.
class Parser {
 public:
  explicit Parser(JsonReader& json) : json_(json) {}

  void parse(Header& header) {
    json_.object(left(), [&](std::string name) {
      if (name == kMetadataKey) {
        if (header.metadata) json_.refuse(kMetadataKey, " is there twice");
        read_metadata(header.metadata.emplace());
      } else {
        header.entries.push_back(read_entry(std::move(name)));
      }
    });
    json_.expect_end();
  }

 private:
  /// As many bytes as a string may have that is read now.
  std::int64_t left() const { return (kMostKeptBytes - kept_) / 3; }
  void keep(std::int64_t bytes) {
    kept_ += bytes;
    if (kept_ > kMostKeptBytes) {
      json_.refuse("what the header lists takes more than ", kMostKeptBytes,
                   " bytes of memory; split the file");
    }
  }

  void read_metadata(std::vector<MetadataItem>& items) {
    json_.object(left(), [&](std::string name) {
      keep(kept_bytes(name) + 3 * static_cast<std::int64_t>(sizeof(MetadataItem)));
      std::string value = json_.string(left());
      keep(kept_bytes(value));
      items.push_back({std::move(name), std::move(value)});
    });
    std::vector<std::string_view> names;
    for (const MetadataItem& item : items) names.push_back(item.name);
    std::ranges::sort(names);
    if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
      json_.refuse(kMetadataKey, " has ", shown(*twice), " twice");
    }
  }

  Entry read_entry(std::string name) {
    Entry entry;
    entry.name = std::move(name);
    keep(kept_bytes(entry.name) + 3 * static_cast<std::int64_t>(sizeof(Entry)));
    bool dtype = false, shape = false, offsets = false;
    const auto once = [&](bool& seen, const char* field) {
      if (std::exchange(seen, true)) {
        json_.refuse("tensor ", shown(entry.name), " has two fields '", field, "'");
      }
    };
    json_.object(kMostFieldBytes, [&](const std::string& field) {
      if (field == "dtype") {
        once(dtype, "dtype");
        entry.element = read_element(entry.name);
      } else if (field == "shape") {
        once(shape, "shape");
        json_.array([&] {
          entry.sizes.push_back(json_.integer());
          keep(3 * static_cast<std::int64_t>(sizeof(std::int64_t)));
        });
      } else if (field == "data_offsets") {
        once(offsets, "data_offsets");
        read_offsets(entry);
      } else {
        json_.refuse("tensor ", shown(entry.name), " has an unknown field ", shown(field),
                     "; expected dtype, shape and data_offsets");
      }
    });
    for (const auto& [seen, field] : {std::pair(dtype, "dtype"), std::pair(shape, "shape"),
                                      std::pair(offsets, "data_offsets")}) {
      if (!seen) json_.refuse("tensor ", shown(entry.name), " has no ", field);
    }
    return entry;
  }

  Element read_element(const std::string& tensor) {
    const std::string text = json_.string(kMostFieldBytes);
    for (auto i = std::uint8_t{0}; i <= static_cast<std::uint8_t>(Element::boolean); ++i) {
      if (text == safetensors::name(static_cast<Element>(i))) return static_cast<Element>(i);
    }
    json_.refuse("tensor ", shown(tensor), " has the dtype ", shown(text),
                 ", which is not read; expected F32, BF16, F16 or another whole number of bytes");
  }

  void read_offsets(Entry& entry) {
    int count = 0;
    json_.array([&] {
      const std::int64_t offset = json_.integer();
      if (count == 0) entry.begin = offset;
      if (count == 1) entry.end = offset;
      if (++count > 2) {
        json_.refuse("tensor ", shown(entry.name), " has more than two data_offsets");
      }
    });
    if (count != 2) json_.refuse("tensor ", shown(entry.name), " has no two data_offsets");
  }

  JsonReader& json_;
  std::int64_t kept_ = 0;
};

/// The tensors' bytes must be the file's data, each once and nothing between.
void check_layout(const FileHandle& file, const Header& header) {
  const auto refuse = [&](const Entry& entry, const auto&... parts) {
    fail(ExitCode::data, file.path().string(), ": tensor ", shown(entry.name), " lies at bytes [",
         entry.begin, ", ", entry.end, ") of the data", parts...);
  };
  for (const Entry& entry : header.entries) {
    if (entry.begin > entry.end) refuse(entry, ", which end before they begin");
    if (entry.end > header.data_bytes) {
      refuse(entry, ", and the file has ", header.data_bytes, " of them: it is cut short");
    }
    const std::optional<std::int64_t> bytes = checked_bytes(entry);
    if (!bytes) refuse(entry, "; ", shape_text(entry), " has more bytes than can be counted");
    if (*bytes != entry.end - entry.begin) {
      refuse(entry, "; ", shape_text(entry), " has ", *bytes);
    }
  }
  const Entry* before = nullptr;
  std::int64_t covered = 0;
  for (const Entry& entry : header.entries) {
    if (entry.begin < covered) refuse(entry, ", some of which belong to ", shown(before->name));
    if (entry.begin > covered) {
      refuse(entry, ", and those from ", covered, " on belong to no tensor");
    }
    covered = entry.end;
    before = &entry;
  }
  if (covered != header.data_bytes) {
    fail(ExitCode::data, file.path().string(), ": its data has ", header.data_bytes,
         " bytes, of which those from ", covered, " on belong to no tensor");
  }
}

/// Sorted indices of the entries; no name twice.
std::vector<std::int64_t> names_of(const FileHandle& file, const std::vector<Entry>& entries) {
  std::vector<std::int64_t> order(entries.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto name = [&](std::int64_t index) -> const std::string& {
    return entries[static_cast<std::size_t>(index)].name;
  };
  std::ranges::sort(order, {}, name);
  const auto twice = std::ranges::adjacent_find(order, {}, name);
  if (twice != order.end()) {
    fail(ExitCode::data, file.path().string(), ": tensor ", shown(name(*twice)), " is there twice");
  }
  return order;
}

}  // namespace

Header read_header(const FileHandle& file) {
  const std::int64_t file_bytes = file.size();
  const std::int64_t length = length_of_header(file, file_bytes);
  Header header;
  header.data_begin = kLengthBytes + length;
  header.data_bytes = file_bytes - header.data_begin;
  JsonReader json(file, kLengthBytes, header.data_begin, "header");
  if (json.next_byte() != '{') json.refuse("expected '{' as the first byte");
  Parser(json).parse(header);
  // Tensors without bytes may share their place with others: they come first.
  std::ranges::stable_sort(header.entries, {},
                           [](const Entry& entry) { return std::pair(entry.begin, entry.end); });
  check_layout(file, header);
  header.by_name = names_of(file, header.entries);
  return header;
}

std::string header_text(const std::filesystem::path& path, std::span<const Entry> entries,
                        const Metadata& metadata) {
  constexpr std::size_t kAlignment = 8;
  std::string text(static_cast<std::size_t>(kLengthBytes), '\0');
  const auto json = [&](const std::string& value) {
    try {
      return nlohmann::json(value).dump();
    } catch (const nlohmann::json::exception&) {
      fail(ExitCode::data, path.string(), ": the text ", shown(value),
           " is not UTF-8, which a safetensors header must be");
    }
  };
  text += '{';
  if (metadata) {
    text += concat('"', kMetadataKey, "\":{");
    for (const MetadataItem& item : *metadata) {
      if (&item != metadata->data()) text += ',';
      text += json(item.name) + ':' + json(item.value);
    }
    text += entries.empty() ? "}" : "},";
  }
  for (const Entry& entry : entries) {
    if (&entry != entries.data()) text += ',';
    text += concat(json(entry.name), ":{\"dtype\":\"", name(entry.element), "\",\"shape\":[");
    for (std::size_t dim = 0; dim < entry.sizes.size(); ++dim) {
      if (dim > 0) text += ',';
      text += std::to_string(entry.sizes[dim]);
    }
    text += concat("],\"data_offsets\":[", entry.begin, ',', entry.end, "]}");
  }
  text += '}';
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::size_t length = text.size() - static_cast<std::size_t>(kLengthBytes);
  if (static_cast<std::int64_t>(length) > kMostHeaderBytes) {
    fail(ExitCode::data, path.string(), ": the header would have ", length, " bytes; at most ",
         kMostHeaderBytes, " are read. Write more files");
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(kLengthBytes); ++i, length >>= 8) {
    text[i] = static_cast<char>(length & 0xff);
  }
  return text;
}

}  // namespace longhaul::runtime::safetensors
