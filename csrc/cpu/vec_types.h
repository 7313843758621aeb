// Vectors as the CPU kernels hold them: their lanes, several of them in registers, and loops over constants.
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

#if defined(CPU_CAPABILITY_AVX512)
constexpr bool kManyRegisters = true;  // 32, not 16
#else
constexpr bool kManyRegisters = false;
#endif

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

// Calls body with `count`, which is 1 to N, as a constant.
template <int N, class Body>
HANOPS_INLINE void with_constant(int64_t count, Body&& body) {
  [&]<int... n>(std::integer_sequence<int, n...>) HANOPS_LAMBDA {
    ((count == N - n && (body(std::integral_constant<int, N - n>{}), true)) || ...);
  }(std::make_integer_sequence<int, N>{});
}

// N vectors, initialised one by one: a default-constructed array is filled by a loop and lands in memory.
template <class A, int N>
struct Registers {
  Vec<A> v[N];

  explicit Registers(const A* broadcast) : Registers(broadcast, std::make_integer_sequence<int, N>{}) {}
  Registers() : Registers(std::make_integer_sequence<int, N>{}) {}

  // Between registers and vectors in memory that are `stride` elements apart.
  static HANOPS_INLINE Registers load(const A* p, int64_t stride = kLanes<A>) {
    return Registers(p, stride, std::make_integer_sequence<int, N>{});
  }
  HANOPS_INLINE void store(A* p, int64_t stride = kLanes<A>) const {
    unroll<N>([&](auto r) HANOPS_LAMBDA { v[r].store(p + r * stride); });
  }

  Vec<A>& operator[](int r) { return v[r]; }
  const Vec<A>& operator[](int r) const { return v[r]; }

  HANOPS_INLINE Registers operator+(const Registers& other) const {
    Registers sum;
    unroll<N>([&](auto r) HANOPS_LAMBDA { sum[r] = v[r] + other[r]; });
    return sum;
  }
  HANOPS_INLINE Registers operator*(const Vec<A>& factor) const {
    Registers product;
    unroll<N>([&](auto r) HANOPS_LAMBDA { product[r] = v[r] * factor; });
    return product;
  }

 private:
  template <int... r>
  Registers(const A* broadcast, std::integer_sequence<int, r...>) : v{Vec<A>(broadcast[r])...} {}
  template <int... r>
  Registers(const A* p, int64_t stride, std::integer_sequence<int, r...>) : v{Vec<A>::loadu(p + r * stride)...} {}
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

// Arithmetic is in float for every storage type but double.
template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

// As many doubles as Vec<A> has lanes: norms and their like are taken in double.
template <class A>
using Wide = std::conditional_t<std::is_same_v<A, double>, Vec<double>, vec::VectorizedN<double, 2>>;

template <class A, class Vector = Vec<A>>
HANOPS_INLINE A sum(const Vector& v) {
  return vec::vec_reduce_all<A>([](const auto& a, const auto& b) { return a + b; }, v);
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
