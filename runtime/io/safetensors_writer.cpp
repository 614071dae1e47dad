#include <algorithm>
#include <system_error>
#include <tuple>

#include "runtime/error.h"
#include "runtime/io/safetensors_impl.h"

namespace longhaul::runtime::safetensors {
namespace {

constexpr std::size_t kPieceValues = std::size_t{64} << 10;

/// Sorted as a file lists them, each with its place.
std::vector<Entry> lay_out(const std::filesystem::path& path, std::span<const TensorInfo> tensors) {
  const auto refuse = [&](const TensorInfo& tensor, const auto&... parts) {
    fail(ExitCode::data, path.string(), ": cannot write tensor ", shown(tensor.name), ": ",
         parts...);
  };
  std::vector<Entry> entries;
  for (const TensorInfo& tensor : tensors) entries.push_back({tensor});
  std::ranges::sort(entries, {},
                    [](const Entry& entry) { return std::tie(entry.element, entry.name); });
  std::int64_t end = 0;
  for (Entry& entry : entries) {
    if (entry.name == kMetadataKey) refuse(entry, "the name is the metadata's");
    const std::optional<std::int64_t> bytes = checked_bytes(entry);
    entry.begin = end;
    if (!bytes || __builtin_add_overflow(end, *bytes, &end)) {
      refuse(entry, shape_text(entry), " has more bytes than can be counted");
    }
    entry.end = end;
  }
  std::vector<const Entry*> by_name;
  for (const Entry& entry : entries) by_name.push_back(&entry);
  const auto name = [](const Entry* entry) -> const std::string& { return entry->name; };
  std::ranges::sort(by_name, {}, name);
  const auto twice = std::ranges::adjacent_find(by_name, {}, name);
  if (twice != by_name.end()) refuse(**twice, "it is given twice");
  return entries;
}

}  // namespace

Writer::Writer(const std::filesystem::path& path, std::span<const TensorInfo> tensors,
               const Metadata& metadata)
    : entries_(lay_out(path, tensors)) {
  const std::string header = header_text(path, entries_, metadata);
  file_.emplace(FileHandle::create(path));
  try {
    file_->write_all(std::as_bytes(std::span(header)));
  } catch (...) {
    remove();
    throw;
  }
  skip_empty();
}

Writer::~Writer() {
  if (!finished_) remove();
}

void Writer::remove() {
  std::error_code ignored;  // nothing more can be done about it
  std::filesystem::remove(file_->path(), ignored);
}

const Entry* Writer::next() const {
  return current_ < entries_.size() ? &entries_[current_] : nullptr;
}

void Writer::skip_empty() {
  while (next() != nullptr && written_ == next()->end - next()->begin) {
    ++current_;
    written_ = 0;
  }
}

void Writer::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  LONGHAUL_CHECK(next() != nullptr, file_->path().string(), ": has all its bytes; ",
                 std::ssize(bytes), " more came");
  const std::int64_t left = next()->end - next()->begin - written_;
  LONGHAUL_CHECK(std::ssize(bytes) <= left, file_->path().string(), ": tensor ",
                 shown(next()->name), " wants ", left, " more bytes; ", std::ssize(bytes), " came");
  file_->write_all(bytes);
  written_ += std::ssize(bytes);
  skip_empty();
}

void Writer::append_floats(std::span<const float> values) {
  if (next() == nullptr || next()->element == Element::f32) return append(std::as_bytes(values));
  const Entry& entry = *next();
  const std::int64_t width = size_bytes(entry.element);
  LONGHAUL_CHECK(std::ssize(values) <= (entry.end - entry.begin - written_) / width,
                 file_->path().string(), ": tensor ", shown(entry.name), " wants ",
                 (entry.end - entry.begin - written_) / width, " more values; ", std::ssize(values),
                 " came");
  while (!values.empty()) {
    const auto piece = values.first(std::min(values.size(), kPieceValues));
    packed_.resize(piece.size() * static_cast<std::size_t>(width));
    if (const auto bad = from_floats(entry.element, piece, packed_)) {
      fail(ExitCode::data, file_->path().string(), ": tensor ", shown(entry.name), ", element ",
           written_ / width + *bad, " (row-major) is ", piece[static_cast<std::size_t>(*bad)],
           ", more than ", name(entry.element), " holds; write float32",
           entry.element == Element::f16 ? " or bfloat16" : "");
    }
    append(packed_);
    values = values.subspan(piece.size());
  }
}

void Writer::finish() {
  LONGHAUL_CHECK(next() == nullptr, file_->path().string(), ": bytes of tensor ",
                 shown(next()->name), " have not come");
  file_->sync();
  file_->close();
  finished_ = true;
}

}  // namespace longhaul::runtime::safetensors
