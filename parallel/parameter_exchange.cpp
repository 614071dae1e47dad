#include "parallel/parameter_exchange.h"

#include <utility>

#include "runtime/error.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/purpose.h"
#include "runtime/reserve.h"

namespace longhaul::parallel {

namespace ops = runtime::ops;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

template <class View>
View part(const View& flat, const ElementRange& range) {
  return flat.slice(0, range.begin, range.end);
}

}  // namespace

ParameterExchange::ParameterExchange(const ParameterTable& table, bool sharded,
                                     std::unique_ptr<runtime::Communicator> comm,
                                     const runtime::Stream& compute)
    : comm_(std::move(comm)),
      sharded_(sharded && comm_->size() > 1),
      compute_(compute),
      stream_(compute.sibling("gradients", 1)),
      sharding_(table, comm_->size()),
      elements_(table.elements()),
      updated_(sharded_ ? sharding_.owned(comm_->rank())
                        : std::vector<ElementRange>{{0, table.elements()}}),
      complete_(elements_),
      waiting_(sharding_.buckets().size()) {
  const runtime::Purpose purpose("messages of gradients between ranks");
  const auto take = [&](std::span<const std::int64_t> counts, DType dtype) {
    const runtime::MessageMemory memory =
        comm_->memory_of_segments(counts, dtype, stream_.device().kind);
    runtime::reserve_memory(stream_, memory.stream_bytes, memory.buffers);
    runtime::reserve_host_memory(stream_, memory.host_bytes, memory.buffers);
  };
  const int ranks = comm_->size();
  if (ranks == 1) return;
  for (const Bucket& bucket : sharding_.buckets())
    take(sharded_ ? bucket.counts : runtime::even_counts(bucket.range.elements(), ranks),
         DType::float32);
  if (sharded_) take(runtime::even_counts(ops::norm_chunks(elements_), ranks), DType::float64);
}

void ParameterExchange::reduce(TensorView gradients, ElementRange finished) {
  LONGHAUL_CHECK(finished.end == complete_, "gradients [", finished.begin, ", ", finished.end,
                 ") are finished where those before element ", complete_, " are due");
  complete_ = finished.begin;
  stream_.wait(compute_.record());
  for (; waiting_ > 0; --waiting_) {
    const Bucket& bucket = sharding_.buckets()[waiting_ - 1];
    if (bucket.range.begin < complete_) break;
    const TensorView values = part(gradients, bucket.range);
    if (sharded_) {
      // In place: a sum overwrites its own segment, which is never sent.
      comm_->reduce_scatter(values, part(gradients, bucket.owned(comm_->rank())), bucket.counts,
                            stream_);
    } else {
      comm_->all_reduce(values, stream_);
    }
  }
}

Tensor ParameterExchange::gradient_norm(ConstTensorView gradients) {
  LONGHAUL_CHECK(complete_ == 0, "the norm of gradients of which the first ", complete_,
                 " are not finished");
  complete_ = elements_;
  waiting_ = sharding_.buckets().size();
  compute_.wait(stream_.record());
  const Tensor sums({ops::norm_chunks(elements_)}, DType::float64, compute_);
  fill(sums, 0, compute_);
  for (const ElementRange& range : updated_) {
    const std::int64_t first = range.begin / ops::kNormChunk;
    const std::int64_t chunks = ops::norm_chunks(range.elements());
    ops::squares_by_chunk(part(gradients, range), part(sums.view(), {first, first + chunks}),
                          compute_);
  }
  if (sharded_) {
    // Each chunk's sum comes from its owner and zeros from the others: nothing is rounded.
    stream_.wait(compute_.record());
    comm_->all_reduce(sums, stream_);
    compute_.wait(stream_.record());
  }
  Tensor norm({1}, DType::float64, compute_);
  ops::norm_of_chunks(sums, norm, compute_);
  return norm;
}

void ParameterExchange::share(TensorView values) {
  if (!sharded_) return;
  stream_.wait(compute_.record());
  for (const Bucket& bucket : sharding_.buckets()) {
    comm_->all_gather(part(values, bucket.owned(comm_->rank())), part(values, bucket.range),
                      bucket.counts, stream_);
  }
  compute_.wait(stream_.record());
}

}  // namespace longhaul::parallel
