// What the Han stack needs of a vector register beyond at::vec: sign bits out, sign bits in, sums of several rows.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define HANOPS_LAMBDA __attribute__((always_inline))
#define HANOPS_INLINE __attribute__((always_inline)) inline
#define HANOPS_NOINLINE __attribute__((noinline))

namespace hanops::cpu {
namespace CPU_CAPABILITY {

namespace vec = at::vec;

// A vector holds whole bytes of sign bits: at least 8 columns, several registers where one is narrower.
template <class A>
constexpr int kRegisters = std::max<int>(1, 8 / vec::Vectorized<A>::size());
template <class A>
using Vec = std::conditional_t<kRegisters<A> == 1, vec::Vectorized<A>, vec::VectorizedN<A, kRegisters<A>>>;
template <class A>
constexpr int kLanes = Vec<A>::size();

template <class A>
using SignWord = std::conditional_t<kLanes<A> == 16, uint16_t, uint8_t>;  // one bit per lane

// Calls f with 0 .. R - 1 as constants, so that arrays of vectors stay in registers.
template <int R, class F>
HANOPS_INLINE void unroll(F&& f) {
  [&]<int... r>(std::integer_sequence<int, r...>)
      HANOPS_LAMBDA { (f(std::integral_constant<int, r>{}), ...); }(std::make_integer_sequence<int, R>{});
}

// R vectors, initialised one by one: a default-constructed array is filled by a loop and lands in memory.
template <class A, int R>
struct Registers {
  Vec<A> v[R];

  explicit Registers(const A* broadcast) : Registers(broadcast, std::make_integer_sequence<int, R>{}) {}
  Registers() : Registers(std::make_integer_sequence<int, R>{}) {}

  Vec<A>& operator[](int r) { return v[r]; }
  const Vec<A>& operator[](int r) const { return v[r]; }

 private:
  template <int... r>
  Registers(const A* broadcast, std::integer_sequence<int, r...>) : v{Vec<A>(broadcast[r])...} {}
  template <int... r>
  explicit Registers(std::integer_sequence<int, r...>) : v{((void)r, Vec<A>(A(0)))...} {}
};

template <class A>
HANOPS_INLINE Vec<A> load(const A* p) {
  return Vec<A>::loadu(p);
}

// Lanes past `columns` are 0.
template <class A>
HANOPS_INLINE Vec<A> load(const A* p, int64_t columns) {
  if constexpr (kRegisters<A> == 1) {
    return Vec<A>::loadu(p, columns);
  } else {  // where VectorizedN would make them 1
    A lanes[kLanes<A>] = {};
    std::memcpy(lanes, p, columns * sizeof(A));
    return load(lanes);
  }
}

// c - a * b
template <class A>
HANOPS_INLINE Vec<A> nmadd(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_fnmadd_ps(a, b, c);
  } else {
    return _mm512_fnmadd_pd(a, b, c);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_fnmadd_ps(a, b, c);
  } else {
    return {_mm256_fnmadd_pd(a[0], b[0], c[0]), _mm256_fnmadd_pd(a[1], b[1], c[1])};
  }
#else
  return c - a * b;
#endif
}

// Arithmetic is in A = float for every storage type T but double.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// As many doubles as Vec<A> has lanes: norms and their like are taken in double.
template <class A>
using Wide = std::conditional_t<std::is_same_v<A, double>, Vec<double>, vec::VectorizedN<double, 2>>;

template <class A>
HANOPS_INLINE Wide<A> widen(const Vec<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
#elif defined(CPU_CAPABILITY_AVX2)
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
#else
    float lanes[kLanes<A>];
    double wide[kLanes<A>];
    v.store(lanes);
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = lanes[i];
    return Wide<A>::loadu(wide);
#endif
  }
}

template <class A>
HANOPS_INLINE Vec<A> narrow(const Wide<A>& v) {
  if constexpr (std::is_same_v<A, double>) {
    return v;
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v[0])), _mm512_cvtpd_ps(v[1]), 1);
#elif defined(CPU_CAPABILITY_AVX2)
    return _mm256_set_m128(_mm256_cvtpd_ps(v[1]), _mm256_cvtpd_ps(v[0]));
#else
    double wide[kLanes<A>];
    float lanes[kLanes<A>];
    v.store(wide);
    for (int i = 0; i < kLanes<A>; ++i) lanes[i] = static_cast<float>(wide[i]);
    return load<A>(lanes);
#endif
  }
}

