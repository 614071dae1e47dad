#include "models/head.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using test::make_tensor;
using test::random_values;
using test::read;
using test::relative_error;
using test::Rig;
using test::with_rigs;
using Values = std::vector<double>;

ModelConfig head_config(std::int64_t hidden, std::int64_t vocabulary) {
  ModelConfig config;
  config.hidden_size = hidden;
  config.intermediate_size = 1;
  config.num_hidden_layers = 1;
  config.num_attention_heads = config.num_key_value_heads = 1;
  config.head_dim = 2;
  config.rms_norm_eps = 1e-5;
  config.vocab_size = vocabulary;
  return config;
}

Head make_head(const ModelConfig& c, const parallel::ParameterTable& table,
               std::int64_t chunk_rows) {
  return {{c.hidden_size, *c.vocab_size, *c.rms_norm_eps, c.dtype, "model.norm.weight",
           "lm_head.weight"},
          table,
          chunk_rows};
}

/// The dense computation with all logits at once, and its gradients in closed form, in T.
template <class T>
struct Dense {
  double loss = 0;
  Values dhidden, dweight, dnorm;

  Dense(const Values& hidden, const Values& weight, const Values& norm, const Values& labels,
        double scale, double eps) {
    const std::size_t h = norm.size(), rows = labels.size(), vocabulary = weight.size() / h;
    dhidden.resize(rows * h);
    dweight.resize(weight.size());
    dnorm.resize(h);
    for (std::size_t r = 0; r < rows; ++r) {
      T square = 0;
      for (std::size_t i = 0; i < h; ++i) square += T(hidden[r * h + i]) * T(hidden[r * h + i]);
      const T inverse = 1 / std::sqrt(square / T(h) + T(eps));
      std::vector<T> normed(h), logits(vocabulary), dnormed(h);
      for (std::size_t i = 0; i < h; ++i) normed[i] = T(hidden[r * h + i]) * inverse * T(norm[i]);
      T maximum = -1e30f, total = 0;
      for (std::size_t v = 0; v < vocabulary; ++v) {
        for (std::size_t i = 0; i < h; ++i) logits[v] += normed[i] * T(weight[v * h + i]);
        maximum = std::max(maximum, logits[v]);
      }
      if (labels[r] < 0) continue;
      for (const T logit : logits) total += std::exp(logit - maximum);
      loss += static_cast<double>(std::log(total) + maximum -
                                  logits[static_cast<std::size_t>(labels[r])]);
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const T one = static_cast<double>(v) == labels[r] ? 1 : 0;
        const T slope = T(scale) * (std::exp(logits[v] - maximum) / total - one);
        for (std::size_t i = 0; i < h; ++i) {
          dweight[v * h + i] = static_cast<double>(T(dweight[v * h + i]) + slope * normed[i]);
          dnormed[i] += slope * T(weight[v * h + i]);
        }
      }
      T dot = 0;
      for (std::size_t i = 0; i < h; ++i) {
        dnorm[i] += static_cast<double>(dnormed[i] * T(hidden[r * h + i]) * inverse);
        dot += dnormed[i] * T(norm[i]) * T(hidden[r * h + i]);
      }
      for (std::size_t i = 0; i < h; ++i) {
        const T pull = T(hidden[r * h + i]) * inverse * inverse * dot / T(h);
        dhidden[r * h + i] = static_cast<double>(inverse * (dnormed[i] * T(norm[i]) - pull));
      }
    }
  }
};

