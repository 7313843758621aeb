// The CPU implementation of han_stack_forward and han_stack_backward, for arguments that ops.cpp has checked.
//
// The first `abs_layers` layers take the absolute value: all, all but the last, or none. `dim` is the axis of the
// features, counted from the first.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace hanops::cpu {

// Whether there are kernels for another axis than the last.
inline bool takes_any_axis(at::ScalarType dtype) { return dtype != at::kDouble; }

std::tuple<at::Tensor, at::Tensor> han_stack_forward(const at::Tensor& x, const at::Tensor& u,
                                                     const std::optional<at::Tensor>& b, int64_t abs_layers,
                                                     int64_t save, int64_t dim);

std::tuple<at::Tensor, at::Tensor, at::Tensor> han_stack_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& y, const at::Tensor& signs, const at::Tensor& u,
    const std::optional<at::Tensor>& b, int64_t abs_layers, std::array<bool, 3> needs, int64_t dim);

}  // namespace hanops::cpu