template <class T>
HANOPS_INLINE Vec<Accumulate<T>> load_storage(const T* p) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<T, A>) {
    return load<A>(p);
  } else if constexpr (kRegisters<A> == 1) {
    Vec<A> out;
    vec::load_to_float<T>(p, out);
    return out;
  } else {
    A wide[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = static_cast<A>(p[i]);
    return load<A>(wide);
  }
}

template <class T>
HANOPS_INLINE void store_storage(const Vec<Accumulate<T>>& v, T* p) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<T, A>) {
    v.store(p);
  } else if constexpr (kRegisters<A> == 1) {
    vec::convert_from_float<T>(v, v).store(p, kLanes<A>);
  } else {
    A wide[kLanes<A>];
    v.store(wide);
    for (int i = 0; i < kLanes<A>; ++i) p[i] = static_cast<T>(wide[i]);
  }
}

// Bit i of the word is the sign bit of lane i.
template <class A>
HANOPS_INLINE SignWord<A> sign_bits(const Vec<A>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_movepi32_mask(_mm512_castps_si512(v));
  } else {
    return _mm512_movepi64_mask(_mm512_castpd_si512(v));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_movemask_ps(v);
  } else {
    return _mm256_movemask_pd(v[0]) | _mm256_movemask_pd(v[1]) << 4;
  }
#else
  A lanes[kLanes<A>];
  v.store(lanes);
  unsigned bits = 0;
  for (int i = 0; i < kLanes<A>; ++i) bits |= unsigned(std::signbit(lanes[i])) << i;
  return bits;
#endif
}

// Negates the lanes whose bit is set.
template <class A>
HANOPS_INLINE Vec<A> flip(const Vec<A>& v, SignWord<A> bits) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_xor_ps(v, bits, v, _mm512_set1_ps(-0.f));
  } else {
    return _mm512_mask_xor_pd(v, bits, v, _mm512_set1_pd(-0.));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    const __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32(bits), shift);
    return _mm256_xor_ps(v, _mm256_and_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(-0.f)));
  } else {
    const auto half = [](__m256d v, int64_t bits) {
      const __m256i sign = _mm256_sllv_epi64(_mm256_set1_epi64x(bits), _mm256_setr_epi64x(63, 62, 61, 60));
      return _mm256_xor_pd(v, _mm256_and_pd(_mm256_castsi256_pd(sign), _mm256_set1_pd(-0.)));
    };
    return {half(v[0], bits), half(v[1], bits >> 4)};
  }
#else
  A lanes[kLanes<A>];
  v.store(lanes);
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = bits >> i & 1 ? -lanes[i] : lanes[i];
  return load<A>(lanes);
#endif
}

template <class A, class V = Vec<A>>
HANOPS_INLINE A sum(const V& v) {
  return vec::vec_reduce_all<A>([](const auto& a, const auto& b) { return a + b; }, v);
}

// out[r] = scale * sum(rows[r]); a row is halved in the same order whatever R is.
template <class A, int R>
HANOPS_INLINE void sums(const Registers<A, R>& rows, A scale, A* out) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float> && R % 4 == 0) {
    const auto halves = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    };
    unroll<R / 4>([&](auto quarter) HANOPS_LAMBDA {
      constexpr int r = 4 * quarter;
      const __m512 low = halves(rows[r], rows[r + 1]), high = halves(rows[r + 2], rows[r + 3]);
      __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
      v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
      v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
      v = _mm512_mul_ps(v, _mm512_set1_ps(scale));
      v = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), v);
      _mm_storeu_ps(out + r, _mm512_castps512_ps128(v));
    });
    return;
  }
#endif
  unroll<R>([&](auto r) HANOPS_LAMBDA { out[r] = scale * sum<A>(rows[r]); });
}

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

// Dot products of R rows, summed in blocks of columns: the error grows with the block, not with the row.
template <class A, int R>
class Dots {
 public:
  HANOPS_INLINE void add(int r, const Vec<A>& a, const Vec<A>& b) { sum_[r] = vec::fmadd(a, b, sum_[r]); }

  // Ends a block that another one follows.
  void fold() {
    unroll<R>([&](auto r) HANOPS_LAMBDA {
      if (folded_) sum_[r] = sum_[r] + load(blocks_[r]);
      sum_[r].store(blocks_[r]);
      sum_[r] = Vec<A>(A(0));
    });
    folded_ = true;
  }

  HANOPS_INLINE void finish(A scale, A* out) {
    if (folded_) unroll<R>([&](auto r) HANOPS_LAMBDA { sum_[r] = sum_[r] + load(blocks_[r]); });
    sums<A>(sum_, scale, out);
  }

 private:
  Registers<A, R> sum_;
  alignas(64) A blocks_[R][kLanes<A>];
  bool folded_ = false;
};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
