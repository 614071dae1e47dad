#include "tests/support/amx_emulator.h"

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace longhaul::test {
namespace {

using Fault = AmxTiles::Fault;

float widened(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// A row of TDPBF16PS. Its own function: the mode of rounding is set around it.
[[gnu::noinline]] void dot_row(float* sum, std::size_t columns, const std::byte* a,
                               std::size_t pairs, const std::byte* b, std::size_t b_row_bytes) {
  float even[16] = {}, odd[16] = {};
  for (std::size_t k = 0; k < pairs; ++k) {
    std::uint32_t x = 0, y[16] = {};
    std::memcpy(&x, a + 4 * k, 4);
    std::memcpy(y, b + k * b_row_bytes, 4 * columns);
    const float first = widened(x << 16), second = widened(x & 0xffff0000U);
    for (std::size_t n = 0; n < columns; ++n) {
      even[n] = std::fma(first, widened(y[n] << 16), even[n]);
      odd[n] = std::fma(second, widened(y[n] & 0xffff0000U), odd[n]);
    }
  }
  for (std::size_t n = 0; n < columns; ++n) {
    const float both = even[n] + odd[n];
    sum[n] += both;
  }
}

}  // namespace

Fault AmxTiles::usable(int tile) const {
  if (!configured_) return "tiles are not configured";
  const Tile& t = tiles_[static_cast<std::size_t>(tile)];
  return t.rows == 0 || t.row_bytes == 0 ? "a tile outside the configuration" : nullptr;
}

Fault AmxTiles::configure(const std::byte* config) {
  const auto byte = [&](std::size_t at) { return std::to_integer<unsigned>(config[at]); };
  if (byte(0) == 0) {
    release();
    return nullptr;
  }
  if (byte(0) != 1) return "the palette of a configuration is neither 0 nor 1";
  if (byte(1) != 0) return "a configuration that starts in the middle of a tile";
  AmxTiles made;
  for (std::size_t i = 2; i < 16; ++i) {
    if (byte(i) != 0) return "a reserved byte of a configuration is not 0";
  }
  for (std::size_t tile = 0; tile < 16; ++tile) {
    const unsigned row_bytes = byte(16 + 2 * tile) + 256 * byte(17 + 2 * tile),
                   rows = byte(48 + tile);
    if (tile >= kTiles) {
      if (rows != 0 || row_bytes != 0) return "a configuration of a tile beyond the eighth";
      continue;
    }
    if (rows > kMostRows) return "a configuration of more than 16 rows";
    if (row_bytes > kRowBytes) return "a configuration of rows of more than 64 bytes";
    if ((rows == 0) != (row_bytes == 0)) return "a configuration of a tile with half a shape";
    made.tiles_[tile].rows = static_cast<std::uint8_t>(rows);
    made.tiles_[tile].row_bytes = static_cast<std::uint16_t>(row_bytes);
  }
  made.configured_ = true;
  *this = made;
  return nullptr;
}

Fault AmxTiles::zero(int tile) {
  if (const Fault fault = usable(tile)) return fault;
  tiles_[static_cast<std::size_t>(tile)].data = {};
  return nullptr;
}

Fault AmxTiles::load(int tile, const std::byte* from, std::int64_t stride) {
  if (const Fault fault = usable(tile)) return fault;
  Tile& t = tiles_[static_cast<std::size_t>(tile)];
  for (std::size_t row = 0; row < t.rows; ++row, from += stride)
    std::memcpy(t.data[row].data(), from, t.row_bytes);
  return nullptr;
}

Fault AmxTiles::store(int tile, std::byte* to, std::int64_t stride) const {
  if (const Fault fault = usable(tile)) return fault;
  const Tile& t = tiles_[static_cast<std::size_t>(tile)];
  for (std::size_t row = 0; row < t.rows; ++row, to += stride)
    std::memcpy(to, t.data[row].data(), t.row_bytes);
  return nullptr;
}

Fault AmxTiles::dot(int sum, int a, int b) {
  for (const int tile : {sum, a, b}) {
    if (const Fault fault = usable(tile)) return fault;
  }
  if (sum == a || sum == b || a == b) return "TDPBF16PS of a tile and itself";
  Tile& c = tiles_[static_cast<std::size_t>(sum)];
  const Tile &left = tiles_[static_cast<std::size_t>(a)],
             &right = tiles_[static_cast<std::size_t>(b)];
  if (c.row_bytes % 4 != 0 || left.row_bytes % 4 != 0 || right.row_bytes % 4 != 0)
    return "TDPBF16PS of rows that are no multiple of 4 bytes";
  if (c.rows != left.rows || c.row_bytes != right.row_bytes || left.row_bytes / 4 != right.rows)
    return "TDPBF16PS of tiles whose shapes do not go together";
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x1f80 | 0x8040);  // to nearest even, subnormals are zeros, nothing raised
  for (std::size_t row = 0; row < c.rows; ++row) {
    float values[16] = {};
    std::memcpy(values, c.data[row].data(), c.row_bytes);
    dot_row(values, c.row_bytes / 4U, left.data[row].data(), right.rows, right.data[0].data(),
            kRowBytes);
    c.data[row] = {};
    std::memcpy(c.data[row].data(), values, c.row_bytes);
  }
  _mm_setcsr(before);
  return nullptr;
}

namespace {

thread_local AmxTiles tiles_of_thread;
struct sigaction action_before;

[[noreturn]] void stop(const char* why, const std::uint8_t* at) {
  char text[256];
  const int length = std::snprintf(
      text, sizeof text, "AMX emulator: %s: %02x %02x %02x %02x %02x %02x %02x %02x at %p\n", why,
      at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], static_cast<const void*>(at));
  [[maybe_unused]] const auto written =
      write(STDERR_FILENO, text, static_cast<std::size_t>(length));
  std::abort();
}

/// The general registers of a trap, by their numbers in instructions.
class Registers {
 public:
  explicit Registers(ucontext_t& context) : values_(context.uc_mcontext.gregs) {}
  std::int64_t operator[](unsigned number) const {
    static constexpr int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                        REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                        REG_R12, REG_R13, REG_R14, REG_R15};
    return values_[kPlaces[number]];
  }

 private:
  const greg_t* values_;
};

