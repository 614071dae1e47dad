// Logits and gradients of a configuration's model, with weights that come by name: what
// tests/huggingface/parity compares with Hugging Face's.
//   huggingface_answers CONFIG.toml IN.h5 OUT.h5
// IN: a float32 dataset a parameter, named and shaped as the checkpoint's, and int32 `tokens` [n]
// of one document. OUT: `logits` [n,V]; float64 `loss` [1], the mean over the next tokens; a
// gradient of it a parameter, by its name. Exit code 1 and a line for each name or shape that
// differs.

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "launch/config.h"
#include "models/family.h"
#include "runtime/io/hdf5.h"
#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::test {
namespace {

namespace hdf5 = runtime::hdf5;

OracleBatch batch_of(const hdf5::File& in) {
  OracleBatch batch;
  const auto tokens = in.dataset("tokens").read<std::int32_t>();
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    batch.tokens.push_back(tokens[row]);
    batch.labels.push_back(row + 1 < tokens.size() ? tokens[row + 1] : -1);
    batch.positions.push_back(static_cast<std::int64_t>(row));
    batch.documents.push_back(0);
  }
  return batch;
}

/// The number of names and shapes that differ.
int carry_weights(const hdf5::File& in, Rig& rig) {
  int wrong = 0;
  const auto say = [&](const std::string& what) {
    std::printf("%s\n", what.c_str());
    ++wrong;
  };
  std::vector<std::string> theirs = in.names();
  std::erase(theirs, "tokens");
  for (const parallel::Parameter& parameter : rig.store.table().parameters()) {
    if (std::erase(theirs, parameter.name) == 0) {
      say(parameter.name + " is only ours");
      continue;
    }
    const hdf5::Dataset dataset = in.dataset(parameter.name);
    if (dataset.info().sizes != parameter.sizes) {
      say(parameter.name + " has other sizes");
      continue;
    }
    const auto values = dataset.read<float>();
    const std::vector<double> wide(values.begin(), values.end());
    copy(make_tensor(wide, {parameter.range.elements()}, runtime::DType::float32, rig.stream),
         rig.store.values().slice(0, parameter.range.begin, parameter.range.end), rig.stream);
  }
  for (const std::string& name : theirs) say(name + " is only theirs");
  rig.store.values_changed();
  return wrong;
}

template <class T>
void write(hdf5::File& out, const std::string& name, const std::vector<double>& values,
           const hdf5::Extents& sizes) {
  const std::vector<T> typed(values.begin(), values.end());
  out.write<T>(name, sizes, typed);
}

int answer(const std::string& config_path, const std::string& in_path,
           const std::string& out_path) {
  launch::TrainConfig config =
      launch::load_config(config_path, {}, std::nullopt, launch::NamedFiles::unread).config;
  config.model.seq_len = config.training.seq_len;
  const hdf5::File in = hdf5::File::open(in_path);
  const OracleBatch batch = batch_of(in);
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  int wrong = 0;
  with_rigs(1, config.model, {}, [&](Rig& rig) {
    wrong = carry_weights(in, rig);
    if (wrong > 0) return;
    const models::Batch mine = rig.use(batch);
    hdf5::File out = hdf5::File::create(out_path);
    write<float>(out, "logits", read(rig.logits(mine, 0, rows), rig.stream),
                 {rows, *config.model.vocab_size});
    const double labels = static_cast<double>(rows) - 1;
    const double sum = read(rig.forward_backward(mine, {1 / labels, {}}), rig.stream)[0];
    write<double>(out, "loss", {sum / labels}, {1});
    for (const parallel::Parameter& parameter : rig.store.table().parameters())
      write<float>(out, parameter.name, read(rig.store.gradient(parameter.name), rig.stream),
                   parameter.sizes);
    out.close();
  });
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longhaul::test

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: huggingface_answers CONFIG.toml IN.h5 OUT.h5\n");
    return 64;
  }
  try {
    return longhaul::test::answer(argv[1], argv[2], argv[3]);
  } catch (const longhaul::runtime::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
