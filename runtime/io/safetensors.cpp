#include "runtime/io/safetensors.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/json_reader_impl.h"
#include "runtime/io/safetensors_impl.h"

namespace longhaul::runtime::safetensors {
namespace {

/// Of what is read to be converted: stays in a core's cache.
constexpr std::int64_t kPieceBytes = std::int64_t{256} << 10;

struct ElementText {
  const char* name;
  std::int64_t bytes;
};
constexpr std::array<ElementText, 15> kElements{{{"U64", 8},
                                                 {"I64", 8},
                                                 {"F64", 8},
                                                 {"F32", 4},
                                                 {"U32", 4},
                                                 {"I32", 4},
                                                 {"BF16", 2},
                                                 {"F16", 2},
                                                 {"U16", 2},
                                                 {"I16", 2},
                                                 {"F8_E4M3", 1},
                                                 {"F8_E5M2", 1},
                                                 {"I8", 1},
                                                 {"U8", 1},
                                                 {"BOOL", 1}}};
static_assert(kElements.size() == static_cast<std::size_t>(Element::boolean) + 1);

}  // namespace

const char* name(Element element) { return kElements[static_cast<std::size_t>(element)].name; }
std::int64_t size_bytes(Element element) {
  return kElements[static_cast<std::size_t>(element)].bytes;
}

std::int64_t TensorInfo::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes) product *= size;
  return product;
}

std::string shown(std::string_view name) { return printable(name); }

std::string shape_text(const TensorInfo& tensor) {
  constexpr std::size_t kMostDims = 16;
  std::string text = concat(name(tensor.element), " [");
  for (std::size_t dim = 0; dim < std::min(tensor.sizes.size(), kMostDims); ++dim) {
    text += (dim > 0 ? "," : "") + std::to_string(tensor.sizes[dim]);
  }
  return text + (tensor.sizes.size() > kMostDims ? ",...]" : "]");
}

std::optional<std::int64_t> checked_bytes(const TensorInfo& tensor) {
  std::int64_t elements = 1;
  for (const std::int64_t size : tensor.sizes) {
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) return std::nullopt;
  }
  if (__builtin_mul_overflow(elements, size_bytes(tensor.element), &elements)) return std::nullopt;
  return elements;
}

File::File(const std::filesystem::path& path) : file_(FileHandle::read(path)) {
  Header header = read_header(file_);
  data_begin_ = header.data_begin;
  data_bytes_ = header.data_bytes;
  metadata_ = std::move(header.metadata);
  entries_ = std::move(header.entries);
  by_name_ = std::move(header.by_name);
}

const Entry* File::find(std::string_view name) const {
  const auto name_of = [&](std::int64_t index) -> std::string_view {
    return entries_[static_cast<std::size_t>(index)].name;
  };
  const auto at = std::ranges::lower_bound(by_name_, name, {}, name_of);
  if (at == by_name_.end() || name_of(*at) != name) return nullptr;
  return &entries_[static_cast<std::size_t>(*at)];
}

void File::read(const Entry& entry, std::int64_t first, std::span<std::byte> out) const {
  const std::int64_t bytes = entry.end - entry.begin;
  LONGHAUL_CHECK(first >= 0 && first <= bytes && std::ssize(out) <= bytes - first, "tensor ",
                 shown(entry.name), " has ", bytes, " bytes; asked for ", std::ssize(out), " from ",
                 first, " on");
  file_.read_at(data_begin_ + entry.begin + first, out);
}

void File::read_floats(const Entry& entry, std::int64_t first, std::span<float> out) const {
  const std::int64_t width = size_bytes(entry.element);
  if (entry.element == Element::f32) {
    read(entry, first * width, std::as_writable_bytes(out));
    return;
  }
  std::vector<std::byte> piece(
      static_cast<std::size_t>(std::min(kPieceBytes, std::ssize(out) * width)));
  while (!out.empty()) {
    const auto count = std::min(out.size(), piece.size() / static_cast<std::size_t>(width));
    const auto bytes = std::span(piece).first(count * static_cast<std::size_t>(width));
    read(entry, first * width, bytes);
    to_floats(entry.element, bytes, out.first(count));
    out = out.subspan(count);
    first += static_cast<std::int64_t>(count);
  }
}

}  // namespace longhaul::runtime::safetensors
