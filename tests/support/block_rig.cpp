#include "tests/support/block_rig.h"

#include <mutex>

#include "models/rope.h"
#include "runtime/comm/loopback.h"
#include "runtime/ops/rope.h"
#include "tests/support/differences.h"
#include "tests/support/host_tensors.h"

namespace longhaul::test {
namespace {

using models::BlockNames;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;
using Values = std::vector<double>;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

/// One rank with one block.
class BlockRig {
 public:
  BlockRig(const BlockJob& job, std::unique_ptr<runtime::Communicator> world)
      : rank(world->rank()),
        stream(runtime::Stream::cpu("compute", job.threads)),
        block(job.block.make(job.dtype, table_)),
        store(table_, job.dtype, stream),
        attention_({}, std::move(world), stream),
        resources_{store, attention_, stream},
        mask_(attention::Mask::documents(offsets_of(job.lengths))),
        layout(parallel::Layout::make(job.layout, mask_, 1, job.ranks)) {
    set_parameters();
    store.refresh_working_copy(stream);
    store.drop_gradients();
    const OracleRows rows = rows_of_documents(job.lengths);
    const auto tokens = layout.tokens_of(rank);
    Values positions;
    for (const std::int64_t token : tokens)
      positions.push_back(static_cast<double>(rows.positions[at(token)]));
    const auto n = static_cast<std::int64_t>(tokens.size());
    positions_ = make_tensor(positions, {n}, DType::int32, stream);
    const models::Rope rope = models::make_rope({job.block.rope_dim, kBlockRopeTheta});
    std::vector<models::RopeTables> ropes(1);
    ropes[0].cosines = Tensor({n, rope.dims / 2}, DType::float32, stream);
    ropes[0].sines = Tensor({n, rope.dims / 2}, DType::float32, stream);
    runtime::ops::rope_table(positions_, rope.frequencies, rope.attention_factor, ropes[0].cosines,
                             ropes[0].sines, stream);
    batch_.positions = positions_;
    batch_.attention.push_back(attention_.batch(mask_, layout));
    context_.emplace(models::PassContext{resources_, batch_, std::move(ropes), {}});
  }

  std::unique_ptr<models::BlockPass> begin() const { return block->begin(*context_); }
  /// This rank's rows of [n,h].
  Tensor local(const Values& all, std::int64_t hidden, DType dtype) const {
    Values mine;
    for (const std::int64_t token : layout.tokens_of(rank))
      mine.insert(mine.end(), all.begin() + token * hidden, all.begin() + (token + 1) * hidden);
    return make_tensor(mine, {layout.rows(rank), hidden}, dtype, stream);
  }
  /// Its rows into those of all.
  void place(const Tensor& rows, Values& all) const {
    const Values mine = read(rows, stream);
    const std::int64_t hidden = rows.size(1);
    std::int64_t row = 0;
    for (const std::int64_t token : layout.tokens_of(rank)) {
      std::copy_n(mine.begin() + row * hidden, hidden, all.begin() + token * hidden);
      ++row;
    }
  }
  NamedValues named(const TensorView& flat) const {
    NamedValues values;
    for (const parallel::Parameter& parameter : store.table().parameters())
      values[parameter.name] = read(models::view_of(flat, parameter), stream);
    return values;
  }

 private:
  parallel::ParameterTable table_;

 public:
  const int rank;
  const runtime::Stream stream;
  const std::unique_ptr<models::Block> block;
  models::ParameterStore store;

 private:
  void set_parameters() {
    unsigned seed = 1;
    for (const parallel::Parameter& parameter : store.table().parameters()) {
      Values values = random_values(parameter.range.elements(), seed++, true);
      const bool norm = parameter.name.find("norm") != std::string::npos;
      for (double& value : values) value = norm ? 1 + value / 2 : value / 2;
      copy(make_tensor(values, {parameter.range.elements()}, DType::float32, stream),
           store.values().slice(0, parameter.range.begin, parameter.range.end), stream);
    }
    store.values_changed();
  }

  parallel::Attention attention_;
  const models::Resources resources_;
  const attention::Mask mask_;

