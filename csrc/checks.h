// Argument checks, raised before any work and on symbolic sizes. hanops/definition/checks.py says the same in the same
// words.
#pragma once

#include <ATen/WrapDimUtils.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>

#include "signs.h"

namespace hanops {

inline std::string dtype_name(const at::Tensor& t) {
  return c10::str("torch.", c10::getDtypeNames(t.scalar_type()).first);
}

// What the Python class of a layout is called.
inline const char* layout_name(at::Layout layout) {
  switch (layout) {
    case at::kStrided:
      return "torch.strided";
    case at::kSparse:
      return "torch.sparse_coo";
    case at::kSparseCsr:
      return "torch.sparse_csr";
    case at::kSparseCsc:
      return "torch.sparse_csc";
    case at::kSparseBsr:
      return "torch.sparse_bsr";
    case at::kSparseBsc:
      return "torch.sparse_bsc";
    case at::kMkldnn:
      return "torch._mkldnn";
    case at::kJagged:
      return "torch.jagged";
    default:
      return "unknown";
  }
}

// Comes before every other check: only a strided tensor has the sizes, the strides and the memory that they ask for.
inline void check_strided(const char* name, const at::Tensor& t) {
  TORCH_CHECK_TYPE(t.defined(), "han_stack: ", name, " must be a strided tensor, got None");
  TORCH_CHECK_TYPE(!t.is_nested(), "han_stack: ", name, " must be a strided tensor, got a nested tensor");
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, "han_stack: ", name, " must be a strided tensor, got one of layout ",
                   layout_name(t.layout()));
}

inline void check_strided(const char* name, const std::optional<at::Tensor>& t) {
  if (t) check_strided(name, *t);
}

// Which layers take the absolute value: all, all but the last, or none.
inline void check_abs(bool final_abs, bool abs) {
  TORCH_CHECK_VALUE(final_abs || abs,
                    "han_stack: final_abs must be True where no layer takes the absolute value, got False");
}

// The axis of the features, of an `x` of so many axes; returns it as it counts from the first.
inline int64_t check_dim(const char* name, int64_t axes, int64_t dim, bool grouped) {
  TORCH_CHECK_VALUE(-axes <= dim && dim < axes, "han_stack: dim must be an axis of ", name, ", from ", -axes, " to ",
                    axes - 1, ", got ", dim);
  const int64_t axis = dim < 0 ? dim + axes : dim;
  TORCH_CHECK_VALUE(!grouped || axis != 0, "han_stack: dim must not be the first axis of ", name,
                    ", that of the groups, got ", dim);
  return axis;
}

// The rows `x` (called `name` in messages), the reflectors u and the biases b of one stack, or of one per group.
inline void check_stack(const char* name, const at::Tensor& x, const at::Tensor& u, const std::optional<at::Tensor>& b,
                        bool final_abs, bool abs, int64_t dim) {
  check_strided(name, x);
  check_strided("u", u);
  check_strided("b", b);
  check_abs(final_abs, abs);
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
                   "han_stack: ", name, " must be float64, float32, bfloat16 or float16, got ", dtype_name(x));
  TORCH_CHECK_TYPE(u.scalar_type() == dtype || u.scalar_type() == at::kFloat, "han_stack: u must have the dtype of ",
                   name, " (", dtype_name(x), ") or torch.float32, got ", dtype_name(u));
  TORCH_CHECK_VALUE(u.dim() == 2 || u.dim() == 3,
                    "han_stack: u must have shape (layers, features) or (groups, layers, features), got ",
                    u.sym_sizes());
  TORCH_CHECK_VALUE(u.sym_size(-1) != 0, "han_stack: u must have at least 1 feature, got shape ", u.sym_sizes());
  const int64_t least = u.dim() - 1;
  TORCH_CHECK_VALUE(x.dim() >= least, "han_stack: ", name, " must have shape ",
                    least == 1 ? "(..., features)" : "(groups, ..., features)", ", got ", x.sym_sizes());
  const int64_t axis = check_dim(name, x.dim(), dim, u.dim() == 3);
  TORCH_CHECK_VALUE(x.sym_size(axis) == u.sym_size(-1),
                    "han_stack: ", axis == x.dim() - 1 ? std::string("the last axis") : c10::str("axis ", axis), " of ",
                    name, " must have u's ", u.sym_size(-1), " features, got shape ", x.sym_sizes());
  if (u.dim() == 3) {
    TORCH_CHECK_VALUE(x.sym_size(0) == u.sym_size(0), "han_stack: the first axis of ", name, " must have u's ",
                      u.sym_size(0), " groups, got shape ", x.sym_sizes());
  }
  TORCH_CHECK_VALUE(u.device() == x.device(), "han_stack: u must be on the device of ", name, " (", x.device(),
                    "), got ", u.device());
  if (b) {
    TORCH_CHECK_TYPE(b->scalar_type() == u.scalar_type(), "han_stack: b must have the dtype of u (", dtype_name(u),
                     "), got ", dtype_name(*b));
    TORCH_CHECK_VALUE(b->sym_sizes() == u.sym_sizes(), "han_stack: b must have the shape of u (", u.sym_sizes(),
                      "), got ", b->sym_sizes());
    TORCH_CHECK_VALUE(b->device() == x.device(), "han_stack: b must be on the device of ", name, " (", x.device(),
                      "), got ", b->device());
  }
}

