// The packed sign bits of a stack: how many bytes a row and layer has, and which bit is which column's. Free of torch.
//
// On the CPU bit j of byte i is column 8 i + j, and a row and layer has S = ceil(d / 8) bytes. Elsewhere ("chunked")
// bit k of byte c is column k S + c, with S = next_power_of_2(max(d, 32)) / 8. Where the rest of y is kept too, it is
// in 8 further planes, as many bytes as columns. hanops/definition/signs.py and rest.py say the same.
//
// Where the columns are not the last axis of x, there are words of 32 columns, for each position along the axes after
// it, on every device: bit k of word w is column 32 w + k, and of the rest byte j of word w in plane p is column
// 32 w + 4 p + j.
#pragma once

#include <cstdint>

// On the CPU these are always inlined: an instruction set's object may not leave code under a name that others share.
#ifdef __CUDACC__
#define HANOPS_SIGNS __host__ __device__
#else
#define HANOPS_SIGNS [[gnu::always_inline]] inline
#endif

namespace hanops {

// Layers that end in an absolute value, and so have bits: the first so many. Without `abs` none does.
template <class Int>
HANOPS_SIGNS Int layers_with_abs(Int layers, bool final_abs, bool abs) {
  if (!abs) return Int(0);
  return final_abs || layers == 0 ? layers : layers - 1;
}

template <class Int>
HANOPS_SIGNS Int sign_bytes(Int features) {
  return (features + 7) / 8;
}

template <class Int>
HANOPS_SIGNS Int chunked_sign_bytes(Int features) {
  Int bytes = 4;
  while (8 * bytes < features) bytes *= 2;
  return bytes;
}

constexpr int64_t kWordColumns = 32;  // of a sign word, of four bytes

template <class Int>
HANOPS_SIGNS Int word_count(Int features) {
  return (features + Int(kWordColumns - 1)) / Int(kWordColumns);
}

// The planes of what rounding took from y, after those of a row's layers: byte j of them is column j's.
constexpr int kRestPlanes = 8;

template <class Int>
struct SignBit {
  Int byte, bit;
};

template <class Int>
HANOPS_SIGNS SignBit<Int> sign_bit(Int column) {
  return {column / 8, column % 8};
}

template <class Int>
HANOPS_SIGNS SignBit<Int> chunked_sign_bit(Int column, Int bytes) {
  return {column % bytes, column / bytes};
}

}  // namespace hanops
