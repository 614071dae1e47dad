#include "models/parameters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "models/family.h"
#include "models/optimizer.h"
#include "models/weights.h"
#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::ExitCode;
using runtime::Stream;
using test::read;
using test::read_bytes;
using test::small_config;

TEST(ParameterTable, RangesAreContiguousAndGroupsOrdered) {
  const parallel::ParameterTable table = model_of(small_config(), {}).table();
  std::int64_t end = 0;
  std::set<std::string> names;
  for (const parallel::Parameter& parameter : table.parameters()) {
    EXPECT_EQ(parameter.range.begin, end);
    std::int64_t elements = 1;
    for (const std::int64_t size : parameter.sizes) elements *= size;
    EXPECT_EQ(parameter.range.elements(), elements);
    end = parameter.range.end;
    EXPECT_TRUE(names.insert(parameter.name).second);
    EXPECT_EQ(parameter.weight_decay,
              parameter.sizes.size() == 2 && parameter.name != "model.embed_tokens.weight");
  }
  EXPECT_EQ(end, table.elements());
  std::int64_t covered = 0;
  for (int group = 0; group < table.groups(); ++group) {
    EXPECT_EQ(table.group_range(group).begin, covered);
    covered = table.group_range(group).end;
  }
  EXPECT_EQ(covered, end);
  EXPECT_EQ(table.find("model.layers.1.self_attn.k_proj.weight").sizes,
            (std::vector<std::int64_t>{8, 10}));
}

TEST(ParameterTable, TiedModelsHaveNoHead) {
  EXPECT_THROW(model_of(small_config(true), {}).table().find("lm_head.weight"), Error);
  EXPECT_NO_THROW(model_of(small_config(false), {}).table().find("lm_head.weight"));
}

TEST(ParameterStore, InitialisationDependsOnSeedAndNameOnly) {
  const Stream one = Stream::cpu("one", 1), two = Stream::cpu("two", 2);
  ParameterStore tied(model_of(small_config(true), {}).table(), DType::float32, one);
  ParameterStore untied(model_of(small_config(false), {}).table(), DType::float32, two);
  tied.initialise(5, one);
  untied.initialise(5, two);
  for (const parallel::Parameter& parameter : tied.table().parameters()) {
    EXPECT_EQ(read_bytes(tied.value(parameter.name), one),
              read_bytes(untied.value(parameter.name), two))
        << parameter.name;
  }
  const auto q = read(tied.value("model.layers.0.self_attn.q_proj.weight"), one);
  EXPECT_NE(q, read(tied.value("model.layers.1.self_attn.q_proj.weight"), one));
  tied.initialise(6, one);
  EXPECT_NE(q, read(tied.value("model.layers.0.self_attn.q_proj.weight"), one));
}

TEST(ParameterStore, WorkingCopyFollowsValues) {
  const Stream stream = Stream::cpu("one");
  ParameterStore store(model_of(small_config(false, DType::bfloat16), {}).table(), DType::bfloat16,
                       stream);
  store.initialise(1, stream);
  store.refresh_working_copy(stream);
  fill(store.value("lm_head.weight"), 1.0 + 0x1p-9, stream);  // a tie, rounds to even: 1
  store.values_changed();
  store.refresh_working_copy(stream);
  EXPECT_EQ(read(store.working("lm_head.weight"), stream)[3], 1.0);
}

TEST(Weights, NeighboursAreOneMatrix) {
  const Stream stream = Stream::cpu("one");
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    ParameterStore store(model_of(small_config(false, dtype), {}).table(), dtype, stream);
    store.initialise(1, stream);
    store.refresh_working_copy(stream);
    fill(store.gradients(), 7, stream);
    const Weights weights(store, 2);
    const std::string prefix = "model.layers.1.self_attn.";
    const Weight all = weights.working(prefix + "q_proj.weight", prefix + "v_proj.weight");
    // By hand: q has 16 rows, k and v have 8, of 10 each.
    EXPECT_EQ(all.value.size(0), 32);
    EXPECT_EQ(all.value.size(1), 10);
    fill(all.gradient(stream), 3, stream);
    std::vector<double> rows;
    for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
      const auto of_one = read(store.working(prefix + name), stream);
      rows.insert(rows.end(), of_one.begin(), of_one.end());
      for (const double value : read(store.gradient(prefix + name), stream)) EXPECT_EQ(value, 3);
    }
    EXPECT_EQ(read(all.value, stream), rows);
    EXPECT_EQ(read(store.gradient("model.layers.1.input_layernorm.weight"), stream)[9], 7);
    EXPECT_EQ(read(store.gradient(prefix + "o_proj.weight"), stream)[0], 7);
    // Other columns; the wrong way round; another group.
    EXPECT_THROW(weights.working(prefix + "q_proj.weight", prefix + "o_proj.weight"), Error);
    EXPECT_THROW(weights.working(prefix + "v_proj.weight", prefix + "q_proj.weight"), Error);
    EXPECT_THROW(
        weights.working("model.layers.0.self_attn.q_proj.weight", prefix + "v_proj.weight"), Error);
  }
}

