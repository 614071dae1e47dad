// Memory: what the executor takes is what is counted, and a steady state takes nothing new.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>

#include "parallel/executor.h"
#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;
using test::show;

runtime::Deadline deadline() { return runtime::deadline_in(120); }

/// The bytes that a rank's call held beyond what lived before it.
struct Measured {
  std::int64_t started = 0;  ///< of compute's pool, once start() has returned
  std::int64_t peak = 0;     ///< at most during the call, of all its pools: compute's and channels'
  std::int64_t after = 0;    ///< once it is destroyed
};

/// Tensors for the slots that a caller binds, by slot.
class Bound {
 public:
  Bound(const Program& program, const Stream& stream) {
    for (const Slot& slot : program.slots) {
      if (slot.role == Role::scratch) continue;
      for (const Field& field : slot.record.fields) {
        std::vector<std::int64_t> sizes{slot.rows, slot.heads};
        if (!field.number) sizes.push_back(field.width);
        tensors_.emplace_back(sizes, field.dtype, stream);
        runtime::fill(tensors_.back(), 0, stream);
        if (slot.role == Role::input) {
          signature.inputs.push_back(field.name);
          inputs.push_back(tensors_.back());
        } else {
          signature.outputs.push_back(field.name);
          outputs.push_back(tensors_.back());
        }
      }
    }
  }
  Signature signature;
  std::vector<runtime::ConstTensorView> inputs;
  std::vector<TensorView> outputs;

 private:
  std::vector<Tensor> tensors_;
};

/// The most that any one kernel of the program takes for itself, called alone on another stream.
std::int64_t largest_kernel_scratch(const Program& program, const Shapes& shapes) {
  const Stream stream = Stream::cpu("alone");
  std::int64_t largest = 0;
  const auto tensor = [&](std::int64_t rows, int heads, std::int64_t dim, DType dtype) {
    Tensor made({rows, heads, dim}, dtype, stream);
    runtime::fill(made, 0, stream);
    return made;
  };
  const auto measure = [&](const auto& call) {
    stream.reset_peak();
    const std::int64_t before = stream.memory().current_bytes;
    call();
    largest = std::max(largest, stream.memory().peak_bytes - before);
    stream.synchronize(deadline());
  };
  const auto attend = [&](const Attend* a) {
    const Tensor q = tensor(a->q.rows(), a->q.heads(), shapes.dim, shapes.activation),
                 k = tensor(a->kv.rows(), a->kv.heads(), shapes.dim, shapes.activation),
                 v = tensor(a->kv.rows(), a->kv.heads(), shapes.value_dim, shapes.activation),
                 out = tensor(a->q.rows(), a->q.heads(), shapes.value_dim, DType::float32),
                 lse = tensor(a->q.rows(), a->q.heads(), 2, DType::float32);
    measure(
        [&] { attention::block_forward(q, k, v, a->bands, {}, out, lse, Mode::write, stream); });
  };
  const auto attend_backward = [&](const AttendBackward* b) {
    const std::int64_t n = b->q_bundle.rows(), keys = b->kv.rows();
    const int heads = b->q_bundle.heads(), kv_heads = b->kv.heads();
    const Tensor q = tensor(n, heads, shapes.dim, shapes.activation),
                 dout = tensor(n, heads, shapes.value_dim, shapes.activation),
                 k = tensor(keys, kv_heads, shapes.dim, shapes.activation),
                 v = tensor(keys, kv_heads, shapes.value_dim, shapes.activation),
                 dq = tensor(n, heads, shapes.dim, DType::float32),
                 dk = tensor(keys, kv_heads, shapes.dim, DType::float32),
                 dv = tensor(keys, kv_heads, shapes.value_dim, DType::float32),
                 lse = tensor(n, heads, 2, DType::float32);
    const Tensor delta({n, heads}, DType::float32, stream);
    runtime::fill(delta, 0, stream);
    measure([&] {
      attention::block_backward({q, k, v, dout, lse, delta}, b->bands, {}, dq, Mode::write, dk, dv,
                                Mode::write, stream);
    });
  };
  for (const Step& step : program.steps) {
    if (const auto* a = std::get_if<Attend>(&step.operation)) {
      attend(a);
    } else if (const auto* b = std::get_if<AttendBackward>(&step.operation)) {
      attend_backward(b);
    } else if (const auto* tasks = std::get_if<AttendTasks>(&step.operation)) {
      for (const TaskViews& t : tasks->tasks) {
        const Attend one{t.q, t.kv, {t.band}, t.partial};
        attend(&one);
      }
    } else if (const auto* gradients = std::get_if<AttendTasksBackward>(&step.operation)) {
      for (const TaskGradientViews& t : gradients->tasks) {
        const AttendBackward one{t.q_bundle, t.kv, {t.band}, t.dq, Mode::write, t.dkv, Mode::write};
        attend_backward(&one);
      }
    }
  }
  return largest;
}

