// Gradients of a run on the CPU. A work item is a segment and a head; the states that its chunks
// begin from are made again, a group of chunks at a time from states kept between groups, and the
// gradient of the state goes through the chunks from the last. The heads of a key head add to dq
// and dk of a chunk in their order: an item waits for its turn, which in the usual order of work
// has come already.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_backward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <hwy/cache_control.h>

#include <thread>

#include "attention/linear_plan_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using detail::Segment;
using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

/// Up to so many states are kept at once; of more chunks, about twice the square root.
constexpr std::int64_t kKeptChunks = 64;

/// Chunks of a group, and groups, of a segment of so many chunks.
struct Groups {
  explicit Groups(std::int64_t chunks)
      : size(chunks <= kKeptChunks
                 ? chunks
                 : static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(chunks))))),
        count(size == 0 ? 0 : (chunks + size - 1) / size) {}
  std::int64_t size, count;
  std::int64_t states() const { return size + count; }
};

class SweepBackwardPlan;

/// What the workers of one call share.
struct Shared {
  std::int64_t* done;  // chunks that an item has added to dq and dk
  double* dlog_decay;  // of an item, Decay::head
  Shared(Scratch& s, std::int64_t items)
      : done(s.array<std::int64_t>(items)), dlog_decay(s.array<double>(items)) {}
};

class Worker {
 public:
  Worker(Scratch& s, const SweepBackwardPlan& plan, const SweepBackwardTensors& tensors,
         const Shared& shared);
  void run(std::int64_t item);

 private:
  Matrix kept(std::int64_t i) const { return states.from_row(i * sizes.dim()); }
  void copy_state(Matrix from, Matrix to) const {
    std::copy_n(from.data, sizes.dim() * from.ld, to.data);
  }
  std::int64_t row_of(std::int64_t chunk) const { return segment->begin + chunk * kChunk; }
  std::int64_t rows_of_chunk(std::int64_t chunk) const {
    return std::min(kChunk, segment->end - row_of(chunk));
  }
  /// U and the errors of a group's i-th chunk, kept under the delta rule; else U is v, read again.
  Matrix u_of(std::int64_t i) const { return u.from_row(sizes.delta() ? i * kChunk : 0); }
  Matrix error_of(std::int64_t i) const { return error.from_row(i * kChunk); }
  void load(std::int64_t chunk, KeyUses uses);
  void solve(std::int64_t chunk, std::int64_t i, Matrix before);
  /// The state before a chunk, which lies in `kept`; none where no state enters.
  Matrix entering(std::int64_t chunk, Matrix kept) const {
    return fresh && chunk == 0 ? Matrix{} : kept;
  }
  void advance(std::int64_t chunk, std::int64_t i, Matrix before, Matrix after);
  void causal();
  void whole();
  void group_gradients(std::int64_t begin, std::int64_t end);
  void chunk_gradients(std::int64_t chunk, Matrix before, Matrix written, Matrix errors);
  Matrix transposed(Matrix of) const;
  void overlap(Matrix before, Matrix dafter) const;
  void mixing_gradients(std::int64_t row, std::int64_t count, Matrix errors);
  void store_gates(std::int64_t chunk);
  void add_key_gradients(std::int64_t row, std::int64_t count);

  const SweepBackwardPlan& plan;
  const SweepBackwardTensors& t;
  const Shared& shared;
  const ChunkSizes& sizes;
  std::unique_ptr<ChunkKeys> keys;
  Updates updates;
  Matrix states, state, dstate, rows;  // rows: [E, D], for S^T and dS^T
  Matrix u, error;                     // of a group's chunks
  Matrix dout, du, minus_dv;
  Matrix u_transposed;
  KeyGradients gradients;
  // The item.
  const Segment* segment = nullptr;
  std::int64_t item = 0, head = 0;
  bool fresh = false, dfresh = false;  // no state enters; no gradient of the state that leaves
};

