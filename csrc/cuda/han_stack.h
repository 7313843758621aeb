// The CUDA implementation of han_stack_forward and han_stack_backward, for arguments that ops.cpp has checked.
//
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
                                                     int64_t save);

std::tuple<at::Tensor, at::Tensor, at::Tensor> han_stack_backward(const at::Tensor& dy,
                                                                  const std::optional<at::Tensor>& y,
                                                                  const at::Tensor& signs, const at::Tensor& u,
                                                                  const std::optional<at::Tensor>& b,
                                                                  int64_t abs_layers, std::array<bool, 3> needs);

}  // namespace hanops::cuda