Measured measure(const Program& program, const Stream& compute,
                 const std::vector<Channel>& channels) {
  const Bound bound(program, compute);
  compute.synchronize(deadline());
  std::vector<const Stream*> streams{&compute};
  for (const Channel& channel : channels) streams.push_back(&channel.stream);
  std::int64_t before = 0;
  for (const Stream* stream : streams) {
    stream->reset_peak();
    before += stream->memory().current_bytes;
  }
  const auto sum = [&](std::int64_t runtime::MemoryUse::*bytes) {
    std::int64_t total = -before;
    for (const Stream* stream : streams) total += stream->memory().*bytes;
    return total;
  };
  Measured measured;
  {
    const auto prepared = std::make_shared<const Prepared>(
        program, bound.signature, attention::Scoring{}, attention::place_of(compute));
    Execution execution(std::make_shared<const Loaded>(prepared, compute), bound.inputs,
                        bound.outputs, compute, channels);
    execution.start();
    measured.started = sum(&runtime::MemoryUse::current_bytes);
    execution.finish();
    measured.peak = sum(&runtime::MemoryUse::peak_bytes);
    compute.synchronize(deadline());
  }
  measured.after = sum(&runtime::MemoryUse::current_bytes);
  return measured;
}

TEST(Memory, MeasuredPeakOfAllPoolsIsWhatIsProvedAndStated) {
  constexpr int kRanks = 4;
  const std::int64_t n = 67;
  const std::vector<std::int64_t> offsets{0, 9, 30, 31, 67};
  std::map<std::string, std::int64_t> staged;  // at most, where nothing is cast
  for (const auto& [activation, wire] : {std::pair{DType::float32, DType::float32},
                                         {DType::bfloat16, DType::float32},
                                         {DType::bfloat16, DType::bfloat16}}) {
    const Shapes shapes{8, 4, 16, 8, activation};
    for (const auto& [mask_name, mask] : {test::NamedMask{"causal", Mask::causal(n)},
                                          test::NamedMask{"documents", Mask::documents(offsets)}}) {
      for (const Layout& layout : test::all_layouts(mask, 1, kRanks)) {
        for (const Expression& options : test::all_schemes(kRanks, 8, 4)) {
          if (refuse({options, kRanks, 8, 4, layout.kind(), true})) continue;
          if (!options.boolean("resend").value_or(true))
            continue;  // keeps more than it is bound to
          for (const Direction direction : {Direction::forward, Direction::backward}) {
            SCOPED_TRACE(runtime::concat(show(options), " ", mask_name, " ", name(layout.kind()),
                                         " ", name(direction), " wire ", name(wire)));
            SchemeInputs inputs{mask, layout, shapes, direction};
            inputs.scheme = options;
            if (wire != DType::float32) inputs.wire_dtype = wire;
            const Schedule schedule = build_schedule(inputs);
            const Verdict proven = verify(schedule, mask, layout);
            ASSERT_TRUE(proven.ok()) << proven.message;
            std::vector<Measured> measured(kRanks);
            runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
              const Stream compute = Stream::cpu("compute");
              std::vector<Channel> channels;
              for (int c = 0; c < scheme_from_name(options.name).channels; ++c) {
                const std::string name = runtime::concat("channel", c);
                channels.push_back({compute.sibling(name), world->split(0, world->rank(), name)});
              }
              const auto rank = static_cast<std::size_t>(world->rank());
              measured[rank] = measure(schedule.programs[rank], compute, channels);
            });
            std::int64_t most_scratch = 0, most_staged = 0;
            for (std::size_t rank = 0; rank < kRanks; ++rank) {
              const Program& program = schedule.programs[rank];
              const Count counted = count(program);
              const std::int64_t arena =
                  counted.scratch_bytes + largest_kernel_scratch(program, shapes);
              EXPECT_EQ(measured[rank].started, arena) << "rank " << rank;
              EXPECT_EQ(measured[rank].peak, arena + counted.staging_bytes()) << "rank " << rank;
              EXPECT_EQ(measured[rank].after, 0) << "rank " << rank;
              most_scratch = std::max(most_scratch, counted.scratch_bytes);
              most_staged = std::max(most_staged, counted.staging_bytes());
            }
            EXPECT_EQ(proven.peak_scratch_bytes, most_scratch);
            EXPECT_EQ(proven.peak_staging_bytes, most_staged);
            if (wire == DType::float32)
              staged[options.name] = std::max(staged[options.name], most_staged);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  // Hops that send whole heads copy nothing.
  for (const auto& [name, bytes] : staged) {
    const bool some_heads = name == "all_gather" || name == "ulysses" || name == "usp",
               some_rows = name == "group_cast" || name == "disaggregated";
    EXPECT_EQ(bytes > 0, some_heads || some_rows) << name << " stages " << bytes << " bytes";
  }
  EXPECT_EQ(staged.size(), scheme_names().size());
}

/// One call of 8 query and 4 key/value heads each way, with the caller's tensors from the same
/// pool; waits for it.
void forward_and_backward(Attention& attention, const attention::HeadMasks& masks,
                          const Layout& layout, int rank, std::int64_t dim, const Stream& compute) {
  const std::int64_t rows = layout.rows(rank);
  const auto tensor = [&](std::int64_t heads) {
    Tensor made({rows, heads, dim}, DType::float32, compute);
    runtime::fill(made, 0.5, compute);
    return made;
  };
  const Tensor q = tensor(8), k = tensor(4), v = tensor(4), dout = tensor(8), out = tensor(8),
               dq = tensor(8), dk = tensor(4), dv = tensor(4);
  const Tensor lse({rows, 8, 2}, DType::float32, compute),
      delta({rows, 8}, DType::float32, compute);
  const auto batch = attention.batch(masks, layout);
  attention.forward(*batch, q, k, v, {}, out, lse)->finish();
  attention::block_delta(out, dout, delta, compute);
  attention.backward(*batch, {q, k, v, dout, lse, delta}, {}, dq, dk, dv)->finish();
  compute.synchronize(deadline());
}

TEST(Memory, SteadyStateAsksTheSystemForNone) {
  // All ranks' pools, those of the channels too. Documents change, their sizes do not: the pools
  // know every size after one round of the batches.
  constexpr int kRanks = 4;
  const std::vector<std::vector<std::int64_t>> batches{
      {0, 16, 24, 60, 64}, {0, 8, 24, 28, 64}, {0, 36, 40, 56, 64}};
  const test::ProblemSizes sizes{8, 4, 8, 8};
  std::vector<std::unique_ptr<test::Problem>> problems;
  for (const auto& offsets : batches)
    problems.push_back(
        std::make_unique<test::Problem>("documents", Mask::documents(offsets), sizes));
  for (const Expression& scheme : test::all_schemes(kRanks, 8, 4)) {
    for (const Layout& layout : test::all_layouts(problems[0]->masks, 1, kRanks)) {
      if (refuse({scheme, kRanks, 8, 4, layout.kind(), true})) continue;
      if (!scheme.boolean("resend").value_or(true)) continue;
      for (const DType wire : {DType::float32, DType::bfloat16}) {
        std::array<std::int64_t, 3> asked{};  // after each round of the batches, on all ranks
        runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
          const Stream compute = Stream::cpu("compute");
          Attention attention({scheme, wire}, world->split(0, world->rank(), "context"), compute);
          for (std::int64_t& total : asked) {
            for (const auto& problem : problems) {
              forward_and_backward(attention, problem->masks, layout, world->rank(), 8, compute);
            }
            world->barrier(compute);
            compute.synchronize(deadline());
            if (world->rank() == 0) total = runtime::system_allocations();
            world->barrier(compute);
            compute.synchronize(deadline());
          }
        });
        EXPECT_EQ(asked[1], asked[2]) << show(scheme) << " over " << name(layout.kind()) << ": "
                                      << asked[2] - asked[1] << " new blocks in the third round";
        EXPECT_EQ(asked[0], asked[1]) << show(scheme) << " over " << name(layout.kind()) << ": "
                                      << asked[1] - asked[0] << " new blocks in the second round";
      }
    }
  }
}

TEST(Memory, ACallThatIsLoadedAsksTheSystemForNone) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  constexpr int kRanks = 4;
  const test::ProblemSizes sizes{8, 4, 8, 8};
  const std::vector<std::int64_t> offsets{0, 16, 24, 60, 64};
  const test::Problem causal("causal", Mask::causal(64), sizes),
      documents("documents", Mask::documents(offsets), sizes);
  for (const DType wire : {DType::float32, DType::bfloat16}) {
    for (const test::Problem* problem : {&causal, &documents}) {
      for (const Layout& layout : test::all_layouts(problem->masks, 1, kRanks)) {
        for (const Expression& scheme : test::all_schemes(kRanks, 8, 4)) {
          if (refuse({scheme, kRanks, 8, 4, layout.kind(), true})) continue;
          // New streams for each, which hold nothing yet.
          const std::vector<test::SpreadJob> jobs{{problem, layout, scheme}};
          const auto reports = test::run_jobs(
              jobs, kRanks, {.wire_dtype = wire, .poison = false, .ahead = true, .judge = false});
          EXPECT_EQ(reports[0].ranks[0].taken, 0) << show(jobs[0]) << " wire " << name(wire);
        }
      }
    }
  }
}

