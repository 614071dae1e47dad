#pragma once
// An AttentionCase whose rows lie on several ranks: one rank's part over any communicator, and all
// of them as threads of this process.

#include <string>

#include "parallel/attention.h"
#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/loopback.h"
#include "tests/support/attention_case.h"

namespace longhaul::test {

struct SpreadOptions {
  parallel::SchemeOptions scheme = {};
  parallel::LayoutKind layout = parallel::LayoutKind::zigzag;
  std::int64_t batch = 1;  ///< the case's rows are this many sequences
  runtime::DType wire_dtype = runtime::DType::float32;
  int threads = 1;
  int repeats = 1;  ///< whole calls, one after another; the last one's results count
};

struct SpreadRank {
  std::vector<std::int64_t> tokens;  ///< global row of every local row
  AttentionResult rows;              ///< this rank's rows
  std::int64_t sent_bytes = 0;  ///< of one forward and backward, as the communicator counted them
  std::map<int, std::int64_t> sent_to{};  ///< those bytes by peer
  double seconds = 0;                     ///< of the last repeat
  double waited_seconds = 0;              ///< its compute stream waited
};

/// Collective over `world`. Inputs are checked to be unmodified. `with_backward` follows from
/// case.dout.
SpreadRank run_spread_rank(const AttentionCase& which, const SpreadOptions& options,
                           runtime::Communicator& world);

struct Spread {
  AttentionResult result;  ///< global row order
  std::vector<SpreadRank> ranks;
};
Spread run_spread(const AttentionCase& which, const SpreadOptions& options, int ranks,
                  const runtime::LoopbackOptions& loopback = {});

}  // namespace longhaul::test
