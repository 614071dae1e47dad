#pragma once
// Private to runtime/io/hdf5*.cpp: the lock, owned ids and error texts of the HDF5 C API.

#include <hdf5.h>

#include <array>
#include <mutex>
#include <string>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/hdf5.h"

namespace longhaul::runtime::hdf5 {

/// Held around every use of the library: serialises it (not every build is thread-safe), silences
/// its printing for the calling thread, and turns plugins off once.
class Session {
 public:
  Session();
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  H5E_auto2_t handler_ = nullptr;
  void* handler_data_ = nullptr;
};

/// An owned id. Only used under a Session.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  Id(Id&& other) noexcept : id_(other.id_), close_(other.close_) { other.id_ = H5I_INVALID_HID; }
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Id() {
    // A close on the way out of an error; success paths call close() and look at its result.
    if (id_ >= 0) static_cast<void>(close_(id_));
  }
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  herr_t close() {
    const hid_t id = id_;
    id_ = H5I_INVALID_HID;
    return id >= 0 ? close_(id) : 0;
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

/// The innermost reason on HDF5's error stack, which it then clears; "" when there is none.
std::string take_reason();

struct ObjectState {
  std::filesystem::path path;
  std::string what;                   // "" for the file's root, "dataset 'tokens'" for a dataset
  std::shared_ptr<ObjectState> file;  // keeps the file open while a dataset lives
  Id id;
  std::int64_t file_bytes = 0;
  DatasetInfo info;

  ObjectState() = default;
  ObjectState(const ObjectState&) = delete;
  ObjectState& operator=(const ObjectState&) = delete;
  ~ObjectState();
  /// "corpus.h5: dataset 'tokens'"
  std::string where() const;
  template <class... Parts>
  [[noreturn]] void fail_with(ExitCode code, const Parts&... parts) const {
    const std::string reason = take_reason();
    fail(code, where(), ": ", parts..., reason.empty() ? "" : " (HDF5: " + reason + ")");
  }
  /// HDF5's negative results are errors.
  template <class Result, class... Parts>
  Result require(Result result, ExitCode code, const Parts&... parts) const {
    if (result < 0) fail_with(code, parts...);
    return result;
  }
  template <class... Parts>
  Id own(hid_t id, Id::Close close, ExitCode code, const Parts&... parts) const {
    return {require(id, code, parts...), close};
  }
};

/// The library's type for an element on disk; on x86 and other little-endian machines also in
/// memory.
hid_t disk_type(Element element);
/// Fills `state.info` from an open dataset, refusing what the header comment of hdf5.h lists.
void inspect_dataset(ObjectState& state);

}  // namespace longhaul::runtime::hdf5
