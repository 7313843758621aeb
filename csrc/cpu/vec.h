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

// Calls body with 0 .. N - 1 as constants, so that arrays of vectors stay in registers.
template <int N, class Body>
HANOPS_INLINE void unroll(Body&& body) {
  [&]<int... r>(std::integer_sequence<int, r...>)
      HANOPS_LAMBDA { (body(std::integral_constant<int, r>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// N vectors, initialised one by one: a default-constructed array is filled by a loop and lands in memory.
template <class A, int N>
struct Registers {
  Vec<A> v[N];

  explicit Registers(const A* broadcast) : Registers(broadcast, std::make_integer_sequence<int, N>{}) {}
  Registers() : Registers(std::make_integer_sequence<int, N>{}) {}

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

// Arithmetic is in float for every storage type but double.
template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

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

template <class S>
HANOPS_INLINE Vec<Arithmetic<S>> load_storage(const S* p) {
  using A = Arithmetic<S>;
  if constexpr (std::is_same_v<S, A>) {
    return load<A>(p);
  } else if constexpr (kRegisters<A> == 1) {
    Vec<A> out;
    vec::load_to_float<S>(p, out);
    return out;
  } else {
    A wide[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = static_cast<A>(p[i]);
    return load<A>(wide);
  }
}

template <class S>
HANOPS_INLINE void store_storage(const Vec<Arithmetic<S>>& v, S* p) {
  using A = Arithmetic<S>;
  if constexpr (std::is_same_v<S, A>) {
    v.store(p);
  } else if constexpr (kRegisters<A> == 1) {
    vec::convert_from_float<S>(v, v).store(p, kLanes<A>);
  } else {
    A wide[kLanes<A>];
    v.store(wide);
    for (int i = 0; i < kLanes<A>; ++i) p[i] = static_cast<S>(wide[i]);
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

template <class A, class Vector = Vec<A>>
HANOPS_INLINE A sum(const Vector& v) {
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
