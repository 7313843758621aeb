// AVX2 where at::vec has no word for it; vec.h says what each function does.
#pragma once

#include "vec_types.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <class A>
HANOPS_INLINE Vec<A> nmadd(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_fnmadd_ps(a, b, c);
  } else {
    return {_mm256_fnmadd_pd(a[0], b[0], c[0]), _mm256_fnmadd_pd(a[1], b[1], c[1])};
  }
}

template <class A>
HANOPS_INLINE Wide<A> widen(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
}

template <class A>
HANOPS_INLINE Vec<A> narrow(const Wide<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    return _mm256_set_m128(_mm256_cvtpd_ps(v[1]), _mm256_cvtpd_ps(v[0]));
  }
}

template <class A>
HANOPS_INLINE SignWord<A> sign_bits(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_movemask_ps(v);
  } else {
    return _mm256_movemask_pd(v[0]) | _mm256_movemask_pd(v[1]) << 4;
  }
}

// Four lanes by four bits.
HANOPS_INLINE __m256d flip_half(__m256d v, int64_t bits) {
  const __m256i sign = _mm256_sllv_epi64(_mm256_set1_epi64x(bits), _mm256_setr_epi64x(63, 62, 61, 60));
  return _mm256_xor_pd(v, _mm256_and_pd(_mm256_castsi256_pd(sign), _mm256_set1_pd(-0.)));
}

template <class A>
HANOPS_INLINE Vec<A> flip(const Vec<A>& v, SignWord<A> bits) {
  if constexpr (std::is_same_v<A, float>) {
    const __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32(bits), shift);
    return _mm256_xor_ps(v, _mm256_and_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(-0.f)));
  } else {
    return {flip_half(v[0], bits), flip_half(v[1], bits >> 4)};
  }
}

HANOPS_INLINE Vec<float> rest_of(const Vec<float>& exact, const Vec<float>& rounded, int shift) {
  const __m256i stored = _mm256_castps_si256(rounded), exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i difference = _mm256_sub_epi32(_mm256_castps_si256(exact), stored);
  const __m256i rest = _mm256_srai_epi32(_mm256_add_epi32(difference, _mm256_set1_epi32(1 << (shift - 1))), shift);
  const __m256i not_finite = _mm256_cmpeq_epi32(_mm256_and_si256(stored, exponent), exponent);
  return _mm256_castsi256_ps(_mm256_andnot_si256(not_finite, rest));
}

HANOPS_INLINE void store_rest(const Vec<float>& rest, int8_t* bytes) {
  const __m256i lanes = _mm256_castps_si256(rest);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(words, words));
}

HANOPS_INLINE Vec<float> add_rest(const Vec<float>& rounded, const int8_t* bytes, int shift) {
  const __m256i rest = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_slli_epi32(rest, shift)));
}

HANOPS_INLINE void transpose(Registers<float, 8>& rows) {
  Registers<float, 8> t;
  unroll<4>([&](auto i) HANOPS_LAMBDA {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  });
  unroll<4>([&](auto i) HANOPS_LAMBDA {
    constexpr int q = i / 2 * 4, k = i % 2;
    const __m256d a = _mm256_castps_pd(t[q + k]), b = _mm256_castps_pd(t[q + 2 + k]);
    rows[q + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    rows[q + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  });
  unroll<4>([&](auto i) HANOPS_LAMBDA {
    const __m256 low = rows[i], high = rows[i + 4];
    rows[i] = _mm256_permute2f128_ps(low, high, 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
  });
}

// Rows r to r + 3 of a square: 4 terms of each in either half.
HANOPS_INLINE __m256 four_rows(const float* rows, int r) {
  const float* p = rows + r * 8;
  return _mm256_hadd_ps(_mm256_hadd_ps(load(p), load(p + 8)), _mm256_hadd_ps(load(p + 16), load(p + 24)));
}

HANOPS_INLINE Vec<float> square_sums(const float* rows) {
  const __m256 low = four_rows(rows, 0), high = four_rows(rows, 4);
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

HANOPS_INLINE Vec<float> pack_signs(const Vec<float>& first, const Vec<float>& second) {
  return _mm256_castsi256_ps(_mm256_packs_epi32(_mm256_castps_si256(first), _mm256_castps_si256(second)));
}

HANOPS_INLINE Vec<float> push_signs(const Vec<float>& bytes, const Vec<float>& first_pair,
                                    const Vec<float>& second_pair) {
  const __m256i four = _mm256_packs_epi16(_mm256_castps_si256(first_pair), _mm256_castps_si256(second_pair));
  const __m256i older = _mm256_srli_epi32(_mm256_castps_si256(bytes), 1);
  const __m256i top = _mm256_set1_epi8(-128);
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(top, four), _mm256_andnot_si256(top, older)));
}

HANOPS_INLINE Vec<float> sign_words(const Vec<float>& bytes) {
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_castps_si256(bytes), order));
}

HANOPS_INLINE Vec<float> pack_rest(const Registers<float, 4>& rests) {
  const __m256i low = _mm256_packs_epi32(_mm256_castps_si256(rests[0]), _mm256_castps_si256(rests[1]));
  const __m256i high = _mm256_packs_epi32(_mm256_castps_si256(rests[2]), _mm256_castps_si256(rests[3]));
  return sign_words(_mm256_castsi256_ps(_mm256_packs_epi16(low, high)));
}

template <int kByte>
HANOPS_INLINE Vec<float> add_rest_byte(const Vec<float>& rounded, const Vec<float>& words, int shift) {
  const __m256i rest = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(words), 24 - 8 * kByte), 24);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_slli_epi32(rest, shift)));
}

HANOPS_INLINE Vec<float> shift_words(const Vec<float>& words, int left) {
  return _mm256_castsi256_ps(_mm256_sll_epi32(_mm256_castps_si256(words), _mm_cvtsi32_si128(left)));
}

HANOPS_INLINE Vec<float> flip_by_top(const Vec<float>& v, const Vec<float>& words) {
  return v ^ (words & Vec<float>(-0.f));
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
