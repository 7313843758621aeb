// Vector primitives for rows in the lanes: squares of rows and columns, and sign bits as one word for each row.
#pragma once

#include "vec.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Lane i of rows[r] becomes lane r of rows[i]: a square of kLanes rows.
HANOPS_INLINE void transpose(Registers<float, kLanes<float>>& rows) {
#if defined(CPU_CAPABILITY_AVX512)
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
#elif defined(CPU_CAPABILITY_AVX2)
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
#else
  constexpr int n = kLanes<float>;
  float in[n][n], out[n][n];
  unroll<n>([&](auto r) HANOPS_LAMBDA { rows[r].store(in[r]); });
  for (int r = 0; r < n; ++r) {
    for (int i = 0; i < n; ++i) std::memcpy(&out[i][r], &in[r][i], sizeof(float));
  }
  unroll<n>([&](auto r) HANOPS_LAMBDA { rows[r] = load<float>(out[r]); });
#endif
}

// Lane r is the sum of row r of a square.
HANOPS_INLINE Vec<float> square_sums(const float* rows) {
  constexpr int n = kLanes<float>;
#if defined(CPU_CAPABILITY_AVX512)
  const auto row = [&](int r) HANOPS_LAMBDA { return _mm512_loadu_ps(rows + r * n); };
  const auto halves = [](__m512 a, __m512 b) HANOPS_LAMBDA {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  };
  const auto quarters = [&](int r) HANOPS_LAMBDA {  // rows r, r + 4, r + 8, r + 12, 4 terms of each
    const __m512 low = halves(row(r), row(r + 4)), high = halves(row(r + 8), row(r + 12));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
  };
  const auto pairs = [](__m512 a, __m512 b) HANOPS_LAMBDA {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  };
  const __m512 even = pairs(quarters(0), quarters(1)), odd = pairs(quarters(2), quarters(3));
  return _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x88), _mm512_shuffle_ps(even, odd, 0xDD));
#elif defined(CPU_CAPABILITY_AVX2)
  const auto pairs = [&](int r) HANOPS_LAMBDA {
    return _mm256_hadd_ps(_mm256_loadu_ps(rows + r * n), _mm256_loadu_ps(rows + (r + 1) * n));
  };
  const __m256 low = _mm256_hadd_ps(pairs(0), pairs(2)), high = _mm256_hadd_ps(pairs(4), pairs(6));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
#else
  float out[n];
  for (int r = 0; r < n; ++r) out[r] = sum<float>(load(rows + r * n));
  return load<float>(out);
#endif
}

// Sign bits of columns, rows in the lanes. A vector of 32-bit words, carried as floats, holds a word of 32 columns for
// each row. It is built from four columns at a time, 8 apart, one for each byte of the words: pairs of columns are
// packed, then pairs of pairs, and the signs enter all bytes from the top. The bytes stand in the order in which
// packing leaves them until sign_words() puts them in place.
HANOPS_INLINE Vec<float> pack_signs(const Vec<float>& first, const Vec<float>& second) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_ps(_mm512_packs_epi32(_mm512_castps_si512(first), _mm512_castps_si512(second)));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_castsi256_ps(_mm256_packs_epi32(_mm256_castps_si256(first), _mm256_castps_si256(second)));
#else
  uint32_t a[kLanes<float>], b[kLanes<float>];
  first.store(a);
  second.store(b);
  for (int i = 0; i < kLanes<float>; ++i) a[i] = (a[i] >> 31) << 7 | (b[i] >> 31) << 15;
  return Vec<float>::loadu(a);
#endif
}

HANOPS_INLINE Vec<float> push_signs(const Vec<float>& bytes, const Vec<float>& first_pair,
                                    const Vec<float>& second_pair) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i four = _mm512_packs_epi16(_mm512_castps_si512(first_pair), _mm512_castps_si512(second_pair));
  const __m512i older = _mm512_srli_epi32(_mm512_castps_si512(bytes), 1);
  const __m512i top = _mm512_set1_epi8(-128);
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(top, four, older, 0xCA));  // top ? four : older
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i four = _mm256_packs_epi16(_mm256_castps_si256(first_pair), _mm256_castps_si256(second_pair));
  const __m256i older = _mm256_srli_epi32(_mm256_castps_si256(bytes), 1);
  const __m256i top = _mm256_set1_epi8(-128);
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(top, four), _mm256_andnot_si256(top, older)));
#else
  uint32_t older[kLanes<float>], a[kLanes<float>], b[kLanes<float>];
  bytes.store(older);
  first_pair.store(a);
  second_pair.store(b);
  for (int i = 0; i < kLanes<float>; ++i) a[i] = a[i] | b[i] << 16 | (older[i] >> 1 & 0x7F7F7F7F);
  return Vec<float>::loadu(a);
#endif
}

HANOPS_INLINE Vec<float> sign_words(const Vec<float>& bytes) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_castps_si512(bytes), order));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_castps_si256(bytes), order));
#else
  return bytes;
#endif
}

HANOPS_INLINE Vec<float> shift_words(const Vec<float>& words, int left) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(words), _mm_cvtsi32_si128(left)));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_castsi256_ps(_mm256_sll_epi32(_mm256_castps_si256(words), _mm_cvtsi32_si128(left)));
#else
  uint32_t w[kLanes<float>];
  words.store(w);
  for (int i = 0; i < kLanes<float>; ++i) w[i] <<= left;
  return Vec<float>::loadu(w);
#endif
}

// Negates the lanes whose word has its top bit set.
HANOPS_INLINE Vec<float> flip_by_top(const Vec<float>& v, const Vec<float>& words) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i top = _mm512_set1_epi32(INT32_MIN);
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(_mm512_castps_si512(v), _mm512_castps_si512(words), top, 0x78));  // v ^ (words & top)
#else
  return v ^ (words & Vec<float>(-0.f));
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
