#include <immintrin.h>

#include <array>

#include "runtime/peak_impl.h"

#pragma GCC target("amx-tile,amx-bf16")

namespace longhaul::runtime::detail {
namespace {

constexpr int kRows = 16, kRowBytes = 64;  // of a tile: 16 x 32 bfloat16, or 16 x 16 float32
constexpr std::int64_t kTileBytes = kRows * kRowBytes;

/// The compiler does not see that instructions of tiles read memory: what lies there is written.
inline void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

/// What LDTILECFG reads: palette 1, eight full tiles.
struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

/// Eight tiles configured while it lives, and all zero.
class Tiles {
 public:
  Tiles() {
    Configuration configuration;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.row_bytes[tile] = kRowBytes;
      configuration.rows[tile] = kRows;
    }
    written(&configuration);
    _tile_loadconfig(&configuration);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

/// 16 tiles of a half each, as bfloat16.
struct alignas(64) Operands {
  std::array<std::uint16_t, 16 * kTileBytes / 2> elements;
  Operands() {
    elements.fill(0x3f00);
    written(elements.data());
  }
  const std::uint16_t* tile(std::int64_t index) const {
    return elements.data() + index % 16 * (kTileBytes / 2);
  }
};

}  // namespace

void sample_tiles() {
  const Operands operands;
  const Tiles tiles;
  _tile_loadd(4, operands.tile(0), kRowBytes);
  _tile_loadd(5, operands.tile(1), kRowBytes);
  _tile_loadd(6, operands.tile(2), kRowBytes);
  _tile_loadd(7, operands.tile(3), kRowBytes);
  for (std::int64_t step = 0; step < kTileSteps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

void sample_tiles_from_memory() {
  const Operands operands;
  const Tiles tiles;
  for (std::int64_t step = 0; step < kTileSteps; ++step) {
    _tile_loadd(4, operands.tile(4 * step), kRowBytes);
    _tile_loadd(6, operands.tile(4 * step + 1), kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, operands.tile(4 * step + 2), kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, operands.tile(4 * step + 3), kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

}  // namespace longhaul::runtime::detail
