// The CUDA implementation of han_stack_forward and han_stack_backward, for arguments that ops.cpp has checked.
//
// `dim`: the axis of the features, from 0; another than the last one where has_axis_kernels() says so.
// The first `abs_layers` layers take the absolute value: all, all but the last, or none. Where `save` is 2, y of 16
// bits leaves its rest behind the sign bits, which the backward sees from their shape.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace hanops::cuda {

std::tuple<at::Tensor, at::Tensor> han_stack_forward(const at::Tensor& x, const at::Tensor& u,
                                                     const std::optional<at::Tensor>& b, int64_t abs_layers,
                                                     int64_t save, int64_t dim);

std::tuple<at::Tensor, at::Tensor, at::Tensor> han_stack_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& y, const at::Tensor& signs, const at::Tensor& u,
    const std::optional<at::Tensor>& b, int64_t abs_layers, std::array<bool, 3> needs, int64_t dim);

// Whether there are kernels for an x, or dy, whose features are not the last axis; `grouped`: its first one is that of
// the groups.
bool has_axis_kernels(const at::Tensor& x, int64_t dim, bool grouped);

}  // namespace hanops::cuda
