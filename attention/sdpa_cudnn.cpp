// The attention graphs through cuDNN's C++ frontend. Built by the host compiler; the only file that
// includes those headers.

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <cudnn_frontend.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "attention/sdpa_cudnn_impl.h"
#include "runtime/cuda_check_impl.h"

namespace longhaul::attention::detail {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;
using runtime::ExitCode;

enum Uid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLse,
  kDout,
  kDq,
  kDk,
  kDv,
  kQLengths,
  kKLengths,
  kOffsets = 100  ///< and the number of the tensor that they are of
};

/// The device that a graph is built for.
struct Target {
  std::shared_ptr<const fe::DeviceProperties> properties;
  int sm_version = 0;
};

/// Adds the tensors and the operation of a form to a graph.
class Builder {
 public:
  Builder(const SdpaForm& form, fe::graph::Graph& graph) : f_(form), graph_(graph) {
    q_ = operand("q", kQ, f_.heads, f_.q_rows, f_.q_step, f_.q_row_heads, f_.dim);
    k_ = operand("k", kK, f_.kv_heads, f_.k_rows, f_.k_step, f_.kv_row_heads, f_.dim);
    v_ = operand("v", kV, f_.kv_heads, f_.k_rows, f_.k_step, f_.kv_row_heads, f_.value_dim);
    if (!f_.ragged) return;
    q_lengths_ = counts("q_lengths", kQLengths, f_.batch, fe::DataType_t::INT32);
    k_lengths_ = counts("k_lengths", kKLengths, f_.batch, fe::DataType_t::INT32);
  }

  void forward() {
    auto options = fe::graph::SDPA_attributes().set_name("forward").set_generate_stats(true);
    set(options);
    auto [out, lse] = graph_.sdpa(q_, k_, v_, options);
    place(out, kOut, f_.heads, f_.q_rows, f_.q_step, f_.heads, f_.value_dim);
    lse->set_output(true).set_uid(kLse).set_dim(lse_dim()).set_stride(lse_stride());
    lse->set_data_type(fe::DataType_t::FLOAT);
    if (f_.ragged) lse->set_ragged_offset(offsets("lse", kLse));
  }

  void backward() {
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("backward")
                       .set_deterministic_algorithm(f_.deterministic);
    set(options);
    if (f_.ragged) options.set_max_total_seq_len_q(f_.q_total).set_max_total_seq_len_kv(f_.k_total);
    const Tensor out = operand("out", kOut, f_.heads, f_.q_rows, f_.q_step, f_.heads, f_.value_dim);
    const Tensor dout =
        operand("dout", kDout, f_.heads, f_.q_rows, f_.q_step, f_.q_row_heads, f_.value_dim);
    const Tensor lse = graph_.tensor(fe::graph::Tensor_attributes()
                                         .set_name("lse")
                                         .set_uid(kLse)
                                         .set_dim(lse_dim())
                                         .set_stride(lse_stride())
                                         .set_data_type(fe::DataType_t::FLOAT));
    if (f_.ragged) lse->set_ragged_offset(offsets("lse", kLse));
    auto [dq, dk, dv] = graph_.sdpa_backward(q_, k_, v_, out, dout, lse, options);
    place(dq, kDq, f_.heads, f_.q_rows, f_.q_step, f_.heads, f_.dim);
    place(dk, kDk, f_.kv_heads, f_.k_rows, f_.k_step, f_.kv_heads, f_.dim);
    place(dv, kDv, f_.kv_heads, f_.k_rows, f_.k_step, f_.kv_heads, f_.value_dim);
  }

