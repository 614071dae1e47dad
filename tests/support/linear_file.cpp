#include "tests/support/linear_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "runtime/io/hdf5.h"
#include "tests/support/attention_case.h"

namespace longhaul::test {

namespace hdf5 = runtime::hdf5;
using attention::Decay;
using Doubles = std::vector<double>;

void LinearFile::fill(std::uint32_t seed, Gates gates) {
  rows = linear_case(kind, {batch * seq_len, heads, key_heads, dim, value_dim});
  rows.recurrence.causal = !full;
  rows.fill(seed, gates);
}

void LinearFile::fill_states(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (std::vector<float>* state : {&initial_state, &dfinal_state}) {
    state->resize(static_cast<std::size_t>(batch * heads * dim * columns()));
    for (float& x : *state) x = normal(random);
  }
}

LinearFile LinearFile::tokens(std::int64_t begin, std::int64_t end) const {
  LinearFile part = *this;
  part.seq_len = end - begin;
  part.initial_state.clear();
  part.dfinal_state.clear();
  part.rows = rows.rows(0, 0);
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    const LinearCase one = rows.rows(sequence * seq_len + begin, sequence * seq_len + end);
    const auto append = [](std::vector<float>& to, const std::vector<float>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(part.rows.q, one.q);
    append(part.rows.k, one.k);
    append(part.rows.v, one.v);
    append(part.rows.dout, one.dout);
    append(part.rows.beta, one.beta);
    if (rows.recurrence.decay != Decay::head) append(part.rows.log_decay, one.log_decay);
  }
  part.rows.shape.rows = batch * part.seq_len;
  return part;
}

void LinearFile::write(const std::string& path) const {
  std::filesystem::remove(path);
  hdf5::File file = hdf5::File::create(path);
  const auto put = [&](const char* name, const hdf5::Extents& sizes,
                       const std::vector<float>& values) {
    if (!values.empty()) file.write<float>(name, sizes, values);
  };
  put("q", {batch, seq_len, key_heads, dim}, rows.q);
  put("k", {batch, seq_len, key_heads, dim}, rows.k);
  put("v", {batch, seq_len, heads, value_dim}, rows.v);
  put("dout", {batch, seq_len, heads, value_dim}, rows.dout);
  put("beta", {batch, seq_len, heads}, rows.beta);
  hdf5::Extents decays{batch, seq_len, heads, dim};
  if (rows.recurrence.decay == Decay::head) decays = {heads};
  if (rows.recurrence.decay == Decay::scalar) decays = {batch, seq_len, heads};
  put("log_decay", decays, rows.log_decay);
  put("initial_state", {batch, heads, dim, columns()}, initial_state);
  put("dfinal_state", {batch, heads, dim, columns()}, dfinal_state);
  if (!documents.empty()) file.write<std::int64_t>("documents", {std::ssize(documents)}, documents);
  file.close();
}

LinearValues read_linear_results(const std::string& path) {
  const hdf5::File file = hdf5::File::open(path);
  LinearValues values;
  for (const std::string& name : file.names()) {
    const hdf5::Dataset dataset = file.dataset(name);
    if (dataset.info().element == hdf5::Element::float32) values[name] = dataset.read<float>();
  }
  return values;
}

namespace {

Doubles part_of(const std::vector<float>& all, std::int64_t number, std::int64_t parts) {
  const std::int64_t size = std::ssize(all) / parts;
  return {all.begin() + number * size, all.begin() + (number + 1) * size};
}

/// [H,D,E] from [E,H,D], or the other way round.
Doubles turned(const Doubles& state, std::int64_t heads, std::int64_t dim, std::int64_t columns,
               bool to_file) {
  Doubles other(state.size());
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t e = 0; e < columns; ++e) {
        const auto in_file = static_cast<std::size_t>((head * dim + d) * columns + e),
                   in_runtime = static_cast<std::size_t>((e * heads + head) * dim + d);
        (to_file ? other[in_file] : other[in_runtime]) =
            to_file ? state[in_runtime] : state[in_file];
      }
    }
  }
  return other;
}

/// Vectors of `width` with a last element more.
Doubles extended(const Doubles& values, std::int64_t width, double last) {
  Doubles longer;
  for (std::size_t i = 0; i < values.size(); ++i) {
    longer.push_back(values[i]);
    if ((static_cast<std::int64_t>(i) + 1) % width == 0) longer.push_back(last);
  }
  return longer;
}

