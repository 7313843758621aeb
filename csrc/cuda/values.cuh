// How kernels read, write and convert values. Every access goes through read and write, which the emulator in tests/
// replaces by checked ones.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "plan.h"

namespace hanops::cuda {

#ifdef HANOPS_CUDA_EMULATOR
using emulator::pinned;
using emulator::read;
using emulator::write;
using emulator::xor_and;
#else
template <class T>
__device__ __forceinline__ T read(const T* p) {
  return *p;
}

template <class T>
__device__ __forceinline__ void write(T* p, T value) {
  *p = value;
}

// Returns v, and keeps the compiler from computing it again where it is used.
__device__ __forceinline__ unsigned pinned(unsigned v) {
  asm volatile("" : "+r"(v));
  return v;
}

// x ^ (y & z) in one instruction; left to itself the compiler shares y & z, which then is one more.
__device__ __forceinline__ unsigned xor_and(unsigned x, unsigned y, unsigned z) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0x78;" : "=r"(result) : "r"(x), "r"(y), "r"(z));
  return result;
}
#endif

template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T items[N];
};

template <int N, class T>
__device__ __forceinline__ void read_vector(T (&out)[N], const T* p) {
  const auto vector = read(reinterpret_cast<const Vector<T, N>*>(p));
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = vector.items[i];
}

template <int N, class T>
__device__ __forceinline__ void write_vector(T* p, const T (&values)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.items[i] = values[i];
  write(reinterpret_cast<Vector<T, N>*>(p), vector);
}

template <class A, class S>
__device__ __forceinline__ A to(S value) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>)
    return __bfloat162float(value);
  else if constexpr (std::is_same_v<S, __half>)
    return __half2float(value);
  else
    return static_cast<A>(value);
}

// N values as they lie in memory, those of 16 bits two to a word: words stay in registers until they are converted,
// where the compiler would take single values apart at once, and so wait for each load.
template <class S, int N>
using Packet = std::conditional_t<sizeof(S) == 2 && N % 2 == 0, Vector<unsigned, N / 2>, Vector<S, N>>;

template <class S, int N>
__device__ __forceinline__ Packet<S, N> read_packet(const S* p) {
  return read(reinterpret_cast<const Packet<S, N>*>(p));
}

template <class A, class S, class Packet>
__device__ __forceinline__ A item(const Packet& packet, int i) {
  if constexpr (sizeof(packet.items[0]) == sizeof(S)) {
    return to<A>(packet.items[i]);
  } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    return __uint_as_float(i % 2 ? packet.items[i / 2] & 0xffff0000u : packet.items[i / 2] << 16);
  } else {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(packet.items[i / 2] >> i % 2 * 16)));
  }
}

template <class S, class A>
__device__ __forceinline__ S rounded(A value) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<S, __half>)
    return __float2half_rn(value);
  else
    return static_cast<S>(value);
}

// Calls f with a value of the type that tensors hold. Arithmetic on float64 reads float64 and float32 parameters.
template <class A, class F>
__device__ __forceinline__ void with_type(Type type, F f) {
  if constexpr (std::is_same_v<A, double>) {
    if (type == Type::kFloat64)
      f(double());
    else
      f(float());
  } else {
    if (type == Type::kFloat32)
      f(float());
    else if (type == Type::kBFloat16)
      f(__nv_bfloat16());
    else
      f(__half());
  }
}

__device__ __forceinline__ unsigned high_word(float x) { return __float_as_uint(x); }
__device__ __forceinline__ unsigned high_word(double x) { return static_cast<unsigned>(__double2hiint(x)); }

// Returns x, or -x where the highest bit of `word` is set.
__device__ __forceinline__ float flipped(float x, unsigned word) {
  return __uint_as_float(xor_and(__float_as_uint(x), word, 0x80000000u));
}
__device__ __forceinline__ double flipped(double x, unsigned word) {
  return __hiloint2double(static_cast<int>(xor_and(high_word(x), word, 0x80000000u)), __double2loint(x));
}

}  // namespace hanops::cuda
