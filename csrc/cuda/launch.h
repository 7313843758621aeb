// Launches of kernels, and what the run-time library says of the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace hanops::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call of anyone does not find it
  throw std::runtime_error(std::string("han_stack: ") + what + ": " + cudaGetErrorString(error));
}

inline int as_blocks(int64_t blocks) {
  if (blocks >= int64_t{1} << 31) throw std::runtime_error("han_stack: more than 2^31 blocks of rows");
  return static_cast<int>(blocks);
}

// shared: bytes of shared memory of a block. early: the kernel may start while the one before it in the stream runs,
// and waits for that one itself: see wait_for_kernels_before.
template <class Call>
void launch(void (*kernel)(Call), const char* name, int64_t blocks, int threads, size_t shared, Call call,
            cudaStream_t stream, bool early = false) {
  constexpr size_t kByDefault = 48 << 10;  // more has to be asked for
  static std::mutex mutex;                 // no other thread's call asks for less before this one's launch
  std::unique_lock lock(mutex, std::defer_lock);
  if (shared > kByDefault) {
    lock.lock();
    const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(kernel, most, static_cast<int>(shared)), "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{dim3(as_blocks(blocks)), dim3(threads), shared, stream, &attribute, early ? 1u : 0u};
  check(cudaLaunchKernelEx(&config, kernel, call), name);
}

template <class Call>
Residence residence(void (*kernel)(Call), int threads, size_t shared) {
  cudaFuncAttributes attributes;
  int device = 0, blocks = 0, most_threads = 0;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most_threads, cudaDevAttrMaxThreadsPerMultiProcessor, device),
        "cudaDeviceGetAttribute");
  return {attributes.numRegs, blocks * threads / 32, most_threads / 32};
}

}  // namespace hanops::cuda