/// One sequence of a file.
class Sequence {
 public:
  Sequence(const LinearFile& file, std::int64_t number, const Map& map) : f_(file), map_(map) {
    const auto take = [&](const std::vector<float>& all) {
      return part_of(all, number, file.batch);
    };
    q_ = take(file.rows.q), k_ = take(file.rows.k), v_ = take(file.rows.v);
    dout_ = take(file.rows.dout), beta_ = take(file.rows.beta);
    decay_ = file.rows.recurrence.decay == Decay::head
                 ? Doubles(file.rows.log_decay.begin(), file.rows.log_decay.end())
                 : take(file.rows.log_decay);
    const auto state = [&](const std::vector<float>& all) {
      return turned(take(all), f_.heads, f_.dim, f_.columns(), false);
    };
    if (!file.initial_state.empty()) initial_ = state(file.initial_state);
    if (!file.dfinal_state.empty()) dfinal_ = state(file.dfinal_state);
    for (std::size_t i = 0; i + 1 < file.documents.size(); ++i) {
      const std::int64_t start = file.documents[i];
      if (start < file.seq_len && (start > 0 || initial_.empty()) &&
          (starts_.empty() || starts_.back() != start))
        starts_.push_back(start);
    }
  }

  std::map<std::string, Doubles> results() {
    const Doubles raw_q = q_, raw_k = k_;
    for (Doubles* x : {&q_, &k_}) std::ranges::transform(*x, x->begin(), map_.value);
    Doubles values = f_.normalize ? extended(v_, f_.value_dim, 1) : v_;
    auto result = run(values, f_.normalize ? Doubles() : dout_);
    std::map<std::string, Doubles> named;
    if (f_.normalize) {
      const Doubles sums = result.out;
      result = run(values, normalised_gradient(sums, named["out"]));
    } else {
      named["out"] = result.out;
    }
    for (std::size_t i = 0; i < result.dq.size(); ++i) {
      named["dq"].push_back(result.dq[i] * map_.slope(raw_q[i]));
      named["dk"].push_back(result.dk[i] * map_.slope(raw_k[i]));
    }
    for (std::size_t i = 0; i < result.dv.size(); ++i) {
      if (static_cast<std::int64_t>(i) % f_.columns() < f_.value_dim)
        named["dv"].push_back(result.dv[i]);
    }
    named["dlog_decay"] = result.dlog_decay;
    named["dbeta"] = result.dbeta;
    if (!f_.full) named["final_state"] = to_file(result.final_state);
    if (!initial_.empty()) named["dinitial_state"] = to_file(result.dinitial_state);
    return named;
  }

 private:
  Doubles to_file(const Doubles& state) const {
    return turned(state, f_.heads, f_.dim, f_.columns(), true);
  }
  attention::LinearReferenceResult<double> run(const Doubles& values, const Doubles& dout) const {
    return attention::reference_linear<double>({.rows = f_.seq_len,
                                                .heads = f_.heads,
                                                .key_heads = f_.key_heads,
                                                .dim = f_.dim,
                                                .value_dim = f_.columns(),
                                                .q = q_,
                                                .k = k_,
                                                .v = values,
                                                .log_decay = decay_,
                                                .beta = beta_,
                                                .starts = starts_,
                                                .initial_state = initial_,
                                                .dout = dout,
                                                .dfinal_state = dfinal_},
                                               f_.rows.recurrence);
  }
  /// out = sums / their last column; the gradient of the sums.
  Doubles normalised_gradient(const Doubles& sums, Doubles& out) const {
    Doubles gradient;
    const auto e = static_cast<std::size_t>(f_.value_dim);
    for (std::size_t at = 0, row = 0; at < sums.size(); at += e + 1, row += e) {
      const double last = sums[at + e];
      double of_last = 0;
      for (std::size_t i = 0; i < e; ++i) {
        out.push_back(sums[at + i] / last);
        gradient.push_back(dout_[row + i] / last);
        of_last -= dout_[row + i] * sums[at + i] / (last * last);
      }
      gradient.push_back(of_last);
    }
    return gradient;
  }

  const LinearFile& f_;
  const Map map_;
  Doubles q_, k_, v_, dout_, beta_, decay_, initial_, dfinal_;
  std::vector<std::int64_t> starts_;
};

}  // namespace

std::map<std::string, std::vector<double>> expected_results(const LinearFile& file,
                                                            const Map& map) {
  std::map<std::string, Doubles> all;
  for (std::int64_t number = 0; number < file.batch; ++number) {
    for (const auto& [name, values] : Sequence(file, number, map).results()) {
      Doubles& to = all[name];
      if (name == "dlog_decay" && file.rows.recurrence.decay == Decay::head && number > 0) {
        for (std::size_t i = 0; i < values.size(); ++i) to[i] += values[i];
      } else {
        to.insert(to.end(), values.begin(), values.end());
      }
    }
  }
  std::erase_if(all, [](const auto& entry) { return entry.second.empty(); });
  return all;
}

void expect_near_reference(const LinearFile& file, const LinearValues& got, double bound,
                           const Map& map) {
  const auto expected = expected_results(file, map);
  EXPECT_EQ(got.size(), expected.size());
  for (const auto& [name, values] : expected) {
    ASSERT_TRUE(got.contains(name)) << name;
    const double error = relative_error(got.at(name), values);
    EXPECT_LE(error, name == "dlog_decay" ? std::max(bound, 1e-5) : bound) << name;
  }
}

}  // namespace longhaul::test