TEST(Head, ChunkedEqualsDense) {
  const std::int64_t h = 24, vocabulary = 97;
  const ModelConfig config = head_config(h, vocabulary);
  for (const std::int64_t rows : {0, 1, 7, 127}) {
    const Values hidden = random_values(rows * h, 1), weight = random_values(vocabulary * h, 2);
    const Values norm = random_values(h, 3);
    Values labels;
    for (std::int64_t row = 0; row < rows; ++row)
      labels.push_back(static_cast<double>(row * 13 % (vocabulary + 1) - 1));
    const Dense<double> exact(hidden, weight, norm, labels, 0.01, *config.rms_norm_eps);
    const Dense<float> plain(hidden, weight, norm, labels, 0.01, *config.rms_norm_eps);
    for (const std::int64_t chunk : {1, 16, 1000}) {
      SCOPED_TRACE(runtime::concat("rows ", rows, " chunk ", chunk));
      const auto body = [&](Rig& rig) {
        const Stream stream = rig.stream;
        ParameterStore& store = rig.store;
        copy(make_tensor(weight, {vocabulary, h}, DType::float32, stream),
             store.value("lm_head.weight"), stream);
        copy(make_tensor(norm, {h}, DType::float32, stream), store.value("model.norm.weight"),
             stream);
        const Head head = make_head(config, store.table(), chunk);
        const Tensor x = make_tensor(hidden, {rows, h}, DType::float32, stream);
        const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream);
        const Tensor loss = make_tensor({0}, {1}, DType::float64, stream),
                     dx({rows, h}, DType::float32, stream);
        head.loss_and_backward(rig.resources, x, {ids}, 0.01, loss, dx);
        store.zero_unwritten({0, store.table().elements()}, stream);  // without rows
        const auto bound = [](const Values& near, const Values& far) {
          return std::max(3e-6, 2 * relative_error(near, far));
        };
        EXPECT_NEAR(read(loss, stream)[0], exact.loss, 3e-6 * exact.loss);
        EXPECT_LE(relative_error(read(dx, stream), exact.dhidden),
                  bound(plain.dhidden, exact.dhidden));
        EXPECT_LE(relative_error(read(store.gradient("lm_head.weight"), stream), exact.dweight),
                  bound(plain.dweight, exact.dweight));
        EXPECT_LE(relative_error(read(store.gradient("model.norm.weight"), stream), exact.dnorm),
                  bound(plain.dnorm, exact.dnorm));
      };
      with_rigs(1, config, {}, body, 2);
    }
  }
}

TEST(Head, MemoryDoesNotGrowWithRowsTimesVocabulary) {
  const std::int64_t h = 8, vocabulary = 1500, chunk = 32;
  const ModelConfig config = head_config(h, vocabulary);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    ModelConfig typed = config;
    typed.dtype = dtype;
    with_rigs(1, typed, {}, [&](Rig& rig) {
      const Stream stream = rig.stream;
      rig.store.initialise(1, stream);
      rig.store.refresh_working_copy(stream);
      const Head head = make_head(typed, rig.store.table(), chunk);
      const auto peak = [&](std::int64_t rows) {
        const Tensor x = make_tensor(random_values(rows * h, 1), {rows, h}, dtype, stream);
        const Tensor ids =
            make_tensor(Values(static_cast<std::size_t>(rows), 1.0), {rows}, DType::int32, stream);
        const Tensor loss = make_tensor({0}, {1}, DType::float64, stream),
                     dx({rows, h}, dtype, stream);
        const std::int64_t before = stream.memory().current_bytes;
        stream.reset_peak();
        head.loss_and_backward(rig.resources, x, {ids}, 1, loss, dx);
        const std::int64_t training = stream.memory().peak_bytes - before;
        stream.reset_peak();
        const Tensor row_loss({rows}, DType::float32, stream),
            correct({rows}, DType::uint8, stream);
        head.evaluate(rig.resources, x, {ids}, loss, row_loss, correct);
        return std::max(training, stream.memory().peak_bytes - before);
      };
      const std::int64_t small = peak(64), large = peak(512);
      EXPECT_LE(large - small, (512 - 64) * (h * 8 + 16)) << "more than rows of the hidden size";
      EXPECT_LE(large, chunk * vocabulary * 4 + 512 * (h * 8 + 16) + (1 << 21));
    });
  }
}

}  // namespace
}  // namespace longhaul::models
