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
  if (columns == kLanes<float>) return store_rest(rest_of(exact, load_storage<S>(rounded), kDroppedBits<S>), rest);
  S stored[kLanes<float>] = {};
  int8_t bytes[kLanes<float>];
  std::memcpy(stored, rounded, columns * sizeof(S));
  store_rest(rest_of(exact, load_storage<S>(stored), kDroppedBits<S>), bytes);
  std::memcpy(rest, bytes, (columns + 7) / 8 * 8);
}

// The rounded values of the first `columns` lanes, with their rest.
template <class S>
HANOPS_INLINE Vec<float> with_rest(const Vec<float>& rounded, const int8_t* rest, int64_t columns) {
  if (columns == kLanes<float>) return add_rest(rounded, rest, kDroppedBits<S>);
  int8_t bytes[kLanes<float>] = {};
  std::memcpy(bytes, rest, columns);
  return add_rest(rounded, bytes, kDroppedBits<S>);
}

// Of row `row` from `column` on, where there is a rest.
template <class S, class Byte>
HANOPS_INLINE Byte* rest_at(const Planes<Byte>& rest, int64_t row, int64_t column) {
  return kRounds<S> && rest.data ? rest.data + row * rest.row_stride + column : nullptr;
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
