#pragma once
// AMX in software, for machines without it: the instructions that our kernels use trap there, and
// are executed here. Slow (some microseconds an instruction) and exact: the arithmetic is that of
// the manual's pseudocode (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
// TDPBF16PS), element by element in its order.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/cpu_level.h"

namespace longhaul::test {

/// The tiles of one thread. Functions return what is wrong with an instruction, which then did
/// nothing, or nothing.
class AmxTiles {
 public:
  static constexpr int kTiles = 8;
  static constexpr std::size_t kMostRows = 16, kRowBytes = 64;
  using Fault = const char*;

  /// LDTILECFG: 64 bytes in the format of palette 1. Zeroes every tile.
  Fault configure(const std::byte* config);
  /// TILERELEASE.
  void release() { *this = {}; }
  /// TILEZERO.
  Fault zero(int tile);
  /// TILELOADD, TILELOADDT1: rows `stride` bytes apart.
  Fault load(int tile, const std::byte* from, std::int64_t stride);
  /// TILESTORED.
  Fault store(int tile, std::byte* to, std::int64_t stride) const;
  /// TDPBF16PS: sum += a b, where a is [rows][pairs] and b [pairs][columns] of pairs of bfloat16.
  Fault dot(int sum, int a, int b);

 private:
  struct Tile {
    std::uint16_t row_bytes = 0;
    std::uint8_t rows = 0;
    alignas(64) std::array<std::array<std::byte, kRowBytes>, kMostRows> data{};
  };
  Fault usable(int tile) const;

  bool configured_ = false;
  std::array<Tile, kTiles> tiles_{};
};

/// Why kernels for AMX cannot run here, on tiles or emulated ones: they need AVX-512 with
/// conversions to bfloat16 besides. Empty if they can.
std::string no_amx_reason();

/// While it lives the CPU's level is amx. Where the machine has no AMX, its instructions are
/// emulated from here on; what is wrong with one is told on stderr, and the process aborts. Only
/// where no_amx_reason() is empty.
class AmxLevel {
 public:
  AmxLevel();
  ~AmxLevel();
  AmxLevel(const AmxLevel&) = delete;
  AmxLevel& operator=(const AmxLevel&) = delete;

 private:
  runtime::CpuLevel before_;
};

}  // namespace longhaul::test