 private:
  template <class Options>
  void set(Options& options) const {
    options.set_attn_scale(f_.scale);
    if (f_.mask.diagonal != Diagonal::none) {
      options.set_diagonal_alignment(f_.mask.diagonal == Diagonal::top_left
                                         ? fe::DiagonalAlignment_t::TOP_LEFT
                                         : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
    }
    if (f_.mask.left >= 0) options.set_diagonal_band_left_bound(static_cast<int>(f_.mask.left));
    if (f_.mask.right >= 0) options.set_diagonal_band_right_bound(static_cast<int>(f_.mask.right));
    if (f_.ragged)
      options.set_padding_mask(true).set_seq_len_q(q_lengths_).set_seq_len_kv(k_lengths_);
  }

  Tensor counts(const char* name, std::int64_t uid, std::int64_t size, fe::DataType_t type) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim({size, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(type));
  }
  Tensor offsets(const std::string& of, Uid uid) {
    return counts((of + "_offsets").c_str(), kOffsets + uid, f_.batch + 1, fe::DataType_t::INT64);
  }

  std::vector<std::int64_t> stride(std::int64_t rows, std::int64_t step, std::int64_t row_heads,
                                   std::int64_t dim) const {
    const std::int64_t row = row_heads * dim;
    return {(f_.ragged ? rows : step) * row, dim, row, 1};
  }
  Tensor operand(const char* name, Uid uid, std::int64_t heads, std::int64_t rows,
                 std::int64_t step, std::int64_t row_heads, std::int64_t dim) {
    Tensor tensor = graph_.tensor(fe::graph::Tensor_attributes()
                                      .set_name(name)
                                      .set_uid(uid)
                                      .set_dim({f_.batch, heads, rows, dim})
                                      .set_stride(stride(rows, step, row_heads, dim))
                                      .set_data_type(fe::DataType_t::BFLOAT16));
    if (f_.ragged) tensor->set_ragged_offset(offsets(name, uid));
    return tensor;
  }
  void place(const Tensor& result, Uid uid, std::int64_t heads, std::int64_t rows,
             std::int64_t step, std::int64_t row_heads, std::int64_t dim) {
    result->set_output(true)
        .set_uid(uid)
        .set_dim({f_.batch, heads, rows, dim})
        .set_stride(stride(rows, step, row_heads, dim))
        .set_data_type(fe::DataType_t::BFLOAT16);
    if (f_.ragged) result->set_ragged_offset(offsets(std::to_string(uid), uid));
  }
  std::vector<std::int64_t> lse_dim() const { return {f_.batch, f_.heads, f_.q_rows, 1}; }
  std::vector<std::int64_t> lse_stride() const {
    if (f_.ragged) return {f_.q_rows * f_.heads, 1, f_.heads, 1};
    if (f_.pass == Pass::forward) return {f_.q_step * f_.heads, 1, f_.heads, 1};
    return {f_.heads * f_.q_rows, f_.q_rows, 1, 1};  // cuDNN takes no other
  }

  const SdpaForm& f_;
  fe::graph::Graph& graph_;
  Tensor q_, k_, v_, q_lengths_, k_lengths_;
};

void require(fe::error_t error, const char* stage, const SdpaForm& form, ExitCode code) {
  if (error.is_good()) return;
  runtime::fail(code, "cuDNN ", cudnnGetVersion(), " refused at '", stage, "' the attention graph ",
                to_string(form), ": ", error.get_message(), "; the exact kernels do without it");
}

std::shared_ptr<fe::graph::Graph> build(const SdpaForm& form, const Target& target) {
  auto graph = std::make_shared<fe::graph::Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  graph->set_device_properties(target.properties);
  graph->set_sm_version(target.sm_version);
  Builder builder(form, *graph);
  form.pass == Pass::forward ? builder.forward() : builder.backward();
  const auto step = [&](const char* stage, const fe::error_t& error) {
    require(error, stage, form, ExitCode::config);
  };
  step("validation", graph->validate());
  step("operation graph", graph->build_operation_graph());
  step("heuristics", graph->create_execution_plans({fe::HeurMode_t::A}));
  step("support", graph->check_support());
  step("plan", graph->build_plans());
  return graph;
}

/// What runs graphs on a device. Never destroyed: freeing on a device waits for all its work.
struct Runner {
  explicit Runner(int index) {
    const runtime::Device device{runtime::DeviceKind::cuda, index};
    runtime::detail::use_device(device);
    auto properties = std::make_shared<fe::DeviceProperties>();
    properties->set_device_id(index);
    auto built = properties->build();
    if (built.is_bad())
      runtime::fail(ExitCode::launch, "cuDNN does not describe device ", index, ": ",
                    built.get_message());
    int major = 0, minor = 0;
    LONGHAUL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    LONGHAUL_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    target = {std::move(properties), 10 * major + minor};
    if (const auto made = cudnnCreate(&handle); made != CUDNN_STATUS_SUCCESS)
      runtime::fail(ExitCode::launch, "cuDNN does not start on device ", index, ": ",
                    cudnnGetErrorString(made));
    LONGHAUL_CUDA_CHECK(cudaStreamCreateWithFlags(&own_stream, cudaStreamNonBlocking));
  }

