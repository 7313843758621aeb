// The process-wide choice of implementation, read inside the ops: it is no part of any graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <optional>
#include <string_view>

namespace hanops {

enum class Backend { kAuto, kCuda, kTriton, kCpu, kReference };
constexpr std::array<std::string_view, 5> kBackendNames{"auto", "cuda", "triton", "cpu", "reference"};

inline std::atomic<Backend> chosen_backend{Backend::kAuto};
inline std::atomic<bool> has_triton{false};  // set by hanops/backends.py

// What runs a call on x. hanops/backends.py decides the same, and explains it; whether Triton's interpreter is on,
// which tensors on the CPU need, it checks itself.
inline Backend select_backend(const at::Tensor& x) {
  const Backend chosen = chosen_backend;
  const bool on_cpu = x.is_cpu(), on_gpu = x.is_cuda();
  if (chosen == Backend::kAuto) {
    if (on_cpu) return Backend::kCpu;
    return on_gpu && has_triton ? Backend::kTriton : Backend::kReference;
  }
  const bool fits = chosen == Backend::kReference || (chosen == Backend::kCpu && on_cpu) ||
                    (chosen == Backend::kTriton && (on_cpu || on_gpu)) || (chosen == Backend::kCuda && on_gpu);
  TORCH_CHECK(fits, "han_stack: backend '", kBackendNames[static_cast<size_t>(chosen)],
              "' was asked for, but the tensors are on ", x.device());
  return chosen;
}

}  // namespace hanops