// Whether y of a dtype is rounded from float32, so that there is a rest of it.
inline bool is_rounded(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

// The planes of the rest of y that a forward keeps.
inline int64_t rest_planes(at::ScalarType dtype, int64_t save) {
  return save == 2 && is_rounded(dtype) ? kRestPlanes : 0;
}

inline bool is_last(const at::Tensor& x, int64_t dim) { return dim == -1 || dim == x.dim() - 1; }

// The shape of the sign bits of rows like x, where a row has `bytes` of them for each of so many layers, or planes.
template <class Int>
c10::SmallVector<Int, at::kDimVectorStaticSize> signs_shape(c10::ArrayRef<Int> x, Int layers, Int bytes) {
  c10::SmallVector<Int, at::kDimVectorStaticSize> shape(x.begin(), x.end() - 1);
  shape.push_back(layers);
  shape.push_back(bytes);
  return shape;
}

// The same where the features are along `axis`, which is not the last: words take its place.
template <class Int>
c10::SmallVector<Int, at::kDimVectorStaticSize> sign_words_shape(c10::ArrayRef<Int> x, Int layers, int64_t axis) {
  c10::SmallVector<Int, at::kDimVectorStaticSize> shape(x.begin(), x.begin() + axis);
  shape.push_back(layers);
  shape.push_back(word_count(x[axis]));
  shape.append(x.begin() + axis + 1, x.end());
  shape.push_back(Int(4));
  return shape;
}

// The device type sets the layout of rows' bits.
inline c10::SymDimVector signs_shape_of(const at::Tensor& x, const c10::SymInt& layers, int64_t dim) {
  if (!is_last(x, dim)) return sign_words_shape(x.sym_sizes(), layers, at::maybe_wrap_dim(dim, x.dim()));
  const c10::SymInt features = x.sym_size(-1);
  const c10::SymInt bytes =
      x.is_cpu() ? sign_bytes(features) : chunked_sign_bytes(features.guard_int(__FILE__, __LINE__));
  return signs_shape(x.sym_sizes(), layers, bytes);
}

// `save`: what forward keeps for the backward.
inline void check_forward(const at::Tensor& x, const at::Tensor& u, const std::optional<at::Tensor>& b, bool final_abs,
                          int64_t save, bool abs, int64_t dim) {
  check_stack("x", x, u, b, final_abs, abs, dim);
  TORCH_CHECK_VALUE(0 <= save && save <= 2,
                    "han_stack: save must be 0 (nothing), 1 (signs) or 2 (signs and the rest of y), got ", save);
}

// What forward saved must fit dy: y has dy's shape, and the device gives that of signs.
inline void check_backward(const at::Tensor& dy, const std::optional<at::Tensor>& y, const at::Tensor& signs,
                           const at::Tensor& u, const std::optional<at::Tensor>& b, bool final_abs,
                           std::array<bool, 3> needs, bool abs, int64_t dim) {
  check_strided("dy", dy);
  check_strided("y", y);
  check_strided("signs", signs);
  check_stack("dy", dy, u, b, final_abs, abs, dim);
  TORCH_CHECK_VALUE(!needs[1] || y, "han_stack: y must be given where du is needed, got None");
  if (y) {
    TORCH_CHECK_VALUE(y->sym_sizes() == dy.sym_sizes() && y->scalar_type() == dy.scalar_type(),
                      "han_stack: y must have the shape and dtype of dy (", dy.sym_sizes(), ", ", dtype_name(dy),
                      "), got ", y->sym_sizes(), ", ", dtype_name(*y));
    TORCH_CHECK_VALUE(y->device() == dy.device(), "han_stack: y must be on the device of dy (", dy.device(), "), got ",
                      y->device());
  }
  TORCH_CHECK_TYPE(signs.scalar_type() == at::kByte, "han_stack: signs must be torch.uint8, got ", dtype_name(signs));
  const c10::SymInt layers = layers_with_abs(u.sym_size(-2), final_abs, abs);
  const auto shape = signs_shape_of(dy, layers, dim);
  const auto with_rest = signs_shape_of(dy, layers + rest_planes(dy.scalar_type(), 2), dim);
  const c10::SymIntArrayRef wanted(shape), or_wanted(with_rest);
  const bool has_rest = is_rounded(dy.scalar_type());
  TORCH_CHECK_VALUE(signs.sym_sizes() == wanted || signs.sym_sizes() == or_wanted, "han_stack: signs must have shape ",
                    wanted, has_rest ? c10::str(", or ", or_wanted, " with the rest of y") : "", ", got ",
                    signs.sym_sizes());
  TORCH_CHECK_VALUE(signs.device() == dy.device(), "han_stack: signs must be on the device of dy (", dy.device(),
                    "), got ", signs.device());
}

}  // namespace hanops
