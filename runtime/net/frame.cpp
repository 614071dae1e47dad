#include "runtime/net/frame.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

#include "runtime/error.h"

namespace longhaul::runtime::net {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers travel as they are in memory");

constexpr std::uint32_t kMagic = 0x5341484c;  // "LHAS"

struct Header {
  std::uint32_t magic;
  std::uint16_t version, kind;
  std::uint64_t job, call;
  std::uint32_t task, attempt;
  std::int64_t body_bytes;
  std::uint64_t body_digest, digest;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

std::uint64_t digest_of(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }
std::uint64_t digest_of(const Header& header) {
  return digest_of(&header, sizeof(header) - sizeof(header.digest));
}

}  // namespace

std::string FrameId::text() const {
  return concat("task ", task, " of call ", call, ", attempt ", attempt, ", of job ", std::hex,
                job);
}

bool FrameReader::read(const Socket& socket) {
  while (have_ < kFrameHeaderBytes) {
    const std::int64_t got = socket.read(header_ + have_, kFrameHeaderBytes - have_);
    if (got == 0) return false;
    have_ += got;
    if (have_ == kFrameHeaderBytes) check_header();
  }
  const std::int64_t whole = kFrameHeaderBytes + frame_.body.bytes();
  while (have_ < whole) {
    const std::int64_t got =
        socket.read(frame_.body.data() + (have_ - kFrameHeaderBytes), whole - have_);
    if (got == 0) return false;
    have_ += got;
  }
  const std::uint64_t digest =
      digest_of(frame_.body.data(), static_cast<std::size_t>(frame_.body.bytes()));
  if (digest != body_digest_) {
    fail(ExitCode::internal, "a frame of ", frame_.body.bytes(),
         " bytes was altered on the way: its digest is ", std::hex, digest, ", it says ",
         body_digest_);
  }
  return true;
}

void FrameReader::check_header() {
  Header header;
  std::memcpy(&header, header_, sizeof(header));
  if (header.magic != kMagic)
    fail(ExitCode::internal, "what arrived is no frame: it begins with ", std::hex, header.magic,
         ", expected ", kMagic);
  if (header.version != kFrameVersion)
    fail(ExitCode::disagree, "the other side speaks version ", header.version,
         " of the protocol; this is version ", kFrameVersion, ": start both from one build");
  if (header.digest != digest_of(header))
    fail(ExitCode::internal, "a frame's header was altered on the way: its digest is ", std::hex,
         digest_of(header), ", it says ", header.digest);
  if (header.body_bytes < 0 || header.body_bytes > most_body_bytes_)
    fail(ExitCode::internal, "a frame says that ", header.body_bytes,
         " bytes follow; expected at most ", most_body_bytes_);
  body_digest_ = header.body_digest;
  frame_ = {
      header.kind, {header.job, header.call, header.task, header.attempt}, Body(header.body_bytes)};
}

Frame FrameReader::take() {
  have_ = 0;
  return std::exchange(frame_, {});
}

void FrameWriter::put(Frame frame) {
  const auto body_bytes = static_cast<std::size_t>(frame.body.bytes());
  Header header{kMagic,
                kFrameVersion,
                frame.kind,
                frame.id.job,
                frame.id.call,
                frame.id.task,
                frame.id.attempt,
                frame.body.bytes(),
                digest_of(frame.body.data(), body_bytes),
                0};
  header.digest = digest_of(header);
  Entry& entry = frames_.emplace_back();
  std::memcpy(entry.header, &header, sizeof(header));
  entry.body = std::move(frame.body);
}

bool FrameWriter::write(const Socket& socket) {
  while (!frames_.empty()) {
    const Entry& entry = frames_.front();
    const std::int64_t whole = kFrameHeaderBytes + entry.body.bytes();
    while (sent_ < whole) {
      const bool in_header = sent_ < kFrameHeaderBytes;
      const std::int64_t sent =
          in_header ? socket.write(entry.header + sent_, kFrameHeaderBytes - sent_)
                    : socket.write(entry.body.data() + (sent_ - kFrameHeaderBytes), whole - sent_);
      if (sent == 0) return false;
      sent_ += sent;
    }
    frames_.pop_front();
    sent_ = 0;
  }
  return true;
}

void send_frame(const Socket& socket, Frame frame, Deadline deadline) {
  FrameWriter writer;
  writer.put(std::move(frame));
  while (!writer.write(socket)) {
    if (!socket.wait_writable(deadline))
      fail(ExitCode::hang, "the other side takes no more within its time");
  }
}

Frame receive_frame(const Socket& socket, std::int64_t most_body_bytes, Deadline deadline) {
  FrameReader reader;
  reader.set_most_body_bytes(most_body_bytes);
  while (!reader.read(socket)) {
    if (!socket.wait_readable(deadline))
      fail(ExitCode::hang, "the other side does not answer within its time");
  }
  return reader.take();
}

}  // namespace longhaul::runtime::net
