#pragma once
// A communicator that hands everything to another one: tests override what they watch or hold up.

#include <memory>
#include <utility>
#include <vector>

#include "runtime/comm/communicator.h"

namespace longhaul::test {

class ForwardingCommunicator : public runtime::Communicator {
 public:
  explicit ForwardingCommunicator(std::unique_ptr<runtime::Communicator> inner)
      : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  void exchange(std::vector<runtime::SendMessage> sends,
                std::vector<runtime::ReceiveMessage> receives, const std::string& what,
                const runtime::Stream& stream) override {
    inner_->exchange(std::move(sends), std::move(receives), what, stream);
  }
  void all_reduce(runtime::TensorView values, const runtime::Stream& stream) override {
    inner_->all_reduce(values, stream);
  }
  void all_gather(runtime::ConstTensorView input, runtime::TensorView output,
                  std::span<const std::int64_t> counts, const runtime::Stream& stream) override {
    inner_->all_gather(input, output, counts, stream);
  }
  void reduce_scatter(runtime::ConstTensorView input, runtime::TensorView output,
                      std::span<const std::int64_t> counts,
                      const runtime::Stream& stream) override {
    inner_->reduce_scatter(input, output, counts, stream);
  }
  runtime::MessageMemory memory_of(const runtime::GroupBytes& group,
                                   runtime::DeviceKind kind) const override {
    return inner_->memory_of(group, kind);
  }
  runtime::MessageMemory memory_of_segments(std::span<const std::int64_t> counts,
                                            runtime::DType dtype,
                                            runtime::DeviceKind kind) const override {
    return inner_->memory_of_segments(counts, dtype, kind);
  }
  void barrier(const runtime::Stream& stream) override { inner_->barrier(stream); }
  std::unique_ptr<runtime::Communicator> split(int color, int key,
                                               const std::string& name) override {
    return inner_->split(color, key, name);
  }
  double set_timeout(double seconds) override { return inner_->set_timeout(seconds); }
  std::int64_t sent_bytes() const override { return inner_->sent_bytes(); }
  void reset_sent_bytes() override { inner_->reset_sent_bytes(); }
  std::span<const std::int64_t> exchanged_bytes() const override {
    return inner_->exchanged_bytes();
  }

 private:
  std::unique_ptr<runtime::Communicator> inner_;
};

}  // namespace longhaul::test