class SweepBackwardPlan final : public CpuLinearPlan {
 public:
  SweepBackwardPlan(const LinearShape& shape, const Recurrence& recurrence,
                    std::vector<std::int64_t> starts, const BlockPlace& place)
      : CpuLinearPlan(LinearPass::sweep_backward, shape, recurrence, std::move(starts), place) {
    for (const Segment& segment : segments) {
      const Groups groups(recurrence.causal ? segment.chunks() : 0);
      most_states = std::max(most_states, groups.states());
      most_chunks = std::max(most_chunks, groups.size);
    }
    hold(carved_bytes([this](Scratch& s) {
           Scratch nothing;
           Worker(s, *this, {}, Shared(nothing, 0));
         }),
         carved_bytes([this](Scratch& s) { Shared(s, items()); }));
  }
  std::int64_t items() const {
    return static_cast<std::int64_t>(segments.size()) * sizes.shape.heads;
  }
  std::int64_t most_states = 0, most_chunks = 1;  // kept; in a group

 protected:
  void run(const SweepBackwardTensors& tensors, const BlockMemory& memory,
           const Stream& stream) const override {
    stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
      Scratch carving(this->shared(scratch));
      const Shared shared(carving, items());
      std::fill_n(shared.done, items(), 0);
      work(items(), scratch, [&](Scratch& s) { return Worker(s, *this, tensors, shared); });
      finish(tensors, shared);
    });
  }

 private:
  void finish(const SweepBackwardTensors& t, const Shared& shared) const {
    for (std::int64_t head = 0; head < sizes.shape.heads; ++head) {
      if (!segments.front().first && t.dstate_in.data() != nullptr) {
        for (std::int64_t e = 0; e < sizes.value_dim(); ++e) {
          std::fill_n(
              t.dstate_in.as<float>() + e * t.dstate_in.stride(0) + head * t.dstate_in.stride(1),
              sizes.dim(), 0.0f);
        }
      }
      if (sizes.how.decay != Decay::head || t.dlog_decay.data() == nullptr) continue;
      double sum = 0;
      for (std::int64_t item = head; item < items(); item += sizes.shape.heads)
        sum += shared.dlog_decay[item];
      t.dlog_decay.as<float>()[head * t.dlog_decay.stride(1)] += static_cast<float>(sum);
    }
  }
};

Worker::Worker(Scratch& s, const SweepBackwardPlan& call_plan, const SweepBackwardTensors& tensors,
               const Shared& of_call)
    : plan(call_plan),
      t(tensors),
      shared(of_call),
      sizes(call_plan.sizes),
      keys(make_chunk_keys(s, sizes, true)),
      updates(s, sizes),
      states(matrix(s, plan.most_states * sizes.dim(), sizes.value_dim())),
      state(matrix(s, sizes.dim(), sizes.value_dim())),
      dstate(matrix(s, sizes.dim(), sizes.value_dim())),
      rows(matrix(s, sizes.value_dim(), sizes.dim())),
      u(matrix(s, sizes.delta() ? plan.most_chunks * kChunk : kChunk, sizes.value_dim())),
      error(matrix(s, sizes.delta() ? plan.most_chunks * kChunk : 0, sizes.value_dim())),
      dout(matrix(s, kChunk, sizes.value_dim())),
      du(matrix(s, kChunk, sizes.value_dim())),
      minus_dv(matrix(s, sizes.delta() ? kChunk : 0, sizes.value_dim())),
      u_transposed(matrix(s, sizes.value_dim(), kChunk)) {
  const bool delta = sizes.delta();
  gradients.dq = matrix(s, kChunk, sizes.dim());
  gradients.dk = matrix(s, kChunk, sizes.dim());
  gradients.dk_read = matrix(s, delta ? kChunk : 0, sizes.dim());
  gradients.dweights = matrix(s, kChunk, kChunk);
  gradients.doverlaps = matrix(s, delta ? kChunk : 0, kChunk);
  gradients.overlap = s.floats(sizes.columns());
  gradients.dlog_decay =
      matrix(s, sizes.gated() ? kChunk : 0, sizes.how.decay == Decay::vector ? sizes.dim() : 1);
}

void Worker::run(std::int64_t which) {
  item = which;
  head = item % sizes.shape.heads;
  segment = &plan.segments[static_cast<std::size_t>(item / sizes.shape.heads)];
  shared.dlog_decay[item] = 0;
  const ConstTensorView before = segment->first ? t.state_in : ConstTensorView(),
                        after = segment->last ? t.dstate_out : ConstTensorView();
  fresh = before.data() == nullptr;
  dfresh = after.data() == nullptr;
  load_state(before, head, sizes, state, rows);
  load_state(after, head, sizes, dstate, rows);
  sizes.how.causal ? causal() : whole();
  if (segment->first && t.dstate_in.data() != nullptr)
    store_state(dstate, sizes.value_dim(), t.dstate_in, head, sizes, rows);
}