 public:
  const parallel::Layout layout;

 private:
  Tensor positions_;
  models::Batch batch_;
  std::optional<models::PassContext> context_;
};

void go_through(models::Stages stages) {
  while (stages.advance()) {
  }
}

models::BranchShape branch(std::int64_t hidden, DType dtype) {
  models::BranchShape shape;
  shape.hidden = hidden;
  shape.dtype = dtype;
  return shape;
}

/// A case of a block class made from a shape, but for its branch.
template <class B, class Shape, class Definition>
BlockCase case_of(const std::string& name, const Shape& shape, const Definition& mixer) {
  constexpr std::int64_t kHidden = 6;
  const auto with_branch = [shape](DType dtype) {
    Shape full = shape;
    full.branch = branch(kHidden, dtype);
    return full;
  };
  BlockCase result;
  result.name = name;
  result.hidden = kHidden;
  result.make = [with_branch](DType dtype, parallel::ParameterTable& table) {
    return std::make_unique<B>(with_branch(dtype), 0, BlockNames{kBlockNorm, ""}, 0, 0.5, 0.5,
                               table);
  };
  result.definition = [with_branch, mixer](const NamedValues& parameters, const Values& x,
                                           const OracleRows& rows) {
    const Shape full = with_branch(DType::float32);
    Values y = mixer(full, parameters,
                     oracle_norm(x, parameters.at(kBlockNorm), full.branch.norm_eps), rows);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += x[i];
    return y;
  };
  return result;
}
template <class B, class Shape>
BlockCase case_of(const std::string& name, const Shape& shape) {
  return case_of<B>(
      name, shape,
      [](const Shape& full, const NamedValues& parameters, const Values& normed,
         const OracleRows& rows) { return oracle_mixer(full, parameters, normed, rows); });
}
BlockCase llama_case(const std::string& name, const models::LinearLlamaShape& shape) {
  BlockCase result = case_of<models::LinearLlamaBlock>(
      name, shape,
      [](const models::LinearLlamaShape& full, const NamedValues& parameters, const Values& normed,
         const OracleRows& rows) {
        return oracle_mixer(full, kBlockRopeTheta, parameters, normed, rows);
      });
  result.rope_dim = shape.head_dim;
  return result;
}

}  // namespace

std::vector<BlockCase> recurrent_cases() {
  using namespace models;
  using runtime::ops::FeatureMap;
  const GatedDeltaNetShape gdn{
      .key_heads = 2, .value_heads = 4, .key_head_dim = 3, .value_head_dim = 5};
  GatedDeltaNetShape plain = gdn, negative = gdn;
  plain.projections = GatedDeltaNetProjections::plain;
  negative.allow_negative_eigenvalues = true;
  negative.conv_width = 2;
  const KdaShape kda{.heads = 3, .head_dim = 4};
  KdaShape bounded = kda;
  bounded.gate_lower_bound = -5;
  const Mamba2Shape mamba{.heads = 4, .head_dim = 5, .state_dim = 3, .groups = 2};
  Mamba2Shape clamped = mamba;
  clamped.conv_bias = false;
  clamped.groups = 1;
  clamped.min_step = 0.6;
  clamped.max_step = 0.9;
  const LightningShape lightning{.heads = 3, .head_dim = 4, .layer = 1, .layers = 4};
  const LinearLlamaShape llama{.heads = 3, .head_dim = 4};
  const auto linear_llama = [&](LinearLlamaKind kind, FeatureMap map, bool normalize = false) {
    LinearLlamaShape shape = llama;
    shape.kind = kind;
    shape.feature_map = map;
    shape.normalize = normalize;
    return shape;
  };
  return {
      case_of<GatedDeltaNetBlock>("GatedDeltaNet", gdn),
      case_of<GatedDeltaNetBlock>("GatedDeltaNetPlain", plain),
      case_of<GatedDeltaNetBlock>("GatedDeltaNetNegative", negative),
      case_of<KdaBlock>("Kda", kda),
      case_of<KdaBlock>("KdaBounded", bounded),
      case_of<Mamba2Block>("Mamba2", mamba),
      case_of<Mamba2Block>("Mamba2Clamped", clamped),
      case_of<LightningBlock>("Lightning", lightning),
      llama_case("Basic", linear_llama(LinearLlamaKind::basic, FeatureMap::identity)),
      llama_case("BasicNormalised", linear_llama(LinearLlamaKind::basic, FeatureMap::elu1, true)),
      llama_case("Decay", linear_llama(LinearLlamaKind::decay, FeatureMap::identity)),
      llama_case("SimpleGla", linear_llama(LinearLlamaKind::simple_gla, FeatureMap::silu)),
      llama_case("Gla", linear_llama(LinearLlamaKind::gla, FeatureMap::elu1)),
  };
}

OracleRows rows_of_documents(const std::vector<std::int64_t>& lengths) {
  OracleRows rows;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    for (std::int64_t position = 0; position < lengths[document]; ++position) {
      rows.documents.push_back(static_cast<std::int64_t>(document));
      rows.positions.push_back(position);
    }
  }
  return rows;
}