  void run(const fe::graph::Graph& graph, const SdpaForm& form,
           std::unordered_map<std::int64_t, void*>& pointers, void* workspace,
           cudaStream_t stream) {
    const std::lock_guard lock(running);
    if (const auto set = cudnnSetStream(handle, stream); set != CUDNN_STATUS_SUCCESS)
      runtime::fail(ExitCode::internal, "cuDNN does not take a stream: ", cudnnGetErrorString(set));
    require(graph.execute(handle, pointers, workspace), "execution", form, ExitCode::internal);
  }

  Target target;
  cudnnHandle_t handle = nullptr;
  cudaStream_t own_stream = nullptr;
  std::mutex running;  ///< the handle has one stream at a time
};

std::unordered_map<std::int64_t, void*> pointers_of(const SdpaForm& form, const SdpaOperands& o) {
  const auto as_void = [](const auto* pointer) {
    return const_cast<void*>(static_cast<const void*>(pointer));
  };
  std::unordered_map<std::int64_t, void*> all{
      {kQ, as_void(o.q)}, {kK, as_void(o.k)}, {kV, as_void(o.v)}, {kOut, o.out}, {kLse, o.lse}};
  const bool backward = form.pass == Pass::backward;
  if (backward) all.insert({{kDout, as_void(o.dout)}, {kDq, o.dq}, {kDk, o.dk}, {kDv, o.dv}});
  if (!form.ragged) return all;
  all.insert({{kQLengths, as_void(o.q_lengths)},
              {kKLengths, as_void(o.k_lengths)},
              {kOffsets + kQ, as_void(o.q_offsets)},
              {kOffsets + kK, as_void(o.k_offsets)},
              {kOffsets + kV, as_void(o.v_offsets)},
              {kOffsets + kOut, as_void(o.out_offsets)},
              {kOffsets + kLse, as_void(o.lse_offsets)}});
  if (backward) {
    all.insert({{kOffsets + kDout, as_void(o.dout_offsets)},
                {kOffsets + kDq, as_void(o.dq_offsets)},
                {kOffsets + kDk, as_void(o.dk_offsets)},
                {kOffsets + kDv, as_void(o.dv_offsets)}});
  }
  return all;
}

class CudnnSdpa final : public Sdpa {
 public:
  CudnnSdpa(const SdpaForm& form, Runner& runner)
      : form_(form),
        runner_(runner),
        graph_(build(form, runner.target)),
        workspace_bytes_(graph_->get_workspace_size()) {}
  std::int64_t workspace_bytes() const override { return workspace_bytes_; }
  void run(const SdpaOperands& operands, const runtime::Stream& stream) const override {
    run(operands, runtime::detail::cuda_stream(stream));
  }
  void run(const SdpaOperands& operands, cudaStream_t stream) const {
    auto pointers = pointers_of(form_, operands);
    runner_.run(*graph_, form_, pointers, operands.workspace, stream);
  }

 private:
  const SdpaForm form_;
  Runner& runner_;
  const std::shared_ptr<fe::graph::Graph> graph_;
  const std::int64_t workspace_bytes_;
};

/// The same kernel over few rows.
SdpaForm small(SdpaForm form) {
  constexpr std::int64_t kRows = 128;
  form.batch = 1;
  form.k_rows = kRows;
  if (form.q_rows > 1) form.q_rows = kRows;  // one query has kernels of its own
  form.q_step = form.ragged ? 0 : form.q_rows;
  form.k_step = form.ragged ? 0 : kRows;
  form.q_total = form.k_total = form.q_total > 0 ? kRows : 0;
  form.q_row_heads = form.heads;
  form.kv_row_heads = form.kv_heads;
  form.scale = 1;
  return form;
}

/// Graphs of one device.
class Graphs {
 public:
  explicit Graphs(int index) : runner_(index) {}

  std::shared_ptr<const Sdpa> get(const SdpaForm& form) {
    if (auto found = find(form)) return found;
    const std::lock_guard lock(building_);
    if (auto found = find(form)) return found;  // another thread was first
    if (const SdpaForm like = small(form); !find(like)) {
      auto graph = std::make_shared<const CudnnSdpa>(like, runner_);
      run_once(like, *graph);
      add(like, graph);
      if (like == form) return graph;
    }
    auto graph = std::make_shared<const CudnnSdpa>(form, runner_);
    add(form, graph);
    return graph;
  }

