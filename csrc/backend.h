// The process-wide choice of implementation, read inside the ops: it is no part of any graph. What runs where is
// decided in hanops/backends/choice.py, which sets a choice; here a call is looked up in it.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace hanops {

enum class Backend { kCuda, kTriton, kCpu, kTorch };
constexpr std::array<std::string_view, 4> kBackendNames{"cuda", "triton", "cpu", "torch"};

// The backend of calls that are within these bounds.
struct Rule {
  Backend backend;
  uint64_t dtypes;                 // of x: bit t for scalar type t
  int64_t features, layers, rows;  // at most; rows of all groups
  bool operator==(const Rule&) const = default;
};

// Of the calls on one kind of device: the first rule that fits decides.
struct Rules {
  std::vector<Rule> rules;
  std::string why_not;  // where none fits: ends the error
  bool operator==(const Rules&) const = default;
};

struct Choice {
  std::string name;  // of what was asked for
  Rules cpu, cuda, other;
  bool operator==(const Choice&) const = default;
};

inline const Choice kNoChoice{"auto", {}, {}, {}};
inline std::atomic<const Choice*> choice{
    &kNoChoice};  // of those that were ever set: they stay, for a call may read one

inline Backend select_backend(at::Device device, at::ScalarType dtype, int64_t features, int64_t layers, int64_t rows) {
  const Choice& chosen = *choice.load(std::memory_order_acquire);
  const Rules& there = device.is_cpu() ? chosen.cpu : device.is_cuda() ? chosen.cuda : chosen.other;
  for (const Rule& rule : there.rules) {
    if (rule.dtypes >> static_cast<int>(dtype) & 1 && features <= rule.features && layers <= rule.layers &&
        rows <= rule.rows) {
      return rule.backend;
    }
  }
  TORCH_CHECK(false, "han_stack: backend '", chosen.name, "' was asked for, but the tensors are on ", device,
              there.why_not);
}

inline Backend select_backend(const at::Tensor& x, const at::Tensor& u) {
  const int64_t features = u.size(-1);
  return select_backend(x.device(), x.scalar_type(), features, u.size(-2), x.numel() / features);
}

// Features up to which a backend has kernels along another axis than the last, forward and back; choice.py has the
// same.
constexpr int64_t axis_features(Backend backend) {
  return backend == Backend::kCpu ? std::numeric_limits<int64_t>::max() : backend == Backend::kCuda ? 512 : 0;
}

}  // namespace hanops
