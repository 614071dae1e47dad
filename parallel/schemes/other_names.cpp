#include "parallel/schemes/other_names.h"

#include <cctype>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

constexpr const char* kZigzag = "with context_parallel_layout = \"zigzag\" beside it";
constexpr const char* kStriped = "with context_parallel_layout = \"striped\" beside it";

constexpr OtherName kOtherNames[] = {
    {"ring", "ring_attention ring_attn ring_flash_attn ring_flash_attention p2p"},
    {"ring", "zigzag zigzag_ring zigzag_ring_attn zigzag_ring_attention", kZigzag},
    {"ring", "stripe striped striped_ring stripe_attention striped_attention", kStriped},
    {"ring", "flash flash_attn flash_attention flash_attention_2 sdpa",
     "how one device attends is no scheme"},
    {"burst", "burst_attention burst_attn burstattention burst_engine burstengine"},
    {"double_ring", "loongtrain double_ring_attention 2d_attention hierarchical hierarchical_ring"},
    {"ring_self_attention", "rsa sequence_parallel"},
    {"balanced_ring", "dist_flash_attn distflashattn dist_attn lightseq"},
    {"all_gather", "allgather all_gather_kv llama3 llama_3"},
    {"ulysses", "a2a all_to_all alltoall deepspeed_ulysses ds_ulysses ulysses_attention"},
    {"usp", "a2a_p2p unified unified_sp hybrid ulysses_ring"},
    {"group_cast", "magi magiattention magi_attention"},
};

}  // namespace

std::span<const OtherName> other_names() { return kOtherNames; }

const OtherName* find_other_name(const std::string& name) {
  std::string word = " ";
  for (const char c : name)
    word +=
        c == '-' || c == '+' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  word += ' ';
  if (word.find(' ', 1) != word.size() - 1 || word.size() == 2) return nullptr;
  for (const OtherName& other : kOtherNames) {
    if ((" " + std::string(other.words) + " ").find(word) != std::string::npos) return &other;
  }
  return nullptr;
}

std::string says(const OtherName& other) {
  return runtime::concat("here it is called '", other.scheme, "'", *other.note != '\0' ? ": " : "",
                         other.note);
}

}  // namespace longhaul::parallel
