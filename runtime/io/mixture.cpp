#include "runtime/io/mixture.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/hash.h"

namespace longhaul::runtime {
namespace {

constexpr int kTickBits = 32;  // ticks in the mean distance of sequences, as a power of 2
// The last word of the counter: other draws under a run's seed have the epoch's upper half there.
constexpr std::uint32_t kPlaces = 0x80000000, kSeeds = 0x80000001;

std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
std::uint32_t high(std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); }

std::uint64_t draw(std::uint64_t seed, std::uint64_t number, std::size_t corpus,
                   std::uint32_t purpose) {
  const auto bits = r123::Philox4x32()({{low(number), high(number), low(corpus), purpose}},
                                       {{low(seed), high(seed)}});
  return std::uint64_t{bits[1]} << 32 | bits[0];
}

}  // namespace

Mixture::Mixture(std::span<const double> weights, std::uint64_t seed) : seed_(seed) {
  LONGHAUL_CHECK(!weights.empty(), "a mixture of no corpora");
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (const double weight : weights) {
    LONGHAUL_CHECK(weight > 0 && std::isfinite(sum) && weight / sum >= kLeastShare, "weight ",
                   weight, " of ", sum, " in a mixture");
    intervals_.push_back(
        static_cast<std::uint64_t>(std::llround(std::ldexp(sum / weight, kTickBits))));
  }
}

double Mixture::share(std::int64_t corpus) const {
  return std::ldexp(1.0, kTickBits) /
         static_cast<double>(intervals_.at(static_cast<std::size_t>(corpus)));
}

std::uint64_t Mixture::seed_of(std::int64_t corpus) const {
  return corpus == 0 ? seed_ : draw(seed_, 0, static_cast<std::size_t>(corpus), kSeeds);
}

Mixture::Time Mixture::due(std::size_t corpus, std::uint64_t number) const {
  const Time interval = intervals_[corpus];
  return interval * number + (interval * draw(seed_, number, corpus, kPlaces) >> 64);
}

std::uint64_t Mixture::before(std::size_t corpus, Time time) const {
  const auto whole = static_cast<std::uint64_t>(time / intervals_[corpus]);
  return whole + (due(corpus, whole) < time ? 1 : 0);
}

std::uint64_t Mixture::before(Time time) const {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < intervals_.size(); ++i) count += before(i, time);
  return count;
}

/// The tick at which the sequence is due: the last with no more than `number` before it.
Mixture::Time Mixture::time_of(std::int64_t number) const {
  LONGHAUL_CHECK(number >= 0, "sequence number ", number);
  const auto wanted = static_cast<std::uint64_t>(number);
  const Time near = Time{wanted} << kTickBits;
  Time width = Time{intervals_.size()} << kTickBits;
  Time low = 0, high = near + width;  // before(low) <= wanted < before(high)
  for (; before(high) <= wanted; high += width) width *= 2;
  if (const Time bound = Time{intervals_.size()} << kTickBits; near > bound) {
    if (before(near - bound) <= wanted) low = near - bound;
  }
  while (high - low > 1) {
    const Time middle = low + (high - low) / 2;
    (before(middle) <= wanted ? low : high) = middle;
  }
  return low;
}

Mixture::Place Mixture::operator()(std::int64_t number) const {
  const Time time = time_of(number);
  std::uint64_t earlier = before(time);
  for (std::size_t i = 0; i < intervals_.size(); ++i) {  // equal times go by corpus
    const std::uint64_t own = before(i, time);
    if (before(i, time + 1) == own) continue;
    if (earlier++ == static_cast<std::uint64_t>(number))
      return {static_cast<std::int64_t>(i), static_cast<std::int64_t>(own)};
  }
  fail(ExitCode::internal, "sequence ", number, " has no place in the mixture");
}

std::vector<std::int64_t> Mixture::taken(std::int64_t count) const {
  const Time time = time_of(count);
  std::vector<std::int64_t> counts;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < intervals_.size(); ++i) {
    counts.push_back(static_cast<std::int64_t>(before(i, time)));
    sum += static_cast<std::uint64_t>(counts.back());
  }
  for (std::size_t i = 0; i < intervals_.size() && sum < static_cast<std::uint64_t>(count); ++i) {
    const auto then = static_cast<std::int64_t>(before(i, time + 1));
    sum += static_cast<std::uint64_t>(then - std::exchange(counts[i], then));
  }
  return counts;
}

std::string Mixture::digest(std::span<const std::string> corpora) const {
  LONGHAUL_CHECK(corpora.size() == intervals_.size(), corpora.size(), " digests of ",
                 intervals_.size(), " corpora");
  if (corpora.size() == 1) return corpora[0];
  Digest digest;
  digest.update("longhaul mixture 1\n");
  for (std::size_t i = 0; i < corpora.size(); ++i)
    digest.update(concat(corpora[i], ' ', intervals_[i], '\n'));
  return digest.hex();
}

MixedSequences::MixedSequences(Mixture mixture, std::vector<Sequences> parts)
    : mixture_(std::move(mixture)),
      parts_(std::move(parts)),
      weighs_(std::ranges::any_of(parts_, &Sequences::weighs)) {
  LONGHAUL_CHECK(std::ssize(parts_) == mixture_.corpora(), parts_.size(),
                 " corpora in a mixture of ", mixture_.corpora());
}

PackedDocuments MixedSequences::documents(std::int64_t number) const {
  const Mixture::Place place = mixture_(number);
  return of(place.corpus).documents(place.number);
}

void MixedSequences::read(std::int64_t number, std::span<const Run> runs, Rows& rows) const {
  const Mixture::Place place = mixture_(number);
  of(place.corpus).read(place.number, runs, rows);
  if (!weighs_ || of(place.corpus).weighs()) return;
  for (std::size_t row = rows.label_weights.size(); row < rows.labels.size(); ++row)
    rows.label_weights.push_back(rows.labels[row] < 0 ? 0.0f : 1.0f);
}

std::int64_t MixedSequences::latest_epoch(std::int64_t count) const {
  LONGHAUL_CHECK(count >= 1, "the epoch of no sequence");
  const std::vector<std::int64_t> taken = mixture_.taken(count);
  std::int64_t latest = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    if (taken[i] > 0) latest = std::max(latest, (taken[i] - 1) / parts_[i].per_epoch());
  return latest;
}

}  // namespace longhaul::runtime