/// Offsets of random documents, some of one token, some nearly as long as the sequence.
std::vector<std::int64_t> random_documents(std::int64_t n, std::mt19937& random) {
  std::vector<std::int64_t> offsets{0};
  while (offsets.back() < n) {
    const std::int64_t most = random() % 3 == 0 ? n : 12;
    const auto length = static_cast<std::int64_t>(1 + random() % static_cast<unsigned>(most));
    offsets.push_back(std::min(n, offsets.back() + length));
  }
  return offsets;
}

TEST(Memory, SteadyStateWithDocumentsThatChangeAsksTheSystemForNone) {
  // Sizes of rows, messages and accumulators differ from batch to batch and from rank to rank.
  // Heads are wide, so that a rank's memory is several of the pool's segments.
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "every buffer is a segment of its own under AddressSanitizer";
#endif
  constexpr int kRanks = 4, kBatches = 30;
  constexpr std::int64_t kTokens = 97, kDim = 128;
  std::mt19937 random(11);
  std::vector<Mask> masks;
  for (int batch = 0; batch < 2 * kBatches; ++batch)
    masks.push_back(Mask::documents(random_documents(kTokens, random)));
  std::size_t cases = 0;
  for (const std::string& name : scheme_names()) {
    for (const LayoutKind kind : layout_kinds()) {
      const Expression scheme(name);
      if (refuse({scheme, kRanks, 8, 4, kind, true})) continue;
      const DType wire = cases++ % 2 == 0 ? DType::float32 : DType::bfloat16;
      std::array<std::int64_t, 3> asked{};  // at the start, after the warm-up, at the end
      runtime::run_loopback(kRanks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
        const Stream compute = Stream::cpu("compute");
        Attention attention({scheme, wire}, world->split(0, world->rank(), "context"), compute);
        const auto note = [&](std::size_t when) {
          world->barrier(compute);
          compute.synchronize(deadline());
          if (world->rank() == 0) asked[when] = runtime::system_allocations();
          world->barrier(compute);
          compute.synchronize(deadline());
        };
        for (std::size_t batch = 0; batch < masks.size(); ++batch) {
          if (batch == 0) note(0);
          if (batch == kBatches) note(1);
          // Tasks, and so sizes, are dealt anew each batch: the same ones come again.
          const Mask& mask = masks[name == "disaggregated" ? batch % kBatches : batch];
          const Layout layout = Layout::make(kind, mask, 1, kRanks);
          forward_and_backward(attention, mask, layout, world->rank(), kDim, compute);
        }
        note(2);
      });
      EXPECT_GE(asked[1] - asked[0], 2 * kRanks) << "too little memory to tell";
      EXPECT_EQ(asked[1], asked[2]) << show(scheme) << " over " << parallel::name(kind);
    }
  }
  // balanced_ring has one layout, disaggregated all but striped
  EXPECT_EQ(cases, 9 * layout_kinds().size() - 1 + 1);
}

}  // namespace
}  // namespace longhaul::parallel
