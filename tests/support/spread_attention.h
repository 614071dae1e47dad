#pragma once
// Attention problems whose rows lie on several ranks. Many jobs (problem x layout x scheme) run one
// after another in one session, whose ranks, streams and channels stay, so that products of
// thousands of cases are quick, and every job after the first is also a change of scheme and batch.

#include <array>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "parallel/attention.h"
#include "runtime/comm/loopback.h"
#include "tests/support/attention_case.h"

namespace longhaul::test {

/// The tensors of a result, in this order everywhere.
constexpr std::array<const char*, 4> kTensors{"out", "dq", "dk", "dv"};

struct ProblemSizes {
  std::int64_t heads = 4, kv_heads = 2, dim = 8, value_dim = 8;
  bool bf16 = false;
};

/// What the references answer.
struct Oracle {
  std::array<std::vector<double>, 4> exact;  // by kTensors
  std::vector<double> lse;
  /// The larger of 3e-6 and twice the float reference's error.
  std::array<double, 4> bound{};
};

/// Seeded inputs under a mask for each query head, and the answers that they must have.
class Problem {
 public:
  Problem(std::string name, attention::HeadMasks masks, const ProblemSizes& sizes,
          std::uint32_t seed = 1);
  /// `inputs` are over masks.tokens() rows; their bands are not read.
  Problem(std::string name, attention::HeadMasks masks, AttentionCase inputs);

  std::string name;
  attention::HeadMasks masks;
  AttentionCase inputs;
  /// Solved when first asked for.
  const Oracle& oracle() const;

  std::int64_t tokens() const { return masks.tokens(); }
  /// Elements of a row of each tensor.
  std::array<std::int64_t, 4> widths() const;
  parallel::Shapes shapes() const;

  /// The least and the largest value of every element in all results noted so far, by kTensors: no
  /// two results are further apart than these.
  struct Envelope {
    std::array<std::vector<float>, 4> low, high;
  };
  void note(const std::array<std::vector<float>, 4>& rows,
            const std::vector<std::int64_t>& tokens) const;
  /// ||high - low|| / ||exact|| by kTensors; 0 where nothing was noted.
  std::array<double, 4> spread() const;

 private:
  mutable std::once_flag solved_;
  mutable Oracle oracle_;
  mutable std::mutex mutex_;
  mutable Envelope envelope_;
};

struct SpreadJob {
  const Problem* problem = nullptr;
  parallel::Layout layout;
  parallel::Expression scheme = {};
  parallel::AttentionServers servers = {};  ///< dedicated ones are the layout's last ranks
};
/// "ring over zigzag P=3, causal n=61, heads 4/2".
std::string show(const SpreadJob& job);

/// What backward is about to be given on one rank.
struct BackwardFeed {
  const Problem& problem;
  const std::vector<attention::Run>& runs;  ///< of the rank's rows
  runtime::ConstTensorView q, k, v;
  runtime::TensorView lse, delta;
  const runtime::Stream& stream;
};

/// How jobs are run. Outputs hold NaN before each, and so does scratch on the CPU when `poison` is
/// set.
struct SpreadOptions {
  runtime::Device device{};  ///< of every rank
  attention::Kernels kernels = attention::Kernels::exact;
  runtime::DType wire_dtype = runtime::DType::float32;
  bool lend = false;  ///< AttentionOptions::lend
  bool poison = true;
  int threads = 1;
  int repeats = 1;  ///< whole calls of a job, one after another; the last one's results count
  /// Calls are prepared and loaded before, and all ranks meet between; on a device always: kernels
  /// are loaded, and memory is taken, only while no rank's stream waits for another.
  bool ahead = false;
  bool judge = true;      ///< hold results against the oracle
  bool envelope = false;  ///< note results in the problem's envelope
  std::function<void(const BackwardFeed&)> sabotage = {};   ///< enqueued before backward
  std::shared_ptr<parallel::TaskTransport> transport = {};  ///< of all ranks, to external servers
};

/// What one rank has of a job.
struct SpreadRank {
  std::array<double, 4> squared_error{};          ///< of its rows, by kTensors
  std::array<double, 4> rounded_squared_error{};  ///< those of its rows rounded to bfloat16
  double lse_error = 0;  ///< largest |lse - exact| / max(1, |exact|); infinite where -inf differs
  std::uint64_t digest = 0;               ///< of every bit of its rows
  std::map<int, std::int64_t> sent_to{};  ///< bytes by peer, of one forward and backward
  double seconds = 0;                     ///< of the last repeat
  double waited_seconds = 0;              ///< its compute stream waited
  std::int64_t taken = 0;  ///< memory that all ranks took from the system meanwhile; calls ahead
};
/// Collective over `world`; one entry a job. Fails the test when an input was modified.
std::vector<SpreadRank> run_jobs_of_rank(std::span<const SpreadJob> jobs,
                                         const SpreadOptions& options,
                                         runtime::Communicator& world);

struct SpreadReport {
  std::vector<SpreadRank> ranks;
  std::array<double, 4> error{};          ///< relative, in the Frobenius norm, by kTensors
  std::array<double, 4> rounded_error{};  ///< of the results rounded to bfloat16
  double lse_error = 0;
  std::vector<std::uint64_t> digests() const;
};
/// All ranks as threads of this process.
std::vector<SpreadReport> run_jobs(std::span<const SpreadJob> jobs, int ranks,
                                   const SpreadOptions& options = {},
                                   const runtime::LoopbackOptions& loopback = {});

/// Every rank's program of the job. `inputs.layout` refers to job.layout.
parallel::SchemeInputs scheme_inputs(const SpreadJob& job, parallel::Direction direction,
                                     const SpreadOptions& options = {});
parallel::Schedule schedule_of(const SpreadJob& job, parallel::Direction direction,
                               const SpreadOptions& options = {});

/// Out and gradients within the problem's bounds, or within `least` where that is larger, LSE
/// within 1e-5 max(1, |lse|); on AMX tiles within bfloat16's bounds.
void expect_right(const SpreadJob& job, const SpreadReport& report,
                  const std::array<double, 4>& least = {});
/// Each rank sent each peer what its programs count.
void expect_bytes_as_counted(const SpreadJob& job, const SpreadReport& report,
                             const SpreadOptions& options = {});

}  // namespace longhaul::test
