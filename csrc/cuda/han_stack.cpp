// Torch's side of the CUDA kernels: tensors become calls, memory comes from torch's allocator, on the current stream.
#include "han_stack.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>

#include "../checks.h"
#include "plan.h"

namespace hanops::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Type::kFloat64;
    case at::kFloat:
      return Type::kFloat32;
    case at::kBFloat16:
      return Type::kBFloat16;
    default:
      return Type::kFloat16;
  }
}

int as_int(int64_t size, const char* what) {
  TORCH_CHECK_VALUE(size <= std::numeric_limits<int>::max() / 4, "han_stack: backend 'cuda' takes less than 2^29 ",
                    what, ", got ", size);
  return static_cast<int>(size);
}

// `dim`: the axis of the features, which is not the last one.
void set_axis(Stack& call, const Tensor& x, int64_t dim) {
  call.inner = static_cast<int>(c10::multiply_integers(x.sizes().slice(dim + 1)));
  call.outer = call.inner ? static_cast<int>(call.rows / call.inner) : 0;
  TORCH_CHECK_VALUE(call.groups * call.outer < int64_t{1} << 32,  // the kernels count them in 32 bits
                    "han_stack: backend 'cuda' takes less than 2^32 groups x sizes before dim, got ", call.groups,
                    " x ", call.outer);
}

template <class Call>
Call call_of(const Tensor& x, const Tensor& u, const OptionalTensor& b, int64_t abs_layers, int64_t dim) {
  Call call;
  call.groups = u.dim() == 3 ? u.size(0) : 1;
  call.features = as_int(u.size(-1), "features");
  call.layers = as_int(u.size(-2), "layers");
  call.abs_layers = static_cast<int>(abs_layers);
  call.rows = call.groups ? x.numel() / (call.groups * call.features) : 0;
  if (dim != x.dim() - 1) set_axis(call, x, dim);
  call.type = type_of(x);
  call.parameter_type = type_of(u);
  call.u = u.const_data_ptr();
  call.has_bias = b.has_value();
  call.b = b ? b->const_data_ptr() : nullptr;
  return call;
}

// Sees t as (groups, rows, features) with contiguous columns: as it is where its strides allow, else as a copy, which
// `t` then holds.
Rows rows_of(Tensor& t, const Stack& call) {
  t = t.reshape({call.groups, call.rows, call.features});
  if (call.features > 1 && t.stride(2) != 1) t = t.contiguous();
  Rows rows{t.data_ptr(), t.stride(0), t.stride(1)};
  const int64_t item = t.element_size(), address = reinterpret_cast<int64_t>(rows.data);
  const auto in = [&](int64_t n) {
    return call.features % n == 0 && address % (n * item) == 0 && (call.groups == 1 || rows.group_stride % n == 0) &&
           (call.rows == 1 || rows.row_stride % n == 0);
  };
  rows.vector = in(4) ? 4 : in(2) ? 2 : 1;
  return rows;
}

// Sees t as (groups, outer, features, inner) with a contiguous inner axis, likewise.
Rows positions_of(Tensor& t, const Stack& call) {
  t = t.reshape({call.groups, call.outer, call.features, call.inner});
  constexpr int64_t kMostStride = int64_t{1} << 30;  // kernels count a feature's bytes in 32 bits
  if ((call.inner > 1 && t.stride(3) != 1) || t.stride(2) >= kMostStride) t = t.contiguous();
  Rows rows{t.data_ptr(), t.stride(0), t.stride(1), 1, t.stride(2)};
  const int64_t item = t.element_size(), address = reinterpret_cast<int64_t>(rows.data);
  const auto in = [&](int64_t n) {
    return call.inner % n == 0 && address % (n * item) == 0 && (call.groups == 1 || rows.group_stride % n == 0) &&
           (call.outer == 1 || rows.row_stride % n == 0) && (call.features == 1 || rows.feature_stride % n == 0);
  };
  rows.vector = in(4) ? 4 : in(2) ? 2 : 1;
  return rows;
}

Rows tensor_of(Tensor& t, const Stack& call) { return call.inner ? positions_of(t, call) : rows_of(t, call); }

void launch(const Plan& plan, const Tensor& like) {
  const Tensor workspace = at::empty({static_cast<int64_t>(plan.workspace())}, like.options().dtype(at::kByte));
  plan.launch(workspace.data_ptr(), c10::cuda::getCurrentCUDAStream());
}

