// How kernels read, write and convert values. Every access goes through read and write, which the emulator in tests/
// replaces by checked ones.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "call.h"

// Whether a test has put this fault into the kernels; see tests/cuda_emulator/broken.h.
#ifndef HANOPS_BROKEN
#define HANOPS_BROKEN(fault) false
#endif

namespace hanops::cuda {

#ifdef HANOPS_CUDA_EMULATOR
using emulator::let_next_kernel_start;
using emulator::packed_bytes;
using emulator::pinned;
using emulator::prefetch_line;
using emulator::read;
using emulator::read_once;
using emulator::wait_for_kernels_before;
using emulator::write;
using emulator::write_once;
using emulator::xor_and;
#else
template <class T>
__device__ __forceinline__ T read(const T* p) {
  return *p;
}

// The widest word that a T is made of.
template <class T>
using Word = std::conditional_t<
    sizeof(T) % 16 == 0, uint4,
    std::conditional_t<sizeof(T) % 8 == 0, uint2,
                       std::conditional_t<sizeof(T) % 4 == 0, unsigned,
                                          std::conditional_t<sizeof(T) == 2, unsigned short, unsigned char>>>>;

template <class T>
union Words {
  T value;
  Word<T> words[sizeof(T) / sizeof(Word<T>)];
  __device__ Words() {}
};

// Past the L1 cache, which is left to the parameters: for what this SM does not read again.
template <class T>
__device__ __forceinline__ T read_once(const T* p) {
  Words<T> raw;
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(Word<T>); ++i) {
    raw.words[i] = __ldcg(reinterpret_cast<const Word<T>*>(p) + i);
  }
  return raw.value;
}

template <class T>
__device__ __forceinline__ void write_once(T* p, T value) {
  Words<T> raw;
  raw.value = value;
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(Word<T>); ++i) {
    __stcg(reinterpret_cast<Word<T>*>(p) + i, raw.words[i]);
  }
}

template <class T>
__device__ __forceinline__ void write(T* p, T value) {
  *p = value;
}

// A call's kernels after the first may be launched early. Such a kernel starts once all blocks of the one before have
// called let_next_kernel_start or ended, and waits here until that one has ended and its writes are there. Every thread
// of it waits before it reads what earlier kernels of the call write, and before it writes. So all of them have ended
// once the one before has; what came before the call has when the first one starts. Nothing happens before sm_90.
__device__ __forceinline__ void wait_for_kernels_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Brings the line at p into the L2 cache.
__device__ __forceinline__ void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

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

// The bytes of two numbers, each the nearest from -128 to 127, then the low half of `above`: from the lowest byte on.
__device__ __forceinline__ unsigned packed_bytes(int first, int second, unsigned above) {
  unsigned result;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(second), "r"(first), "r"(above));
  return result;
}
#endif

constexpr int kLine = 128;  // bytes of a line of the caches

template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T items[N];
};

template <bool kOnce = false, int N, class T>
__device__ __forceinline__ void read_vector(T (&out)[N], const T* p) {
  const auto* from = reinterpret_cast<const Vector<T, N>*>(p);
  const auto vector = kOnce ? read_once(from) : read(from);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = vector.items[i];
}

template <bool kOnce = false, int N, class T>
__device__ __forceinline__ void write_vector(T* p, const T (&values)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.items[i] = values[i];
  auto* to = reinterpret_cast<Vector<T, N>*>(p);
  kOnce ? write_once(to, vector) : write(to, vector);
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

__device__ __forceinline__ unsigned bits_of(__nv_bfloat16 value) { return __bfloat16_as_ushort(value); }
__device__ __forceinline__ unsigned bits_of(__half value) { return __half_as_ushort(value); }

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

// N values rounded to S, as they lie in memory. Words of 16-bit values are put together here: a struct of such values
// would be stored one by one.
template <class S, int N, class A>
__device__ __forceinline__ Packet<S, N> packet(const A* values) {
  Packet<S, N> result;
  if constexpr (sizeof(result.items[0]) == sizeof(S)) {
#pragma unroll
    for (int i = 0; i < N; ++i) result.items[i] = rounded<S>(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      result.items[i / 2] = bits_of(rounded<S>(values[i])) | bits_of(rounded<S>(values[i + 1])) << 16;
    }
  }
  return result;
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

constexpr unsigned kHighestBit = 0x80000000u;

// Returns x, or -x where the highest bit of `word` is set; x where `mask` is 0.
__device__ __forceinline__ float flipped(float x, unsigned word, unsigned mask) {
  return __uint_as_float(xor_and(__float_as_uint(x), word, mask));
}
__device__ __forceinline__ double flipped(double x, unsigned word, unsigned mask) {
  return __hiloint2double(static_cast<int>(xor_and(high_word(x), word, mask)), __double2loint(x));
}

}  // namespace hanops::cuda
