// `longhaul bench peak`: what this machine can do, which other benchmarks are compared with.

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

#include "launch/bench.h"
#include "launch/bench_calls.h"
#include "launch/bench_exchange.h"
#include "launch/bench_gemm.h"
#include "launch/bench_json_impl.h"
#include "runtime/bandwidth.h"
#include "runtime/build_info.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/cpu_level.h"
#include "runtime/error.h"
#include "runtime/io/output_file.h"
#include "runtime/peak.h"
#include "runtime/size_text.h"
#include "runtime/wake.h"

namespace longhaul::launch {
namespace {

using runtime::counted;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Rate;
using runtime::Unit;

constexpr const char* kLabels =
    "what                            threads         rate     lower     upper        n";

void print_row(const std::string& what, int threads, const Rate& rate, const char* unit) {
  fmt::print("{:<31}{:>8}{:>13.2f}{:>10.2f}{:>10.2f}{:>9}  {}\n", what, threads, rate.median / 1e9,
             rate.lower / 1e9, rate.upper / 1e9, rate.samples, unit);
}

/// Why a row has no figures.
void print_missing(const std::string& what, const std::string& why) {
  fmt::print("{:<31}{:>8}  {}\n", what, "-", why);
}

Json json_of(const Rate& rate) {
  return {{"samples", rate.samples},
          {"lower_quartile", rate.lower},
          {"median", rate.median},
          {"upper_quartile", rate.upper},
          {"cores", rate.cores}};
}

/// As a rate of `amount` each.
Rate rate_of(const Spread& seconds, double amount) {
  return {amount / seconds.upper, amount / seconds.median, amount / seconds.lower, seconds.count,
          0};
}

/// Rows of the table and of the JSON.
class Table {
 public:
  explicit Table(const BenchPeakOptions& options)
      : options_(options),
        threads_(options.threads > 0 ? options.threads : runtime::available_cores()),
        repeats_{.warm_up = 2, .most = 200, .least = 3, .seconds = options.seconds} {}

  int threads() const { return threads_; }
  const Repeats& repeats() const { return repeats_; }

  void units() {
    const Unit in_use = runtime::kernel_unit(DType::float32);
    for (const Unit unit : runtime::kUnits) {
      const std::string what = std::string(name(unit)) + (unit == in_use ? " (in use)" : "");
      if (has(unit)) {
        each_team(what, "flops", "GFLOP/s",
                  [&](int threads) { return measure_peak(unit, threads, options_.seconds); });
      } else {
        print_missing(what, "not on this machine");
      }
    }
  }

  void memory() {
    const std::int64_t large = runtime::uncached_bytes();
    each_team(fmt::format("triad, 3 x {}", runtime::size_text(large)), "bytes", "GB/s",
              [&](int threads) { return runtime::measure_triad(threads, options_.seconds); });
    for (const std::int64_t bytes : {std::int64_t{16} << 20, large}) {
      each_team(
          fmt::format("memcpy of {}", runtime::size_text(bytes)), "bytes", "GB/s copied",
          [&](int threads) { return runtime::measure_memcpy(bytes, threads, options_.seconds); });
    }
  }

  void products() {
    const runtime::Stream stream = runtime::Stream::cpu("compute", threads_);
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      const GemmRate gemm = measure_gemm(dtype, repeats_, stream);
      add(fmt::format("matmul {}^3, {}", gemm.size, runtime::name(dtype)), "flops", threads_,
          rate_of(gemm.seconds, gemm.flops()), "GFLOP/s");
    }
  }

  void exchanges(const std::string& backend, const std::vector<ExchangeTimes>& all) {
    for (const ExchangeTimes& one : all) {
      print_row(fmt::format("{}, {}, {}", backend, runtime::size_text(one.bytes),
                            one.both_ways ? "both ways" : "one way"),
                1, rate_of(one.seconds, static_cast<double>(one.bytes)), "GB/s a direction");
      exchanges_.push_back({{"backend", backend},
                            {"bytes", one.bytes},
                            {"both_ways", one.both_ways},
                            {"seconds", launch::json_of(one.seconds)},
                            {"bytes_per_second", one.bytes_per_second()}});
    }
  }