void Worker::load(std::int64_t chunk, KeyUses uses) {
  keys->load(t.inputs, head, row_of(chunk), rows_of_chunk(chunk), uses);
  updates.load_beta(*keys, t.inputs, head, row_of(chunk));
}

/// U of the chunk that is loaded.
void Worker::solve(std::int64_t chunk, std::int64_t i, Matrix before) {
  load_rows(attention::rows_of(t.inputs.v, head, row_of(chunk), rows_of_chunk(chunk)), 1, u_of(i));
  updates.solve(*keys, before, sizes.value_dim(), false, u_of(i), error_of(i));
}

/// after <- the state after the chunk, which `before` may lie in.
void Worker::advance(std::int64_t chunk, std::int64_t i, Matrix before, Matrix after) {
  load(chunk, {});
  solve(chunk, i, entering(chunk, before));
  updates.write(*keys, u_of(i), sizes.value_dim(), entering(chunk, before), after);
}

void Worker::causal() {
  const std::int64_t chunks = segment->chunks();
  const Groups groups(chunks);
  for (std::int64_t group = 0; group < groups.count; ++group) {
    copy_state(state, kept(groups.size + group));
    if (group + 1 == groups.count) break;
    for (std::int64_t chunk = group * groups.size; chunk < (group + 1) * groups.size; ++chunk)
      advance(chunk, 0, state, state);
  }
  for (std::int64_t group = groups.count - 1; group >= 0; --group) {
    copy_state(kept(groups.size + group), kept(0));
    group_gradients(group * groups.size, std::min(chunks, (group + 1) * groups.size));
  }
}

/// Of chunks [begin, end), from the state before them in kept(0).
void Worker::group_gradients(std::int64_t begin, std::int64_t end) {
  const std::int64_t last = end - 1 - begin;
  for (std::int64_t i = 0; i < last; ++i) advance(begin + i, i, kept(i), kept(i + 1));
  for (std::int64_t i = last; i >= 0; --i) {
    const std::int64_t chunk = begin + i;
    const Matrix before = entering(chunk, kept(i));
    load(chunk, {.queries = true, .weights = true});
    if (i == last || !sizes.delta()) solve(chunk, i, before);
    chunk_gradients(chunk, before, u_of(i), error_of(i));
  }
}

/// Of the chunk that is loaded: the state before it, U and the errors are given.
void Worker::chunk_gradients(std::int64_t chunk, Matrix before, Matrix written, Matrix errors) {
  const std::int64_t row = row_of(chunk), count = rows_of_chunk(chunk), dim = sizes.dim(),
                     width = sizes.value_dim();
  const bool delta = sizes.delta();
  const KeyGradients& g = gradients;
  const bool last = chunk + 1 == segment->chunks();
  const Matrix dafter = dfresh && last ? Matrix{} : dstate;
  load_rows(attention::rows_of(t.dout, head, row, count), 1, dout);
  updates.solve_backward(*keys, dout, dafter, du);

  transpose(count, width, written, u_transposed);
  lower_of_product(count, width, dout, u_transposed, g.dweights);
  for (std::int64_t i = 0; i < count; ++i) clear_right(g.dweights.row(i), i, i + 1);
  if (delta) {
    mixing_gradients(row, count, errors);
    updates.times_beta(*keys, -1, du, minus_dv);
    updates.times_beta(*keys, 1, du, du);
  }
  store_rows(du, t.dv, head, row, count);

  const Matrix read = transposed(before);
  read_state(count, dim, width, dout, read, g.dq);
  if (delta) read_state(count, dim, width, minus_dv, read, g.dk_read);
  if (sizes.gated()) overlap(before, dafter);
  read_state(count, dim, width, written, transposed(dafter), g.dk);
  keys->backward(g);
  if (sizes.gated()) store_gates(chunk);
  add_key_gradients(row, count);
  if (chunk > 0 || (segment->first && t.dstate_in.data() != nullptr))
    updates.write_backward(*keys, dout, minus_dv, is_zero(dafter), dstate);
}

/// In `rows`, until the next; zero of zero.
Matrix Worker::transposed(Matrix of) const {
  if (is_zero(of)) return of;
  transpose(sizes.dim(), sizes.value_dim(), of, rows);
  return rows;
}