BlockResults run_block(const BlockJob& job, const Values& x, const Values& dy) {
  BlockResults results{Values(x.size()), Values(x.size()), {}, {}};
  std::mutex mutex;
  runtime::run_loopback(job.ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    const BlockRig rig(job, std::move(world));
    const auto pass = rig.begin();
    go_through(pass->activate(rig.local(x, job.block.hidden, job.dtype)));
    const Tensor y = pass->output(), dx = rig.local(dy, job.block.hidden, job.dtype);
    go_through(pass->backward(dx));
    rig.stream.synchronize(runtime::deadline_in(60));
    const NamedValues gradients = rig.named(rig.store.gradients());
    const std::lock_guard lock(mutex);
    rig.place(y, results.y);
    rig.place(dx, results.dx);
    results.parameters = rig.named(rig.store.values());
    for (const auto& [name, values] : gradients) {
      Values& total = results.gradients[name];
      total.resize(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
    }
  });
  return results;
}

BlockResults defined_block(const BlockCase& block, const std::vector<std::int64_t>& lengths,
                           const NamedValues& parameters, const Values& x, const Values& dy) {
  const OracleRows rows = rows_of_documents(lengths);
  BlockResults results{block.definition(parameters, x, rows), {}, parameters, {}};
  results.dx = numeric_gradient(
      [&](const Values& of) { return block.definition(parameters, of, rows); }, x, dy);
  for (const auto& [name, values] : parameters) {
    NamedValues moved = parameters;
    results.gradients[name] = numeric_gradient(
        [&](const Values& of) {
          moved[name] = of;
          return block.definition(moved, x, rows);
        },
        values, dy);
  }
  return results;
}

std::vector<BlockPeaks> block_peaks(const BlockJob& job) {
  std::vector<BlockPeaks> all(at(job.ranks));
  std::int64_t tokens = 0;
  for (const std::int64_t length : job.lengths) tokens += length;
  const Values values = random_values(tokens * job.block.hidden, 1, true);
  runtime::run_loopback(job.ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    const BlockRig rig(job, std::move(world));
    BlockPeaks& peaks = all[at(rig.rank)];
    const Tensor dx = rig.local(values, job.block.hidden, job.dtype);
    rig.stream.synchronize(runtime::deadline_in(60));
    const std::int64_t before = rig.stream.memory().current_bytes;
    Tensor x = rig.local(values, job.block.hidden, job.dtype);
    const auto pass = rig.begin();
    rig.stream.reset_peak();
    go_through(pass->activate(std::move(x)));
    static_cast<void>(pass->output());
    peaks.forward = rig.stream.memory().peak_bytes - before;
    peaks.kept = rig.stream.memory().current_bytes - before;
    rig.stream.reset_peak();
    go_through(pass->backward(dx));
    peaks.backward = rig.stream.memory().peak_bytes - before;
    rig.stream.synchronize(runtime::deadline_in(60));
  });
  return all;
}

}  // namespace longhaul::test