// Signs as this library allocates them: a view into other memory, as a saved-tensor hook may give, can lie anywhere.
Tensor aligned(const Tensor& signs) {
  return reinterpret_cast<uintptr_t>(signs.const_data_ptr()) % 16 == 0 ? signs : signs.clone();
}

OptionalTensor contiguous(const OptionalTensor& t) { return t ? OptionalTensor(t->contiguous()) : std::nullopt; }

}  // namespace

std::tuple<Tensor, Tensor> han_stack_forward(const Tensor& x, const Tensor& u, const OptionalTensor& b,
                                             int64_t abs_layers, int64_t save, int64_t dim) {
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(x));
  const Tensor u_packed = u.contiguous();
  const OptionalTensor b_packed = contiguous(b);
  auto call = call_of<ForwardCall>(x, u_packed, b_packed, abs_layers, dim);
  const int64_t planes = call.abs_layers + rest_planes(x.scalar_type(), save);
  const at::DimVector signs_sizes = !save ? at::DimVector{0}
                                    : call.inner
                                        ? sign_words_shape<int64_t>(x.sizes(), planes, dim)
                                        : signs_shape<int64_t>(x.sizes(), planes, chunked_sign_bytes(call.features));
  const Tensor signs = at::empty(signs_sizes, x.options().dtype(at::kByte));
  if (call.layers == 0) return {x.clone(at::MemoryFormat::Contiguous), signs.zero_()};  // nothing was rounded
  Tensor y = at::empty_like(x, at::MemoryFormat::Contiguous);
  if (y.numel() == 0) return {y, signs};
  Tensor rows = x;
  call.x = tensor_of(rows, call);
  call.y = y.data_ptr();
  call.save = save > 0;
  call.rest = planes > call.abs_layers;
  call.signs = save ? signs.data_ptr<uint8_t>() : nullptr;
  launch(ForwardPlan(call, Device::current()), x);
  return {y, signs};
}

std::tuple<Tensor, Tensor, Tensor> han_stack_backward(const Tensor& dy, const OptionalTensor& y, const Tensor& signs,
                                                      const Tensor& u, const OptionalTensor& b, int64_t abs_layers,
                                                      std::array<bool, 3> needs, int64_t dim) {
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(dy));
  const Tensor u_packed = u.contiguous(), signs_packed = aligned(signs.contiguous());
  const OptionalTensor b_packed = contiguous(b);
  auto call = call_of<BackwardCall>(dy, u_packed, b_packed, abs_layers, dim);
  const auto output = [](const Tensor& like, bool needed) {
    return needed ? at::empty_like(like, at::MemoryFormat::Contiguous) : at::empty({0}, like.options());
  };
  const Tensor dx = output(dy, needs[0]), du = output(u, needs[1]), db = output(u, needs[2]);
  if (call.layers == 0 || dy.numel() == 0) {
    if (needs[0]) dx.copy_(dy);
    du.zero_();
    db.zero_();
    return {dx, du, db};
  }
  Tensor dy_rows = dy, y_rows;
  call.dy = tensor_of(dy_rows, call);
  if (needs[1]) {
    y_rows = *y;
    call.y = tensor_of(y_rows, call);
  }
  call.signs = signs_packed.const_data_ptr<uint8_t>();
  call.rest = signs.size(call.inner ? dim : -2) > call.abs_layers;
  std::tie(call.needs_dx, call.needs_du, call.needs_db) = std::tie(needs[0], needs[1], needs[2]);
  call.dx = dx.data_ptr();
  call.du = du.data_ptr();
  call.db = db.data_ptr();
  launch(BackwardPlan(call, Device::current()), dy);
  return {dx, du, db};
}

bool has_axis_kernels(const Tensor& x, int64_t dim, bool grouped) {
  Stack stack;
  stack.type = type_of(x);
  stack.groups = grouped ? x.size(0) : 1;
  if (x.numel() == 0) return false;
  stack.features = static_cast<int>(std::min<int64_t>(x.size(dim), 1 << 30));
  stack.rows = x.numel() / (stack.groups * x.size(dim));
  return takes_axis(stack);
}

}  // namespace hanops::cuda
