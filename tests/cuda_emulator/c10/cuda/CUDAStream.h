// Torch's current stream for the emulator, in which everything happens at once.
#pragma once

#include <cuda_runtime.h>

namespace c10::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
