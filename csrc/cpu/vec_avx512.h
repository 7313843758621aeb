// AVX-512 where at::vec has no word for it; vec.h says what each function does.
#pragma once

#include "vec_types.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <class A>
HANOPS_INLINE Vec<A> nmadd(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_fnmadd_ps(a, b, c);
  } else {
    return _mm512_fnmadd_pd(a, b, c);
  }
}

template <class A>
HANOPS_INLINE Wide<A> widen(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
  }
}

template <class A>
HANOPS_INLINE Vec<A> narrow(const Wide<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v[0])), _mm512_cvtpd_ps(v[1]), 1);
  }
}

template <class A>
HANOPS_INLINE SignWord<A> sign_bits(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_movepi32_mask(_mm512_castps_si512(v));
  } else {
    return _mm512_movepi64_mask(_mm512_castpd_si512(v));
  }
}

template <class A>
HANOPS_INLINE Vec<A> flip(const Vec<A>& v, SignWord<A> bits) {
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_xor_ps(v, bits, v, _mm512_set1_ps(-0.f));
  } else {
    return _mm512_mask_xor_pd(v, bits, v, _mm512_set1_pd(-0.));
  }
}

HANOPS_INLINE Vec<float> rest_of(const Vec<float>& exact, const Vec<float>& rounded, int shift) {
  const __m512i difference = _mm512_sub_epi32(_mm512_castps_si512(exact), _mm512_castps_si512(rounded));
  const __m512i half = _mm512_set1_epi32(1 << (shift - 1));
  const __mmask16 not_finite = _mm512_fpclass_ps_mask(rounded, 0x99);  // quiet and signalling NaN, both infinities
  return _mm512_castsi512_ps(_mm512_maskz_srai_epi32(~not_finite, _mm512_add_epi32(difference, half), shift));
}

HANOPS_INLINE void store_rest(const Vec<float>& rest, int8_t* bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtsepi32_epi8(_mm512_castps_si512(rest)));
}

HANOPS_INLINE Vec<float> add_rest(const Vec<float>& rounded, const int8_t* bytes, int shift) {
  const __m512i rest = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_slli_epi32(rest, shift)));
}

// Lanes [0, split) from p + lane and [split, count) from q + lane; the others are 0.
template <class S>
HANOPS_INLINE Vec<float> load_lanes(const S* p, int64_t split, const S* q, int64_t count) {
  const unsigned first = (1u << split) - 1, second = (1u << count) - 1 - first;
  if constexpr (std::is_same_v<S, float>) {
    return _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(first, p), second, q);
  } else {
    alignas(32) S lanes[16];
    const __m256i halves = _mm256_mask_loadu_epi16(_mm256_maskz_loadu_epi16(first, p), second, q);
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), halves);
    Vec<float> out;
    vec::load_to_float<S>(lanes, out);
    return out;
  }
}

template <class S>
HANOPS_INLINE void store_lanes(const Vec<float>& v, S* p, int64_t split, S* q, int64_t count) {
  const unsigned first = (1u << split) - 1, second = (1u << count) - 1 - first;
  if constexpr (std::is_same_v<S, float>) {
    _mm512_mask_storeu_ps(p, first, v);
    _mm512_mask_storeu_ps(q, second, v);
  } else {
    S lanes[16];
    vec::convert_from_float<S>(v, v).store(lanes, 16);
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    _mm256_mask_storeu_epi16(p, first, halves);
    _mm256_mask_storeu_epi16(q, second, halves);
  }
}

// The halves of a added up, beside those of b.
HANOPS_INLINE __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

// 4 lanes of each: a, b, c, d.
HANOPS_INLINE __m512 add_quarters(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 low = add_halves(a, b), high = add_halves(c, d);
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

// out[0] to out[3]: scale times the sum of each vector.
HANOPS_INLINE void four_sums(__m512 a, __m512 b, __m512 c, __m512 d, float scale, float* out) {
  __m512 v = add_quarters(a, b, c, d);
  v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
  v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
  v = _mm512_mul_ps(v, _mm512_set1_ps(scale));
  v = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), v);
  _mm_storeu_ps(out, _mm512_castps512_ps128(v));
}

