#include "attention/sdpa_plan.h"

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>

#include "attention/sdpa.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::concat;

// Estimates from launch/gpu/RESULTS.md; only which kernels `automatic` takes depends on them.
constexpr double kExactFlops = 1.2e13, kSdpaFlops = 2e14, kSdpaCallSeconds = 2e-5;
/// A graph takes up to a second to make, and every batch has documents of other lengths: so many
/// pieces of some 50 microseconds get one of their own, and more where they take half a
/// millisecond, which a ragged graph's would nearly double.
constexpr double kDenseFlops = 1.5e10, kLargeFlops = 1e11;
constexpr std::size_t kDenseForms = 4, kLargeForms = 32;
/// Deterministic backward holds two bytes a query head, query row and key row of an entry.
constexpr std::int64_t kDeterministicBytes = std::int64_t{1} << 30;

/// Why cuDNN does not take such calls; empty where it does.
std::string refusal(const BlockShape& s, const Scoring& scoring) {
  if (s.activation != runtime::DType::bfloat16)
    return concat("the activation dtype is ", name(s.activation),
                  ", cuDNN's kernels take bfloat16");
  if (scoring.weighting != Weighting::softmax) return "cuDNN has no sigmoid attention";
  if (scoring.softcap != 0) return "cuDNN's kernels have no softcap";
  const std::int64_t d = s.dim, dv = s.value_dim;
  // Others than multiples of 16 take kernels whose ragged workspace is that of a padded batch.
  const bool small = d % 16 == 0 && dv % 16 == 0 && d >= 16 && dv >= 16 && d <= 128 && dv <= 128;
  if (!small && !(d == 256 && dv == 256) && !(d == 192 && dv == 128)) {
    return concat("head dims are ", d, " and ", dv,
                  "; cuDNN's kernels take multiples of 16 up to 128, 256 and 256, 192 and 128");
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (s.q_rows * s.heads >= kMost || s.k_rows * s.kv_heads >= kMost)
    return concat(s.q_rows, " and ", s.k_rows, " rows of ", s.heads, " and ", s.kv_heads,
                  " heads; cuDNN's kernels count them in 32 bits");
  return {};
}

double flops(Pass pass, double pairs, const BlockShape& s) {
  const auto d = static_cast<double>(s.dim), dv = static_cast<double>(s.value_dim);
  return pairs * static_cast<double>(s.heads) *
         (pass == Pass::forward ? 2 * (d + dv) : 2 * (3 * d + 2 * dv));
}

/// Equal pieces at equal distances.
struct Group {
  std::vector<Piece> pieces;
  double pairs = 0;

  auto form() const {
    const Piece &a = pieces.front(), &b = pieces.size() > 1 ? pieces[1] : a;
    return std::tuple(a.q_rows(), a.k_rows(), a.mask, pieces.size(), b.q_begin - a.q_begin,
                      b.k_begin - a.k_begin);
  }
  bool takes(const Piece& next) const {
    const Piece& last = pieces.back();
    const std::int64_t q_step = next.q_begin - last.q_begin, k_step = next.k_begin - last.k_begin;
    if (q_step < last.q_rows() || k_step < last.k_rows()) return false;
    if (pieces.size() == 1) return true;
    const Piece& before = pieces[pieces.size() - 2];
    return q_step == last.q_begin - before.q_begin && k_step == last.k_begin - before.k_begin;
  }
};

std::vector<Group> groups_of(const std::vector<Piece>& pieces) {
  // By size and mask, then in rows' order, which pieces come in.
  std::map<std::tuple<std::int64_t, std::int64_t, SdpaMask>, std::vector<Piece>> equal;
  for (const Piece& piece : pieces)
    equal[{piece.q_rows(), piece.k_rows(), piece.mask}].push_back(piece);
  std::vector<Group> groups;
  for (const auto& [key, members] : equal) {
    const auto pairs = static_cast<double>(area(slice_of(members.front())));
    const std::size_t first = groups.size();
    for (const Piece& piece : members) {
      if (groups.size() == first || !groups.back().takes(piece)) groups.emplace_back();
      groups.back().pieces.push_back(piece);
      groups.back().pairs += pairs;
    }
  }
  std::ranges::stable_sort(groups, std::greater(), &Group::pairs);
  return groups;
}

/// Bytes that a deterministic backward of these entries asks for.
std::int64_t deterministic_bytes(std::size_t entries, std::int64_t q_rows, std::int64_t k_rows,
                                 const BlockShape& s) {
  return 2 * static_cast<std::int64_t>(entries) * s.heads * q_rows * k_rows;
}

bool fits_dense(const Group& group, const BlockShape& shape, bool deterministic) {
  const Piece& first = group.pieces.front();
  if (first.q_rows() == 1 && first.k_rows() == 1) return false;  // refused by cuDNN's backward
  return !deterministic || deterministic_bytes(group.pieces.size(), first.q_rows(), first.k_rows(),
                                               shape) <= kDeterministicBytes;
}

/// Pieces by the mask that they go under in a ragged call. One row that sees all is causal too, and
/// what is causal is any window of as many keys.
std::map<SdpaMask, std::vector<Piece>> by_mask(std::vector<Piece> pieces) {
  constexpr SdpaMask kCausal{Diagonal::bottom_right, -1, 0};
  std::map<SdpaMask, std::vector<Piece>> all;
  std::vector<Piece> causal;
  for (const Piece& piece : pieces) {
    const bool row = piece.mask.diagonal == Diagonal::none && piece.q_rows() == 1;
    (row || piece.mask == kCausal ? causal : all[piece.mask]).push_back(piece);
  }
  const auto window = std::ranges::find_if(all, [](const auto& entry) {
    const SdpaMask& mask = entry.first;
    return mask.diagonal == Diagonal::bottom_right && mask.right == 0;
  });
  std::vector<Piece>* wide = window == all.end() ? nullptr : &window->second;
  const std::int64_t keys = wide ? window->first.left : 0;
  for (const Piece& piece : causal)
    (piece.k_rows() <= keys ? *wide : all[kCausal]).push_back(piece);
  return all;
}

/// The pieces of one mask in as few ragged calls as a pass in their order finds.
void add_ragged(const SdpaMask& mask, const std::vector<Piece>& pieces, const BlockShape& shape,
                bool deterministic, std::vector<SdpaCall>& calls) {
  struct Round {
    std::vector<Piece> pieces;
    std::int64_t q_rows = 0, k_rows = 0;
  };
  std::vector<Round> rounds;
  for (const Piece& piece : pieces) {
    const auto fits = [&](const Round& round) {
      if (piece.q_begin < round.pieces.back().q_end || piece.k_begin < round.pieces.back().k_end)
        return false;
      return !deterministic || deterministic_bytes(std::bit_ceil(round.pieces.size() + 1),
                                                   std::max(round.q_rows, piece.q_rows()),
                                                   std::max(round.k_rows, piece.k_rows()),
                                                   shape) <= kDeterministicBytes;
    };
    auto round = std::ranges::find_if(rounds, fits);
    if (round == rounds.end()) round = rounds.insert(rounds.end(), Round());
    round->pieces.push_back(piece);
    round->q_rows = std::max(round->q_rows, piece.q_rows());
    round->k_rows = std::max(round->k_rows, piece.k_rows());
  }
  for (Round& round : rounds) {
    calls.push_back({true, mask, std::move(round.pieces)});
  }
}

/// A diagonal from the top left corner of a square is one into its bottom right one, and faster.
void simplify(SdpaCall& call) {
  if (call.mask.diagonal == Diagonal::bottom_right &&
      std::ranges::all_of(call.pieces, &Piece::square))
    call.mask.diagonal = Diagonal::top_left;
}

std::vector<SdpaCall> calls_of(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
                               const BlockPlace& place) {
  const bool deterministic = place.deterministic && pass == Pass::backward;
  std::vector<Piece> pieces = pieces_of(coalesced(bands));
  if (deterministic)
    pieces = divided(pieces, std::max<std::int64_t>(1, kDeterministicBytes / 2 / shape.heads));
  std::vector<Group> groups = groups_of(pieces);
  std::vector<SdpaCall> calls;
  std::vector<decltype(groups.front().form())> forms;
  std::vector<Piece> left;
  for (Group& group : groups) {
    const auto& first = group.pieces.front();
    const bool known = std::ranges::find(forms, group.form()) != forms.end(),
               alone = groups.size() == 1, fits = fits_dense(group, shape, deterministic);
    const double work = flops(pass, group.pairs, shape);
    const std::size_t most = work >= kLargeFlops ? kLargeForms : kDenseForms;
    if (fits && (alone || (work >= kDenseFlops && (known || forms.size() < most)))) {
      if (!known) forms.push_back(group.form());
      calls.push_back({false, first.mask, std::move(group.pieces)});
    } else {
      left.insert(left.end(), group.pieces.begin(), group.pieces.end());
    }
  }
  for (auto& [mask, members] : by_mask(std::move(left))) {
    std::ranges::sort(members, {}, [](const Piece& p) { return std::pair(p.q_begin, p.k_begin); });
    add_ragged(mask, members, shape, deterministic, calls);
  }
  for (SdpaCall& call : calls) simplify(call);
  return calls;
}

KernelChoice exact_or_refused(const std::string& why, const BlockPlace& place) {
  if (place.kernels == Kernels::cudnn) {
    runtime::fail(runtime::ExitCode::config, "attention by cuDNN is demanded, but ", why,
                  "; let the choice be automatic, or exact");
  }
  return {{}, why};
}

}  // namespace

