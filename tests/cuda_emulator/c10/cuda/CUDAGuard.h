// Torch's device guard for the emulator, whose only device is the CPU.
#pragma once

#include <c10/core/Device.h>

#include <optional>

namespace c10::cuda {

struct OptionalCUDAGuard {
  explicit OptionalCUDAGuard(std::optional<Device>) {}
};

}  // namespace c10::cuda