/// A three-byte VEX instruction of 128 bits of map 0F38 with W 0, as all of AMX's are.
struct Instruction {
  const std::uint8_t* bytes;
  std::uint8_t prefix, opcode, modrm;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  unsigned vvvv, reg, rm;
  bool of_memory;
  std::int64_t address = 0, stride = 0;
  int length = 5;

  /// Whether it is of AMX.
  bool read(const std::uint8_t* at) {
    bytes = at;
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84) != 0) return false;
    prefix = at[2] & 3;
    opcode = at[3];
    modrm = at[4];
    if (opcode != 0x49 && opcode != 0x4b && opcode != 0x5c) return false;
    vvvv = (~static_cast<unsigned>(at[2]) >> 3) & 15;
    reg = (modrm >> 3) & 7U;
    rm = modrm & 7U;
    of_memory = modrm >> 6 != 3;
    return true;
  }

  /// base + displacement and index * scale, as ModRM, SIB and what follows have them.
  void read_address(const Registers& registers) {
    const unsigned mode = modrm >> 6, high_base = (bytes[1] & 0x20) == 0 ? 8 : 0,
                   high_index = (bytes[1] & 0x40) == 0 ? 8 : 0;
    bool has_base = true, from_here = false;
    unsigned base = rm;
    if (rm == 4) {
      const unsigned sib = bytes[length++], index = ((sib >> 3) & 7) + high_index;
      base = sib & 7;
      if (index != 4) stride = registers[index] * (1 << (sib >> 6));
      has_base = base != 5 || mode != 0;
    } else if (rm == 5 && mode == 0) {
      has_base = false;
      from_here = true;
    }
    if (has_base) address = registers[base + high_base];
    if (mode == 1) {
      address += static_cast<std::int8_t>(bytes[length++]);
    } else if (mode == 2 || !has_base) {
      std::int32_t displacement = 0;
      std::memcpy(&displacement, bytes + length, 4);
      length += 4;
      address += displacement;
    }
    if (from_here) address += reinterpret_cast<std::intptr_t>(bytes) + length;
  }
};

/// nullptr and done, or what is wrong.
Fault execute(const Instruction& at, AmxTiles& tiles) {
  constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;
  auto* const memory = reinterpret_cast<std::byte*>(at.address);
  const int reg = static_cast<int>(at.reg), rm = static_cast<int>(at.rm);
  if (at.opcode == 0x5c && at.prefix == kF3 && !at.of_memory)
    return at.vvvv < 8 ? tiles.dot(reg, rm, static_cast<int>(at.vvvv)) : "no such tile";
  if (at.vvvv != 0) return "no instruction: VEX.vvvv is in use";
  if (at.opcode == 0x49 && at.prefix == kNone && at.of_memory && reg == 0)
    return tiles.configure(memory + at.stride);
  if (at.opcode == 0x49 && at.prefix == kNone && at.modrm == 0xc0) return tiles.release(), nullptr;
  if (at.opcode == 0x49 && at.prefix == kF2 && !at.of_memory && rm == 0) return tiles.zero(reg);
  if (at.opcode == 0x4b && at.of_memory && rm == 4) {
    if (at.prefix == kF2 || at.prefix == k66) return tiles.load(reg, memory, at.stride);
    if (at.prefix == kF3) return tiles.store(reg, memory, at.stride);
  }
  return "an instruction that is not emulated";
}

void on_illegal_instruction(int, siginfo_t*, void* raw) {
  auto& context = *static_cast<ucontext_t*>(raw);
  greg_t& next = context.uc_mcontext.gregs[REG_RIP];
  Instruction instruction;
  const auto at_next = [&] {
    instruction = {};
    return instruction.read(reinterpret_cast<const std::uint8_t*>(next));
  };
  if (!at_next()) {  // not ours: it traps again, as it would have
    sigaction(SIGILL, &action_before, nullptr);
    return;
  }
  do {  // those behind it need no trap of their own
    if (instruction.of_memory) instruction.read_address(Registers(context));
    if (const Fault fault = execute(instruction, tiles_of_thread)) stop(fault, instruction.bytes);
    next += instruction.length;
  } while (at_next());
}

void emulate_from_here_on() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &action_before);
  });
}

}  // namespace

std::string no_amx_reason() {
  if (runtime::best_cpu_level() == runtime::CpuLevel::amx) return "";
  if (runtime::best_cpu_level() < runtime::CpuLevel::avx512 ||
      !__builtin_cpu_supports("avx512bf16"))
    return "needs AVX-512 with conversions to bfloat16 beside the emulated tiles";
  return "";
}

AmxLevel::AmxLevel() : before_(runtime::cpu_level()) {
  if (runtime::best_cpu_level() != runtime::CpuLevel::amx) emulate_from_here_on();
  runtime::set_cpu_level(runtime::CpuLevel::amx);
}

AmxLevel::~AmxLevel() { runtime::set_cpu_level(before_); }

}  // namespace longhaul::test
