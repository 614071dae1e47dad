#pragma once
// Weights that a model can begin with: those of a Hugging Face folder, or of a checkpoint.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/hf_config.h"
#include "launch/hf_origin.h"
#include "launch/trained_runs.h"
#include "parallel/parameters.h"
#include "runtime/comm/communicator.h"
#include "runtime/io/checkpoint.h"
#include "runtime/io/safetensors.h"

namespace longhaul::launch {

/// The output head of every family that is read and written.
inline constexpr const char* kHeadName = "lm_head.weight";

/// Throws: Error(data) for what is damaged or not what it should be, Error(io) when reading fails.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const std::filesystem::path& path() const = 0;
  /// Complete, with vocab_size.
  virtual const ModelConfig& model() const = 0;
  /// "12 tensors in 2 files of a Hugging Face folder".
  virtual std::string text() const = 0;
  /// What two ranks that read the same weights agree on.
  virtual std::string digest() const = 0;
  /// Of the folder that they come from, be it by way of checkpoints.
  virtual std::optional<HfOrigin> origin() const = 0;
  /// That have trained them since, in their order.
  virtual std::vector<TrainedRun> runs() const = 0;
  /// Throws Error(data) that names the tensors unless it holds exactly these, in their sizes.
  virtual void require(const parallel::ParameterTable& table) const = 0;
  /// Rows [begin, end) of a parameter, a row being one step of its first dim. Blocks; holds little
  /// memory besides `out`.
  virtual void read(const parallel::Parameter& parameter, std::int64_t begin, std::int64_t end,
                    std::span<float> out) const = 0;
};

/// A Hugging Face folder: config.json and safetensors. Tensors must be F32, BF16 or F16. A head
/// beside a tied embedding must equal it. Of what the model has no use for, only
/// `rotary_emb.inv_freq`, which follows from the configuration, may be there.
class HfFolder final : public WeightSource {
 public:
  explicit HfFolder(const std::filesystem::path& folder);
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& model() const override { return config_.model; }
  const HfConfig& config() const { return config_; }
  std::string text() const override;
  std::string digest() const override;
  std::optional<HfOrigin> origin() const override;
  std::vector<TrainedRun> runs() const override { return {}; }
  void require(const parallel::ParameterTable& table) const override;
  void read(const parallel::Parameter& parameter, std::int64_t begin, std::int64_t end,
            std::span<float> out) const override;
  /// Names of the tensors that are there and left out.
  std::vector<std::string> left_out() const;

 private:
  void compare_head(const runtime::safetensors::Weights::Place& head,
                    const parallel::Parameter& embedding, std::vector<std::string>& wrong) const;

  const std::filesystem::path path_;
  const HfConfig config_;
  const runtime::safetensors::Weights weights_;
};

/// A checkpoint's weights, without the optimizer's state.
class CheckpointWeights final : public WeightSource {
 public:
  explicit CheckpointWeights(runtime::Checkpoint checkpoint);
  const runtime::Checkpoint& checkpoint() const { return checkpoint_; }
  const std::filesystem::path& path() const override { return checkpoint_.path(); }
  const ModelConfig& model() const override { return model_; }
  std::string text() const override;
  std::string digest() const override;
  std::optional<HfOrigin> origin() const override;
  std::vector<TrainedRun> runs() const override;
  void require(const parallel::ParameterTable& table) const override;
  void read(const parallel::Parameter& parameter, std::int64_t begin, std::int64_t end,
            std::span<float> out) const override;

 private:
  const runtime::Checkpoint checkpoint_;
  const ModelConfig model_;
};

/// What `path` names: a Hugging Face folder, a checkpoint, or a folder that holds checkpoints.
/// Throws Error(data) where it is neither.
std::unique_ptr<WeightSource> open_weights(const std::filesystem::path& path);
/// The same on every rank of `comm`, which fail together and agree on what they read. Collective;
/// throws Error(disagree) where they do not.
std::unique_ptr<WeightSource> open_weights(const std::filesystem::path& path,
                                           runtime::Communicator& comm,
                                           const runtime::Stream& stream);

/// The parameters of a model, of which nothing is computed.
parallel::ParameterTable parameter_table(const ModelConfig& model);

/// Calls `visit(begin, end)` for all rows of a parameter, so many at a time that they take
/// kStagedBytes as float32, or one.
void for_each_rows(const parallel::Parameter& parameter,
                   const std::function<void(std::int64_t begin, std::int64_t end)>& visit);
/// Elements of a row.
std::int64_t row_elements(const parallel::Parameter& parameter);

}  // namespace longhaul::launch
