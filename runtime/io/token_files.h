#pragma once
// Files of token ids that other programs have made: their documents, a piece at a time.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

namespace longhaul::runtime {

/// Tokens of the document at hand, in order.
struct TokenPiece {
  std::span<const std::int32_t> tokens;  ///< valid during the call
  bool ends_document = false;            ///< then they may be none
  std::int64_t bytes = 0;                ///< of the files, read so far
};
using TakeTokens = std::function<void(const TokenPiece&)>;

/// Whether the file begins as the index of a Megatron dataset does.
bool is_megatron_index(const std::filesystem::path& path);
/// NAME.bin of the index NAME.idx.
std::filesystem::path megatron_data(const std::filesystem::path& index);
/// A dataset of Megatron-LM: NAME.idx and NAME.bin (megatron/core/datasets/indexed_dataset.py,
/// IndexedDatasetBuilder). All numbers are little-endian. The index is "MMIDIDX\0\0", version
/// uint64 1, dtype uint8 (1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16), sequences uint64
/// n, boundaries uint64 m, the sequences' lengths int32 [n], their places int64 [n] (bytes in the
/// data, one behind the other), and the first sequence of each document int64 [m], the last of
/// which is n. The data is the tokens. Everything is checked before the first piece is given, but
/// for ids, which must be in [0, vocabulary). Throws: Error(data) naming file and index, also for
/// multimodal datasets; Error(io).
void read_megatron(const std::filesystem::path& index, std::int64_t vocabulary,
                   const TakeTokens& take);

/// Whether the file begins as a file of tokens of llm.c does.
bool is_llmc(const std::filesystem::path& path);
/// A file of tokens of llm.c (dev/data/data_common.py, write_datafile): 256 int32, of which the
/// first three are magic, version and the number of tokens, then the tokens: uint16 for magic
/// 20240520 (version 1, GPT-2), uint32 for 20240801 (version 7, Llama 3). A document begins at each
/// token `document_start`, which stays in it, and at the file's beginning. Throws as
/// read_megatron().
void read_llmc(const std::filesystem::path& path, std::int64_t vocabulary,
               std::int64_t document_start, const TakeTokens& take);

}  // namespace longhaul::runtime