KernelChoice choose_kernels(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
                            const Scoring& scoring, const BlockPlace& place) {
  if (place.kernels == Kernels::exact) return {{}, "the exact kernels are asked for"};
  if (const std::string why = refusal(shape, scoring); !why.empty())
    return exact_or_refused(why, place);
  if (bands.empty() || shape.heads == 0) return {{}, "nothing is visible"};
  KernelChoice choice{calls_of(pass, bands, shape, place), {}};
  if (place.kernels == Kernels::cudnn) return choice;
  const double work = flops(pass, static_cast<double>(area(bands)), shape);
  const auto calls = static_cast<double>(choice.calls.size());
  if (kSdpaCallSeconds * calls + work / kSdpaFlops > work / kExactFlops) {
    return {{},
            concat("its ", area(bands), " pairs in ", choice.calls.size(),
                   choice.calls.size() == 1 ? " call" : " calls",
                   " of cuDNN's take longer than the exact kernels do")};
  }
  return choice;
}

KernelShares& KernelShares::operator+=(const KernelShares& other) {
  dense += other.dense;
  ragged += other.ragged;
  exact += other.exact;
  return *this;
}

KernelShares& KernelShares::operator*=(std::int64_t factor) {
  dense *= factor;
  ragged *= factor;
  exact *= factor;
  return *this;
}

KernelShares shares_of(const KernelChoice& choice, const std::vector<Slice>& bands) {
  KernelShares shares;
  if (choice.exact()) {
    shares.exact = area(bands);
    return shares;
  }
  for (const SdpaCall& call : choice.calls) {
    for (const Piece& piece : call.pieces)
      (call.ragged ? shares.ragged : shares.dense) += area(slice_of(piece));
  }
  return shares;
}

}  // namespace longhaul::attention
