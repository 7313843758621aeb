// The rest of y: what rounding to bfloat16 or float16 takes from a float32, in one byte a column.
//
// It is the difference of the two values' bits, as wide as a byte from where the rounded value's end, to nearest;
// saturated, and 0 where the rounded value is not finite. hanops/definition/rest.py says the same.
#pragma once

#include "tile.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Whether there is one in this storage type.
template <class S>
constexpr bool kRounds = std::is_same_v<S, c10::BFloat16> || std::is_same_v<S, c10::Half>;

// Bits of a float32 below those of the byte.
template <class S>
constexpr int kDroppedBits = std::is_same_v<S, c10::BFloat16> ? 8 : 5;

// Writes the rest of the first `columns` lanes, which are stored at `rounded`, and 0 up to a whole 8.
template <class S>
HANOPS_INLINE void write_rest(const Vec<float>& exact, const S* rounded, int8_t* rest, int64_t columns) {
  constexpr uint32_t kExponent = 0x7f800000, kHalf = 1u << (kDroppedBits<S> - 1);
  uint32_t bits[kLanes<float>], stored[kLanes<float>];
  S kept[kLanes<float>] = {};
  std::memcpy(kept, rounded, columns * sizeof(S));
  exact.store(bits);
  load_storage<S>(kept).store(stored);
  int8_t bytes[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) {
    const int32_t more = static_cast<int32_t>(bits[i] - stored[i] + kHalf) >> kDroppedBits<S>;
    const int32_t byte = more < -128 ? -128 : more > 127 ? 127 : more;
    bytes[i] = static_cast<int8_t>((stored[i] & kExponent) == kExponent ? 0 : byte);
  }
  std::memcpy(rest, bytes, (columns + 7) / 8 * 8);
}

// The rounded values of the first `columns` lanes, with their rest.
template <class S>
HANOPS_INLINE Vec<float> with_rest(const Vec<float>& rounded, const int8_t* rest, int64_t columns) {
  uint32_t bits[kLanes<float>];
  int8_t bytes[kLanes<float>] = {};
  std::memcpy(bytes, rest, columns);
  rounded.store(bits);
  for (int i = 0; i < kLanes<float>; ++i) bits[i] += static_cast<uint32_t>(int32_t(bytes[i])) << kDroppedBits<S>;
  return Vec<float>::loadu(bits);
}

// Of row `row` from `column` on, where there is a rest.
template <class S, class Byte>
HANOPS_INLINE Byte* rest_at(const Planes<Byte>& rest, int64_t row, int64_t column) {
  return kRounds<S> && rest.data ? rest.data + row * rest.row_stride + column : nullptr;
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
