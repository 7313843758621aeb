// The process-wide choice of implementation, read inside the ops: it is no part of any graph.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string_view>
#include <vector>

namespace hanops {

enum class Backend { kAuto, kCuda, kTriton, kCpu, kTorch };
constexpr std::array<std::string_view, 5> kBackendNames{"auto", "cuda", "triton", "cpu", "torch"};

inline std::atomic<Backend> chosen_backend{Backend::kAuto};

// On a GPU: the backend of calls that are within these bounds. The first rule that fits a call decides.
struct Rule {
  Backend backend;
  std::vector<at::ScalarType> dtypes;  // of x
  int64_t features, layers, rows;      // at most
};
inline std::vector<Rule> rules;  // set once, by hanops/backends/choice.py, which leaves out what is not there

// Whether the kernels of backend 'cuda' are in this process for tensors like x: on a GPU where this build has them, on
// the CPU where a test has loaded the emulator.
inline bool has_cuda(const at::Tensor& x) {
  const auto op = c10::Dispatcher::singleton().findSchema({"hanops::han_stack_forward_cuda", ""});
  const auto key = x.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA;
  return (x.is_cpu() || x.is_cuda()) && op && op->hasKernelForDispatchKey(key);
}

// What runs a call on x. hanops/backends/choice.py decides the same, and explains it; whether Triton's interpreter is
// on, which tensors on the CPU need, it checks itself.
inline Backend select_backend(const at::Tensor& x, const at::Tensor& u) {
  const Backend chosen = chosen_backend;
  const bool on_cpu = x.is_cpu(), on_gpu = x.is_cuda();
  if (chosen == Backend::kAuto) {
    if (on_cpu) return Backend::kCpu;
    if (!on_gpu) return Backend::kTorch;
    const int64_t features = x.size(-1), layers = u.size(-2), rows = x.numel() / features;
    for (const Rule& rule : rules) {
      if (features <= rule.features && layers <= rule.layers && rows <= rule.rows &&
          std::find(rule.dtypes.begin(), rule.dtypes.end(), x.scalar_type()) != rule.dtypes.end()) {
        return rule.backend;
      }
    }
    return Backend::kTorch;
  }
  const bool fits = chosen == Backend::kTorch || (chosen == Backend::kCpu && on_cpu) ||
                    (chosen == Backend::kTriton && (on_cpu || on_gpu)) || (chosen == Backend::kCuda && has_cuda(x));
  TORCH_CHECK(fits, "han_stack: backend '", kBackendNames[static_cast<size_t>(chosen)],
              "' was asked for, but the tensors are on ", x.device());
  return chosen;
}

}  // namespace hanops
