// What vec.h asks of an instruction set, lane by lane, for any processor.
#pragma once

#include <cmath>

#include "vec_types.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <class A>
HANOPS_INLINE Vec<A> nmadd(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
  return c - a * b;
}

template <class A>
HANOPS_INLINE Wide<A> widen(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    float lanes[kLanes<A>];
    double wide[kLanes<A>];
    v.store(lanes);
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = lanes[i];
    return Wide<A>::loadu(wide);
  }
}

template <class A>
HANOPS_INLINE Vec<A> narrow(const Wide<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    double wide[kLanes<A>];
    float lanes[kLanes<A>];
    v.store(wide);
    for (int i = 0; i < kLanes<A>; ++i) lanes[i] = static_cast<float>(wide[i]);
    return load<A>(lanes);
  }
}

template <class A>
HANOPS_INLINE SignWord<A> sign_bits(const Vec<A>& v) {
  A lanes[kLanes<A>];
  v.store(lanes);
  unsigned bits = 0;
  for (int i = 0; i < kLanes<A>; ++i) bits |= unsigned(std::signbit(lanes[i])) << i;
  return bits;
}

template <class A>
HANOPS_INLINE Vec<A> flip(const Vec<A>& v, SignWord<A> bits) {
  A lanes[kLanes<A>];
  v.store(lanes);
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = bits >> i & 1 ? -lanes[i] : lanes[i];
  return load<A>(lanes);
}

HANOPS_INLINE Vec<float> rest_of(const Vec<float>& exact, const Vec<float>& rounded, int shift) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t bits[kLanes<float>], stored[kLanes<float>];
  exact.store(bits);
  rounded.store(stored);
  for (int i = 0; i < kLanes<float>; ++i) {
    const int32_t rest = static_cast<int32_t>(bits[i] - stored[i] + (1u << (shift - 1))) >> shift;
    bits[i] = (stored[i] & kExponent) == kExponent ? 0 : static_cast<uint32_t>(rest);
  }
  return Vec<float>::loadu(bits);
}

HANOPS_INLINE int8_t rest_byte(int32_t rest) {
  return static_cast<int8_t>(rest < -128 ? -128 : rest > 127 ? 127 : rest);
}

HANOPS_INLINE void store_rest(const Vec<float>& rest, int8_t* bytes) {
  int32_t lanes[kLanes<float>];
  rest.store(lanes);
  for (int i = 0; i < kLanes<float>; ++i) bytes[i] = rest_byte(lanes[i]);
}

HANOPS_INLINE Vec<float> pack_rest(const Registers<float, 4>& rests) {
  int8_t bytes[kLanes<float>][4];
  unroll<4>([&](auto j) HANOPS_LAMBDA {
    int32_t lanes[kLanes<float>];
    rests[j].store(lanes);
    for (int i = 0; i < kLanes<float>; ++i) bytes[i][j] = rest_byte(lanes[i]);
  });
  return Vec<float>::loadu(bytes);
}

template <int kByte>
HANOPS_INLINE Vec<float> add_rest_byte(const Vec<float>& rounded, const Vec<float>& words, int shift) {
  uint32_t bits[kLanes<float>];
  int8_t bytes[kLanes<float>][4];
  rounded.store(bits);
  words.store(bytes);
  for (int i = 0; i < kLanes<float>; ++i) bits[i] += static_cast<uint32_t>(int32_t{bytes[i][kByte]}) << shift;
  return Vec<float>::loadu(bits);
}

HANOPS_INLINE Vec<float> add_rest(const Vec<float>& rounded, const int8_t* bytes, int shift) {
  uint32_t bits[kLanes<float>];
  rounded.store(bits);
  for (int i = 0; i < kLanes<float>; ++i) bits[i] += static_cast<uint32_t>(int32_t{bytes[i]}) << shift;
  return Vec<float>::loadu(bits);
}

HANOPS_INLINE void transpose(Registers<float, kLanes<float>>& rows) {
  constexpr int n = kLanes<float>;
  float in[n][n], out[n][n];
  rows.store(in[0]);
  for (int r = 0; r < n; ++r) {
    for (int i = 0; i < n; ++i) std::memcpy(&out[i][r], &in[r][i], sizeof(float));
  }
  rows = Registers<float, n>::load(out[0]);
}

HANOPS_INLINE Vec<float> square_sums(const float* rows) {
  constexpr int n = kLanes<float>;
  float out[n];
  for (int r = 0; r < n; ++r) out[r] = sum<float>(load(rows + r * n));
  return load<float>(out);
}

HANOPS_INLINE Vec<float> pack_signs(const Vec<float>& first, const Vec<float>& second) {
  uint32_t a[kLanes<float>], b[kLanes<float>];
  first.store(a);
  second.store(b);
  for (int i = 0; i < kLanes<float>; ++i) a[i] = (a[i] >> 31) << 7 | (b[i] >> 31) << 15;
  return Vec<float>::loadu(a);
}

HANOPS_INLINE Vec<float> push_signs(const Vec<float>& bytes, const Vec<float>& first_pair,
                                    const Vec<float>& second_pair) {
  uint32_t older[kLanes<float>], a[kLanes<float>], b[kLanes<float>];
  bytes.store(older);
  first_pair.store(a);
  second_pair.store(b);
  for (int i = 0; i < kLanes<float>; ++i) a[i] = a[i] | b[i] << 16 | (older[i] >> 1 & 0x7F7F7F7F);
  return Vec<float>::loadu(a);
}

HANOPS_INLINE Vec<float> sign_words(const Vec<float>& bytes) { return bytes; }

HANOPS_INLINE Vec<float> shift_words(const Vec<float>& words, int left) {
  uint32_t w[kLanes<float>];
  words.store(w);
  for (int i = 0; i < kLanes<float>; ++i) w[i] <<= left;
  return Vec<float>::loadu(w);
}

HANOPS_INLINE Vec<float> flip_by_top(const Vec<float>& v, const Vec<float>& words) {
  return v ^ (words & Vec<float>(-0.f));
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
