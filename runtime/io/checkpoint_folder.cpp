// Names in a checkpoint folder, and agreement of ranks on how a phase went.
#include <algorithm>
#include <chrono>
#include <new>
#include <nlohmann/json.hpp>

#include "runtime/comm/gather.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint_manifest_impl.h"

namespace longhaul::runtime::checkpoint {
namespace {

std::string padded(std::int64_t value, std::size_t digits) {
  const std::string text = std::to_string(value);
  return text.size() < digits ? std::string(digits - text.size(), '0') + text : text;
}

/// "step-N", with what follows N; nothing for other names. N has one spelling, that of step_name.
Entry classify(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const std::size_t dot = name.find('.');
  const std::string stem = name.substr(0, dot);
  if (!stem.starts_with("step-") || stem.size() < 13 || stem.size() > 23) return {};
  std::int64_t step = 0;
  for (const char c : stem.substr(5)) {
    if (c < '0' || c > '9') return {};
    step = step * 10 + (c - '0');
  }
  if (step_name(step) != stem) return {};
  if (dot == std::string::npos) return {EntryKind::committed, step, path};
  const std::string rest = name.substr(dot);
  if (rest.starts_with(".tmp-")) return {EntryKind::attempt, step, path};
  if (rest.starts_with(".replaced-")) return {EntryKind::replaced, step, path};
  return {};
}

}  // namespace

std::string step_name(std::int64_t step) { return "step-" + padded(step, 8); }

std::string rank_file_name(int rank, int ranks) {
  return concat("rank-", padded(rank, 5), "-of-", padded(ranks, 5), ".h5");
}

std::vector<Entry> list_entries(const std::filesystem::path& folder) {
  std::vector<Entry> entries;
  std::error_code code;
  std::filesystem::directory_iterator at(folder, code);
  if (code == std::errc::no_such_file_or_directory) return entries;
  for (const std::filesystem::directory_iterator end; !code && at != end; at.increment(code)) {
    if (Entry entry = classify(at->path()); entry.kind != EntryKind::other) {
      entries.push_back(std::move(entry));
    }
  }
  if (code) fail(ExitCode::io, folder.string(), ": cannot list checkpoints: ", code.message());
  return entries;
}

std::optional<std::filesystem::path> find_step(const std::filesystem::path& folder,
                                               std::int64_t step) {
  std::optional<std::filesystem::path> replaced;
  for (const Entry& entry : list_entries(folder)) {
    if (entry.step != step) continue;
    if (entry.kind == EntryKind::committed) return entry.path;
    if (entry.kind == EntryKind::replaced) replaced = entry.path;
  }
  return replaced;
}

Report failed(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return {"", known.code(), known.what()};
  } catch (const std::bad_alloc&) {
    return {"", ExitCode::memory, "out of memory"};
  } catch (const std::filesystem::filesystem_error& known) {
    return {"", ExitCode::io, known.what()};
  } catch (const std::exception& other) {
    return {"", ExitCode::internal, other.what()};
  }
}

namespace {
constexpr double kLeastWaitSeconds = 0.1;
constexpr std::chrono::seconds kErrorTime{10};
}  // namespace

std::vector<std::string> agree(const Report& report, Communicator& comm, const Stream& stream,
                               Deadline deadline) {
  // One byte of exit code, then the payload or the error.
  const bool good = report.code == ExitCode::done;
  const std::string mine = static_cast<char>(report.code) + (good ? report.payload : report.error);
  const double left = std::chrono::duration<double>(deadline - Clock::now()).count();
  const double before = comm.set_timeout(std::max(left, kLeastWaitSeconds));
  const Cleanup restore([&] { comm.set_timeout(before); });
  // The communicator's error names the missing ranks, so the host gives it the time to throw.
  std::vector<std::string> texts =
      gather_texts(comm, mine, stream, std::max(deadline, Clock::now()) + kErrorTime);
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const auto code = static_cast<ExitCode>(static_cast<unsigned char>(texts[rank].front()));
    texts[rank].erase(0, 1);
    if (code != ExitCode::done) {
      fail(code, texts.size() == 1 ? "" : concat("rank ", rank, ": "), texts[rank]);
    }
  }
  return texts;
}

}  // namespace longhaul::runtime::checkpoint