  void wakes() {
    fmt::print("threads {}; microseconds to begin after so long without work:\n",
               runtime::wait_policy_text());
    for (const double idle : {0.0, 50e-6, 1e-3, 10e-3}) {
      const runtime::WakeTimes times = runtime::measure_wake(threads_, idle, 50);
      const Spread region = spread_of(times.region), task = spread_of(times.task);
      print_wake(fmt::format("a region of {}, {:g} ms", counted(threads_, "thread"), 1e3 * idle),
                 region);
      print_wake(fmt::format("a stream's task, {:g} ms", 1e3 * idle), task);
      wakes_.push_back({{"idle_seconds", idle},
                        {"threads", threads_},
                        {"region_seconds", launch::json_of(region)},
                        {"task_seconds", launch::json_of(task)}});
    }
  }

  Json json() && {
    return {{"record", "bench peak"},
            {"build", runtime::version_line()},
            {"level", name(runtime::cpu_level())},
            {"best_level", name(runtime::best_cpu_level())},
            {"threads", threads_},
            {"waiting", runtime::wait_policy_text()},
            {"rates", std::move(rates_)},
            {"exchanges", std::move(exchanges_)},
            {"wakes", std::move(wakes_)}};
  }

 private:
  static void print_wake(const std::string& what, const Spread& s) {
    fmt::print("{:<39}{:>13.2f}{:>10.2f}{:>10.2f}{:>9}  us\n", what, 1e6 * s.median, 1e6 * s.lower,
               1e6 * s.upper, s.count);
  }
  void add(const std::string& what, const char* of, int threads, const Rate& rate,
           const char* unit) {
    print_row(what, threads, rate, unit);
    rates_.push_back(
        {{"what", what}, {"of", of}, {"threads", threads}, {"per_second", json_of(rate)}});
  }
  /// One thread alone, then all together.
  void each_team(const std::string& what, const char* of, const char* unit,
                 const std::function<Rate(int)>& measure) {
    for (const int threads : std::set{1, threads_}) add(what, of, threads, measure(threads), unit);
  }

  const BenchPeakOptions& options_;
  const int threads_;
  const Repeats repeats_;
  Json rates_ = Json::array(), exchanges_ = Json::array(), wakes_ = Json::array();
};

std::vector<ExchangeTimes> exchanges_of_threads(const Repeats& repeats) {
  std::vector<ExchangeTimes> all;
  runtime::run_loopback(2, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    auto own = measure_exchanges(*world, repeats);
    if (world->rank() == 0) all = std::move(own);
  });
  return all;
}

/// Of the two processes that mpirun has started; nothing where it has not, and on rank 1.
struct Processes {
  bool tells = true;
  std::vector<ExchangeTimes> exchanges;
};
Processes exchanges_of_processes(const Repeats& repeats) {
  if (runtime::claimed_place(runtime::process_environment()).size == 1) return {};
  runtime::MpiSession session({});
  runtime::check_launcher(
      runtime::process_environment(),
      {session.rank(), session.size(), session.local_rank(), session.local_size()});
  if (session.size() != 2) {
    fail(ExitCode::launch, "bench peak on ", session.size(),
         " ranks; expected 2, between which it measures messages, or one process");
  }
  Processes processes{session.rank() == 0, {}};
  processes.exchanges = measure_exchanges(*session.world(), repeats);
  session.close();
  return processes;
}

}  // namespace

int run_bench_peak(const BenchPeakOptions& options) {
  std::optional<runtime::OutputFile> json_file;
  if (!options.json_path.empty()) {
    json_file.emplace(options.json_path,
                      options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const auto asked = [&](const char* what) {
    return std::ranges::find(options.what, what) != options.what.end();
  };
  Table table(options);
  // First, so that the other process need not wait for the rest.
  Processes processes;
  if (asked("exchange")) processes = exchanges_of_processes(table.repeats());
  if (!processes.tells) return 0;
  fmt::print("{}\nCPU level {} of {}; medians and quartiles of n samples\n{}\n",
             runtime::version_line(), name(runtime::cpu_level()), name(runtime::best_cpu_level()),
             kLabels);
  if (asked("units")) table.units();
  if (asked("memory")) table.memory();
  if (asked("products")) table.products();
  if (asked("exchange")) {
    table.exchanges("loopback", exchanges_of_threads(table.repeats()));
    if (processes.exchanges.empty()) {
      print_missing("mpi", "between processes: mpirun -n 2 longhaul bench peak");
    } else {
      table.exchanges("mpi", processes.exchanges);
    }
  }
  if (asked("wake")) table.wakes();
  if (json_file) write_output(*json_file, std::move(table).json().dump(2) + "\n");
  return 0;
}

}  // namespace longhaul::launch