/// gradients.overlap <- the sum over value dims of the state before a chunk and the gradient of
/// that after it.
void Worker::overlap(Matrix before, Matrix dafter) const {
  float* to = gradients.overlap;
  std::fill_n(to, sizes.columns(), 0.0f);
  if (is_zero(before) || is_zero(dafter)) return;
  for (std::int64_t d = 0; d < sizes.dim(); ++d)
    to[d] = dot(sizes.value_columns(), before.row(d), dafter.row(d));
}

/// From dR in du: dbeta, and the gradient of A0.
void Worker::mixing_gradients(std::int64_t row, std::int64_t count, Matrix errors) {
  const KeyGradients& g = gradients;
  lower_of_product(count, sizes.value_dim(), du, u_transposed, g.doverlaps);
  for (std::int64_t i = 0; i < count; ++i) {
    clear_right(g.doverlaps.row(i), i, i);
    const std::int64_t columns = padded_to_vectors(i);
    const float dbeta = dot(sizes.value_columns(), du.row(i), errors.row(i)) -
                        dot(columns, g.doverlaps.row(i), keys->overlaps.row(i));
    t.dbeta.as<float>()[(row + i) * t.dbeta.stride(0) + head * t.dbeta.stride(1)] = dbeta;
    scaled(columns, -updates.beta[i], g.doverlaps.row(i), g.doverlaps.row(i));
  }
}

void Worker::store_gates(std::int64_t chunk) {
  const Matrix da = gradients.dlog_decay;
  const std::int64_t row = row_of(chunk), count = rows_of_chunk(chunk);
  const bool scalar = sizes.how.decay != Decay::vector;
  if (chunk == 0 && segment->starts)
    std::fill_n(da.row(0), scalar ? 1 : sizes.columns(), 0.0f);  // not even a NaN reaches a start
  if (sizes.how.decay == Decay::vector) return store_rows(da, t.dlog_decay, head, row, count);
  for (std::int64_t i = 0; i < count; ++i) {
    if (sizes.how.decay == Decay::head) {
      shared.dlog_decay[item] += static_cast<double>(*da.row(i));
    } else {
      t.dlog_decay.as<float>()[(row + i) * t.dlog_decay.stride(0) + head * t.dlog_decay.stride(1)] =
          *da.row(i);
    }
  }
}

void Worker::add_key_gradients(std::int64_t row, std::int64_t count) {
  const std::int64_t group = sizes.shape.heads / sizes.shape.key_heads,
                     key_head = sizes.key_head(head);
  const bool first = head % group == 0;
  std::atomic_ref done(shared.done[item]);
  if (!first) {
    const std::atomic_ref before(shared.done[item - 1]);
    for (int spins = 0; before.load(std::memory_order_acquire) <= done.load(); ++spins) {
      if (spins < 64) {
        hwy::Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  store_rows(gradients.dq, t.dq, key_head, row, count, !first);
  store_rows(gradients.dk, t.dk, key_head, row, count, !first);
  done.fetch_add(1, std::memory_order_release);
}

/// Every token reads the sum over all of them.
void Worker::whole() {
  const std::int64_t chunks = segment->chunks(), dim = sizes.dim(), width = sizes.value_dim();
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t row = row_of(chunk), count = rows_of_chunk(chunk);
    load(chunk, {.queries = true});
    solve(chunk, 0, state);
    load_rows(attention::rows_of(t.dout, head, row, count), 1, dout);
    transpose(dim, width, state, rows);
    product<Operand::rows, Into::store>(count, dim, width, dout, rows, gradients.dq);
    for (std::int64_t i = 0; i < count; ++i)
      scaled(sizes.columns(), sizes.how.scale, gradients.dq.row(i), gradients.dq.row(i));
    transpose(dim, width, dstate, rows);
    product<Operand::rows, Into::store>(count, dim, width, u, rows, gradients.dk);
    product<Operand::rows, Into::store>(count, width, dim, keys->k, dstate, du);
    store_rows(du, t.dv, head, row, count);
    add_key_gradients(row, count);
  }
}

}  // namespace

std::shared_ptr<const LinearPlan> plan_sweep_backward(const LinearShape& shape,
                                                      const Recurrence& recurrence,
                                                      std::vector<std::int64_t> starts,
                                                      const BlockPlace& place) {
  return std::make_shared<const SweepBackwardPlan>(shape, recurrence, std::move(starts), place);
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
