#pragma once
// Several corpora as one endless run of sequences, each corpus in its share, without any state.
//
// On a line of time corpus i takes a sequence in every interval of length 1/share_i, at a place in
// the interval that is drawn from (seed, i, k) for its sequence number k. The run's sequences are
// those of all corpora in the order of time. So after n sequences each corpus has been taken within
// about one sequence a corpus of n * share_i, for every n; and a sequence's place is found by
// bisection, whatever came before it.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/io/sequences.h"

namespace longhaul::runtime {

/// The least share of a mixture that is kept to.
inline constexpr double kLeastShare = 1e-9;

/// Which corpus gives which sequence. A pure function of (weights, seed); intervals are rounded to
/// 2^-32 of the mean distance of sequences, shares thereby to 1e-10 of themselves.
class Mixture {
 public:
  /// `weights`: one a corpus, above 0; a corpus's share is its weight over their sum, at least
  /// kLeastShare.
  Mixture(std::span<const double> weights, std::uint64_t seed);

  struct Place {
    std::int64_t corpus = 0;
    std::int64_t number =
        0;  ///< of the corpus's own sequences, which are taken from 0 on, in order
    bool operator==(const Place&) const = default;
  };
  /// Of sequence `number`, from 0. Costs about the logarithm of the number.
  Place operator()(std::int64_t number) const;
  /// How many sequences of each corpus the first `count` are.
  std::vector<std::int64_t> taken(std::int64_t count) const;

  std::int64_t corpora() const { return static_cast<std::int64_t>(intervals_.size()); }
  double share(std::int64_t corpus) const;
  /// Seed of a corpus's own order: `seed` for the first, so that a mixture of one is that corpus.
  std::uint64_t seed_of(std::int64_t corpus) const;
  /// 32 hex digits over what decides the order beside the seed: the corpora's digests, in order,
  /// and their shares. Of one corpus its own.
  std::string digest(std::span<const std::string> corpora) const;

 private:
  using Time = unsigned __int128;
  Time due(std::size_t corpus, std::uint64_t number) const;
  /// Sequences of a corpus, or of all, that come before this time.
  std::uint64_t before(std::size_t corpus, Time time) const;
  std::uint64_t before(Time time) const;
  Time time_of(std::int64_t number) const;

  std::vector<std::uint64_t> intervals_;  // in ticks, by corpus
  std::uint64_t seed_;
};

/// The sequences of a mixture; each lies in one corpus. Where one of the corpora has label weights,
/// labels of the others weigh 1.
class MixedSequences final : public SequenceSource {
 public:
  /// `parts`: the sequences of each corpus, of one length, in the mixture's order.
  MixedSequences(Mixture mixture, std::vector<Sequences> parts);

  PackedDocuments documents(std::int64_t number) const override;
  void read(std::int64_t number, std::span<const Run> runs, Rows& rows) const override;

  const Mixture& mixture() const { return mixture_; }
  const Sequences& of(std::int64_t corpus) const {
    return parts_.at(static_cast<std::size_t>(corpus));
  }
  /// The latest epoch, from 0, that a sequence among the first `count` is in; count at least 1.
  std::int64_t latest_epoch(std::int64_t count) const;

 private:
  const Mixture mixture_;
  const std::vector<Sequences> parts_;
  bool weighs_ = false;
};

}  // namespace longhaul::runtime
