#pragma once
// Frames on a stream socket: a header that says what follows, and a body. Numbers are
// little-endian. Whatever was cut short, mixed up or altered on the way is refused before it is
// used.

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>

#include "runtime/net/socket.h"

namespace longhaul::runtime::net {

/// Which piece of work a frame belongs to: an answer carries its question's.
struct FrameId {
  std::uint64_t job = 0;      ///< a random number of whoever asks
  std::uint64_t call = 0;     ///< its calls, in order
  std::uint32_t task = 0;     ///< of the call
  std::uint32_t attempt = 0;  ///< at the task: it may be given to several
  std::string text() const;
  bool operator==(const FrameId&) const = default;
};

/// Uninitialised bytes of a fixed number.
class Body {
 public:
  Body() = default;
  /// Throws std::bad_alloc.
  explicit Body(std::int64_t bytes)
      : data_(std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes))),
        bytes_(bytes) {}
  std::byte* data() const { return data_.get(); }
  std::int64_t bytes() const { return bytes_; }
  std::span<const std::byte> view() const {
    return {data_.get(), static_cast<std::size_t>(bytes_)};
  }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::int64_t bytes_ = 0;
};

struct Frame {
  std::uint16_t kind = 0;  ///< of those that talk to each other
  FrameId id;
  Body body;
};

/// A header's bytes: magic 4, version 2, kind 2, job 8, call 8, task 4, attempt 4, bytes of the
/// body 8, XXH3-64 of the body 8, XXH3-64 of all that 8.
constexpr std::int64_t kFrameHeaderBytes = 56;
constexpr std::uint16_t kFrameVersion = 1;

/// The frames that arrive on a connection.
class FrameReader {
 public:
  /// Larger bodies are refused, before memory is taken for them.
  void set_most_body_bytes(std::int64_t bytes) { most_body_bytes_ = bytes; }
  /// Reads what has arrived. True: a frame is whole, and to be taken before more is read. Throws
  /// Error(internal) for what is no frame or differs from its digest, Error(disagree) for another
  /// version, Error(io) where the connection has ended. It is of no use afterwards.
  bool read(const Socket& socket);
  Frame take();
  /// Whether a part of a frame has arrived.
  bool begun() const { return have_ > 0; }

 private:
  void check_header();

  std::byte header_[kFrameHeaderBytes];
  std::int64_t have_ = 0;  // of header and body
  std::int64_t most_body_bytes_ = 0;
  std::uint64_t body_digest_ = 0;
  Frame frame_;
};

/// The frames to be sent on a connection.
class FrameWriter {
 public:
  void put(Frame frame);
  /// Sends what the system takes. True: nothing is left. Throws Error(io).
  bool write(const Socket& socket);
  bool empty() const { return frames_.empty(); }
  std::int64_t frames() const { return std::ssize(frames_); }

 private:
  struct Entry {
    std::byte header[kFrameHeaderBytes];
    Body body;
  };
  std::deque<Entry> frames_;
  std::int64_t sent_ = 0;  // of the first
};

/// Sends a frame, and waits for one. Throw Error(hang) past the deadline, else as above.
void send_frame(const Socket& socket, Frame frame, Deadline deadline);
Frame receive_frame(const Socket& socket, std::int64_t most_body_bytes, Deadline deadline);

}  // namespace longhaul::runtime::net