HANOPS_INLINE void transpose(Registers<float, 16>& rows) {
  Registers<float, 16> t;
  unroll<8>([&](auto i) HANOPS_LAMBDA {
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  });
  unroll<8>([&](auto i) HANOPS_LAMBDA {  // quarters of 4 rows, each 4 columns apart
    constexpr int q = i / 2 * 4, k = i % 2;
    const __m512d a = _mm512_castps_pd(t[q + k]), b = _mm512_castps_pd(t[q + 2 + k]);
    rows[q + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    rows[q + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  });
  unroll<8>([&](auto i) HANOPS_LAMBDA {
    constexpr int r = i / 4 * 8 + i % 4;
    t[r] = _mm512_shuffle_f32x4(rows[r], rows[r + 4], 0x88);
    t[r + 4] = _mm512_shuffle_f32x4(rows[r], rows[r + 4], 0xDD);
  });
  unroll<8>([&](auto i) HANOPS_LAMBDA {
    rows[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
  });
}

// Rows r, r + 4, r + 8 and r + 12 of a square, 4 terms of each.
HANOPS_INLINE __m512 row_quarters(const float* rows, int r) {
  const float* p = rows + r * 16;
  return add_quarters(load(p), load(p + 4 * 16), load(p + 8 * 16), load(p + 12 * 16));
}

// In each quarter, the pairs of a added up, beside those of b.
HANOPS_INLINE __m512 add_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
}

HANOPS_INLINE Vec<float> square_sums(const float* rows) {
  const __m512 even = add_pairs(row_quarters(rows, 0), row_quarters(rows, 1));
  const __m512 odd = add_pairs(row_quarters(rows, 2), row_quarters(rows, 3));
  return _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x88), _mm512_shuffle_ps(even, odd, 0xDD));
}

HANOPS_INLINE Vec<float> pack_signs(const Vec<float>& first, const Vec<float>& second) {
  return _mm512_castsi512_ps(_mm512_packs_epi32(_mm512_castps_si512(first), _mm512_castps_si512(second)));
}

HANOPS_INLINE Vec<float> push_signs(const Vec<float>& bytes, const Vec<float>& first_pair,
                                    const Vec<float>& second_pair) {
  const __m512i four = _mm512_packs_epi16(_mm512_castps_si512(first_pair), _mm512_castps_si512(second_pair));
  const __m512i older = _mm512_srli_epi32(_mm512_castps_si512(bytes), 1);
  const __m512i top = _mm512_set1_epi8(-128);
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(top, four, older, 0xCA));  // top ? four : older
}

HANOPS_INLINE Vec<float> sign_words(const Vec<float>& bytes) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_castps_si512(bytes), order));
}

HANOPS_INLINE Vec<float> pack_rest(const Registers<float, 4>& rests) {
  const __m512i low = _mm512_packs_epi32(_mm512_castps_si512(rests[0]), _mm512_castps_si512(rests[1]));
  const __m512i high = _mm512_packs_epi32(_mm512_castps_si512(rests[2]), _mm512_castps_si512(rests[3]));
  return sign_words(_mm512_castsi512_ps(_mm512_packs_epi16(low, high)));
}

template <int kByte>
HANOPS_INLINE Vec<float> add_rest_byte(const Vec<float>& rounded, const Vec<float>& words, int shift) {
  const __m512i rest = _mm512_srai_epi32(_mm512_slli_epi32(_mm512_castps_si512(words), 24 - 8 * kByte), 24);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_slli_epi32(rest, shift)));
}

HANOPS_INLINE Vec<float> shift_words(const Vec<float>& words, int left) {
  return _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(words), _mm_cvtsi32_si128(left)));
}

HANOPS_INLINE Vec<float> flip_by_top(const Vec<float>& v, const Vec<float>& words) {
  const __m512i top = _mm512_set1_epi32(INT32_MIN);
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(_mm512_castps_si512(v), _mm512_castps_si512(words), top, 0x78));  // v ^ (words & top)
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
