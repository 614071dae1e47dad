#pragma once
// Work that pauses where an exchange is in flight, so that something else can be enqueued behind
// it.

#include <coroutine>
#include <exception>
#include <utility>

namespace longhaul::models {

/// A coroutine that enqueues work in stages: it pauses with `co_await in_flight` behind each phase
/// of an exchange, before what waits for it. Two of them, advanced in turn, hide each other's
/// exchanges. Nothing runs before the first advance(). It runs another one as a part of itself with
///     while (part.advance()) co_await in_flight;
/// Destroy an unfinished one only after its streams have been abandoned.
class [[nodiscard]] Stages {
 public:
  struct promise_type {
    std::exception_ptr error;
    Stages get_return_object() {
      return Stages(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void unhandled_exception() { error = std::current_exception(); }
    void return_void() {}
  };

  Stages(Stages&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stages& operator=(Stages&&) = delete;
  ~Stages() {
    if (handle_) handle_.destroy();
  }

  /// Enqueues the next stage. False once the last one is. Rethrows what the stage threw.
  bool advance() {
    if (handle_.done()) return false;
    handle_.resume();
    if (handle_.promise().error) std::rethrow_exception(handle_.promise().error);
    return !handle_.done();
  }

 private:
  explicit Stages(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

/// What a stage ends with.
inline constexpr std::suspend_always in_flight{};

}  // namespace longhaul::models