TEST(ParameterStore, TheFirstWriteOfAStepOverwrites) {
  using runtime::ops::Write;
  const Stream stream = Stream::cpu("one");
  ParameterStore store(model_of(small_config(), {}).table(), DType::float32, stream);
  const auto range_of = [&](const char* name) { return store.table().find(name).range; };
  const parallel::ElementRange norm = range_of("model.layers.0.input_layernorm.weight"),
                               query = range_of("model.layers.0.self_attn.q_proj.weight"),
                               key = range_of("model.layers.0.self_attn.k_proj.weight"),
                               gate = range_of("model.layers.0.mlp.gate_proj.weight"),
                               up = range_of("model.layers.0.mlp.up_proj.weight"),
                               group = store.table().group_range(1),
                               head = range_of("lm_head.weight");
  for (int step = 0; step < 2; ++step) {
    store.drop_gradients();
    fill(store.gradients(), 3, stream);  // the last step's
    for (const parallel::ElementRange& range : {norm, query, {gate.begin, up.end}}) {
      EXPECT_EQ(store.next_write(range, stream), Write::overwrite) << range.begin;
      EXPECT_EQ(store.next_write(range, stream), Write::add) << range.begin;
    }
    EXPECT_EQ(store.next_write(gate, stream), Write::add);
    EXPECT_EQ(store.next_write(up, stream), Write::add);
    const auto expect_zeros = [&](const parallel::ElementRange& zeros,
                                  const std::vector<parallel::ElementRange>& but) {
      std::vector<double> expected(static_cast<std::size_t>(store.table().elements()), 3);
      const auto set = [&](const parallel::ElementRange& range, double value) {
        std::fill(expected.begin() + range.begin, expected.begin() + range.end, value);
      };
      set(zeros, 0);
      for (const parallel::ElementRange& range : but) set(range, 3);
      EXPECT_EQ(read(store.gradients(), stream), expected);
    };
    expect_zeros({0, 0}, {});
    EXPECT_EQ(store.next_write({query.begin, key.end}, stream), Write::add) << "half is written";
    expect_zeros(key, {});
    store.zero_unwritten(group, stream);
    expect_zeros(group, {norm, query, gate, up});
    EXPECT_EQ(store.next_write(group, stream), Write::add);
    expect_zeros(group, {norm, query, gate, up});
    EXPECT_EQ(store.next_write(head, stream), Write::overwrite);
  }
}

TEST(ParameterStore, CheckpointTensorsAreNamedOnceAndCoverEverything) {
  const Stream stream = Stream::cpu("one");
  ParameterStore store(model_of(small_config(), {}).table(), DType::float32, stream);
  const parallel::ElementRange all{0, store.table().elements()};
  const AdamW optimizer({}, store, {all}, stream);
  std::vector<parallel::FlatState> states = optimizer.states();
  states.push_back(store.state());
  std::set<std::string> names;
  std::int64_t elements = 0;
  for (const parallel::FlatState& state : states) {
    for (const parallel::StateBox& block : state_boxes(store.table(), state, {all})) {
      EXPECT_TRUE(names.insert(block.name).second) << block.name;
      EXPECT_EQ(block.sizes, std::vector(block.view.sizes().begin(), block.view.sizes().end()));
      elements += block.view.elements();
    }
  }
  EXPECT_EQ(elements, 3 * store.table().elements());
  for (const char* prefix : {"", "optimizer.exp_avg.", "optimizer.exp_avg_sq."})
    EXPECT_TRUE(names.contains(std::string(prefix) + "model.norm.weight")) << prefix;
}

TEST(ModelConfigCheck, NamesTheField) {
  const auto expect = [](const char* field, const std::function<void(ModelConfig&)>& spoil) {
    ModelConfig config = small_config();
    spoil(config);
    test::expect_error(ExitCode::config, field, [&] { model_of(config, {}); });
  };
  expect("num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 3; });
  expect("hidden_size", [](ModelConfig& c) { c.hidden_size = 0; });
  expect("num_hidden_layers", [](ModelConfig& c) { c.num_hidden_layers = 0; });
  expect("vocab_size", [](ModelConfig& c) { c.vocab_size.reset(); });
  expect("head_dim", [](ModelConfig& c) { c.head_dim = 0; });
  expect("head_dim", [](ModelConfig& c) { c.head_dim = 5; });
  expect("intermediate_size is missing", [](ModelConfig& c) { c.intermediate_size.reset(); });
  expect("rope_theta", [](ModelConfig& c) { c.rope_theta = 0; });
  expect("rms_norm_eps", [](ModelConfig& c) { c.rms_norm_eps = -1; });
  expect("expected one of llama", [](ModelConfig& c) { c.architecture = "lama"; });
  expect("layer_types[1] is unknown; expected full_attention or sliding_attention",
         [](ModelConfig& c) {
           c.layer_types = {"full_attention", "mamba"};
         });
}

TEST(Flops, CountsMatricesAndVisiblePairs) {
  // By hand: per layer q 10x16, k and v 10x8, o 16x10, three 10x13; head 10x17.
  const double weights = 2 * (160 + 80 + 80 + 160 + 3 * 130) + 170;
  const std::vector<std::int64_t> areas{5050};
  EXPECT_EQ(model_of(small_config(), {}).flops(100, areas),
            6 * 100 * weights + 2 * 12 * 5050.0 * 16);
  EXPECT_EQ(model_of(small_config(true), {}).flops(100, areas),
            model_of(small_config(), {}).flops(100, areas));
}

}  // namespace
}  // namespace longhaul::models
