#pragma once
// Starting threads, which a system may refuse.

#include <future>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

namespace longhaul::runtime {

namespace detail {
/// Throws Error(launch): how many threads this process has, and the limits that it may have met.
[[noreturn]] void thread_refused(std::string_view what, const std::system_error& error);
}  // namespace detail

/// A std::thread (or std::jthread) that does `work`; `what` names it in errors. Throws
/// Error(launch) when the system refuses it: the job asks for more than this machine grants, as
/// with too many ranks. (Memory is not the point, even where the stack found none: fewer threads
/// are what helps.)
template <class Thread = std::thread, class Work>
Thread start_thread(std::string_view what, Work work) {
  try {
    return Thread(std::move(work));
  } catch (const std::system_error& error) {
    detail::thread_refused(what, error);
  }
}

/// The same of std::async in a thread of its own.
template <class Work>
std::future<std::invoke_result_t<Work>> start_async(std::string_view what, Work work) {
  try {
    return std::async(std::launch::async, std::move(work));
  } catch (const std::system_error& error) {
    detail::thread_refused(what, error);
  }
}

}  // namespace longhaul::runtime
