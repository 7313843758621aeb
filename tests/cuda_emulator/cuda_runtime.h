// The part of CUDA's language and run-time library that the kernels use, for the emulator.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include "emulator.h"
#ifdef HANOPS_CAN_BREAK
#include "broken.h"
#endif

#define HANOPS_CUDA_EMULATOR
#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::fabs;
using std::max;
using std::min;
using std::sqrt;

// ---- intrinsics

using std::fmax;

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __double2hiint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(uint64_t(unsigned(high)) << 32 | unsigned(low));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

inline void __syncthreads(emulator::Place place = emulator::Place::current()) { emulator::barrier(place); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, emulator::Place place = emulator::Place::current()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulator::shuffle_xor(mask, bits, lane_mask, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---- run-time library

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrClockRate,
  cudaDevAttrMemoryClockRate,
  cudaDevAttrL2CacheSize,
  cudaDevAttrMaxThreadsPerMultiProcessor,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaStream_t = struct Stream*;

struct cudaDeviceProp {
  char name[256];
  int multiProcessorCount, major, minor;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorInvalidValue ? "invalid argument" : "out of memory";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulator::device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const bool shared =
      attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor || attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::sms : shared ? int{emulator::kSharedBytes} : 1024;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulator", emulator::sms, 0, 0};
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 12030, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return size_t(bytes) > emulator::kSharedBytes ? cudaErrorInvalidValue : cudaSuccess;
}

struct cudaFuncAttributes {
  int numRegs, ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  return *attributes = {0, emulator::device == 0 ? 90 : 80}, cudaSuccess;  // the emulator has no registers
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  return *blocks = 1, cudaSuccess;  // one after another
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Arguments...), Arguments... values) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t shared = config->dynamicSmemBytes;
  const bool early = config->numAttrs > 0 && config->attrs->val.programmaticStreamSerializationAllowed;
  void* arguments[] = {&values...};
  if (grid.x == 0 || block.x == 0 || block.x > 1024 || shared > emulator::kSharedBytes) return cudaErrorInvalidValue;
  const auto entry = [](const void* kernel, void** arguments) {
    const auto call = [&]<size_t... I>(std::index_sequence<I...>) {
      reinterpret_cast<void (*)(Arguments...)>(const_cast<void*>(kernel))(*static_cast<Arguments*>(arguments[I])...);
    };
    call(std::index_sequence_for<Arguments...>());
  };
  emulator::launch(entry, reinterpret_cast<const void*>(kernel), arguments, grid, block, shared, early);
  return cudaSuccess;
}

template <class... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  const cudaLaunchConfig_t config{grid, block, shared, stream, nullptr, 0};
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return cudaLaunchKernelEx(&config, kernel, *static_cast<Arguments*>(arguments[I])...);
  }(std::index_sequence_for<Arguments...>());
}

inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = ::operator new(bytes, std::align_val_t(256));
  emulator::add_buffer(*p, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emulator::remove_buffer(p);
  ::operator delete(p, std::align_val_t(256));
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct Event {
  std::chrono::steady_clock::time_point time;
};
using cudaEvent_t = Event*;
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new Event, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  return event->time = std::chrono::steady_clock::now(), cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}