 private:
  struct Entry {
    std::shared_ptr<const CudnnSdpa> graph;
    std::uint64_t used = 0;
  };
  /// Documents of other lengths every batch ask for other graphs.
  static constexpr std::size_t kMost = 1024;

  std::shared_ptr<const CudnnSdpa> find(const SdpaForm& form) {
    const std::lock_guard lock(finding_);
    const auto found = graphs_.find(form);
    if (found == graphs_.end()) return nullptr;
    found->second.used = ++uses_;
    return found->second.graph;
  }
  void add(const SdpaForm& form, std::shared_ptr<const CudnnSdpa> graph) {
    const std::lock_guard lock(finding_);
    if (graphs_.size() >= kMost) {
      graphs_.erase(std::ranges::min_element(graphs_, {},
                                             [](const auto& entry) { return entry.second.used; }));
    }
    graphs_[form] = {std::move(graph), ++uses_};
  }

  /// So that nothing of it is loaded when a stream first runs it, maybe while it waits for a peer.
  /// On zeros, in memory that is kept: freeing waits for all the device's work.
  void run_once(const SdpaForm& form, const CudnnSdpa& graph) {
    const std::int64_t rows = std::max(form.q_rows, form.k_rows),
                       dim = std::max(form.dim, form.value_dim);
    const std::int64_t tensor_bytes = rows * form.heads * dim * 2;
    const std::int64_t lse_bytes = rows * form.heads * 4;
    const std::int64_t bytes =
        tensor_bytes + lse_bytes + 4096 + 4 * tensor_bytes + 4096 + graph.workspace_bytes();
    if (bytes > memory_bytes_) {
      LONGHAUL_CUDA_CHECK(cudaMalloc(&memory_, static_cast<std::size_t>(bytes)));
      memory_bytes_ = bytes;
    }
    cudaStream_t stream = runner_.own_stream;
    LONGHAUL_CUDA_CHECK(
        cudaMemsetAsync(memory_, 0, static_cast<std::size_t>(memory_bytes_), stream));
    std::byte* at = static_cast<std::byte*>(memory_);
    SdpaOperands o;
    o.q = o.k = o.v = o.dout = at;
    o.lse = reinterpret_cast<float*>(at + tensor_bytes);
    const std::byte* zeros = at + tensor_bytes + lse_bytes;  // one entry, of no rows, at 0
    o.q_lengths = o.k_lengths = reinterpret_cast<const std::int32_t*>(zeros);
    o.q_offsets = o.k_offsets = o.v_offsets = o.dout_offsets = o.out_offsets = o.lse_offsets =
        o.dq_offsets = o.dk_offsets = o.dv_offsets = reinterpret_cast<const std::int64_t*>(zeros);
    at += tensor_bytes + lse_bytes + 4096;
    o.out = at;
    o.dq = at + tensor_bytes;
    o.dk = at + 2 * tensor_bytes;
    o.dv = at + 3 * tensor_bytes;
    o.workspace = at + 4 * tensor_bytes + 4096 - reinterpret_cast<std::uintptr_t>(at) % 256;
    graph.run(o, stream);
    LONGHAUL_CUDA_CHECK(cudaStreamSynchronize(stream));
  }

  Runner runner_;
  std::mutex building_, finding_;
  std::map<SdpaForm, Entry> graphs_;
  std::uint64_t uses_ = 0;
  void* memory_ = nullptr;  // read and written by run_once alone
  std::int64_t memory_bytes_ = 0;
};

}  // namespace

std::shared_ptr<const Sdpa> sdpa(const SdpaForm& form, runtime::Device device) {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, std::unique_ptr<Graphs>>();
  runtime::detail::use_device(device);
  Graphs* graphs = nullptr;
  {
    const std::lock_guard lock(mutex);
    auto& found = devices[device.index];
    if (!found) found = std::make_unique<Graphs>(device.index);
    graphs = found.get();
  }
  return graphs->get(form);
}

std::string no_sdpa_reason() { return {}; }

std::int64_t sdpa_workspace_bytes(const SdpaForm& form, const std::string& device_properties,
                                  int sm_version) {
  std::vector<std::uint8_t> text(device_properties.begin(), device_properties.end());
  text.push_back(0);
  auto properties = std::make_shared<fe::DeviceProperties>();
  require(properties->deserialize(text), "device properties", form, ExitCode::config);
  return build(form, {std::move(properties), sm_version})->get_workspace_size();
}

}  // namespace longhaul::attention::detail
