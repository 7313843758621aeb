// The ops as torch sees them: schemas, autograd, and the implementation that a call reaches.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "backend.h"
#include "checks.h"
#include "cpu/han_stack.h"
#ifdef HANOPS_CUDA
#include "cuda/han_stack.h"
#endif

namespace hanops {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Needs = std::array<bool, 3>;  // dx, du, db

// The last arguments of each: abs and dim; of the first also exact.
using StackSchema = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, bool, bool, int64_t, bool);
using ForwardSchema = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&, bool, int64_t,
                                                 bool, int64_t);
using BackwardSchema = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&, const Tensor&,
                                                          const Tensor&, const OptionalTensor&, bool, Needs, bool,
                                                          int64_t);

template <class Schema>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

const auto& forward_op() {
  static const auto op = find_op<ForwardSchema>("hanops::han_stack_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = find_op<BackwardSchema>("hanops::han_stack_backward");
  return op;
}

// ---- autograd; the ops below it check their arguments. Here they only must be tensors that can be asked for gradients

bool requires_grad(const Tensor& t) { return t.requires_grad(); }
bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }

template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Whether forward mode has given t a tangent. The question takes a lock, so it is asked where there may be one.
bool has_tangent(const Tensor& t) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(t);
  return meta && (meta->fw_grad_ || meta->is_view_) && torch::autograd::isFwGradDefined(t);
}
bool has_tangent(const OptionalTensor& t) { return t && has_tangent(*t); }

// Under a transform of torch.func and with tangents of forward mode, which C++ Functions do not take part in.
template <class... Tensors>
bool is_transformed(const Tensors&... tensors) {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode) ||
         (has_tangent(tensors) || ...);
}

// The two ops with every derivative, by hanops/ops/autograd.py: under transforms, and where a gradient is derived
// again.
const auto& differentiable_forward_op() {
  static const auto op = find_op<ForwardSchema>("hanops::han_stack_forward_differentiable");
  return op;
}

const auto& differentiable_backward_op() {
  static const auto op = find_op<BackwardSchema>("hanops::han_stack_backward_differentiable");
  return op;
}

}  // namespace

// What the node of HanStack runs. Compiled autograd calls it on fakes too, and writes it into its graphs under the name
// of this type. No saved tensor may be undefined there: what is not kept is left out.
struct HanStackBackward {
  static constexpr bool is_traceable = true;

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(7);
    const auto saved = ctx->get_saved_variables();
    const auto first = saved[0].scalar_type() == at::kByte ? saved.begin() : saved.begin() + 1;  // signs, or y before
    const Tensor &signs = first[0], &u = first[1];
    const auto y = first == saved.begin() ? std::nullopt : OptionalTensor(saved[0]);
    const auto b = saved.end() - first < 3 ? std::nullopt : OptionalTensor(first[2]);
    // Of one layer without bits, it is the same whether all or the last takes no absolute value.
    const auto& data = ctx->saved_data;
    const bool has_rest = data.count("has_rest") > 0;
    const auto axis = data.find("dim");
    const int64_t dim = axis == data.end() ? -1 : axis->second.toInt();
    const c10::SymInt layers = u.sym_size(-2);
    const c10::SymInt abs_layers = signs.sym_size(dim == -1 ? -2 : dim) - (has_rest ? kRestPlanes : 0);
    const bool final_abs = abs_layers == layers, abs = final_abs || abs_layers == layers - 1;
    const Needs needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1), b && ctx->needs_input_grad(2)};
    auto [dx, du, db] = backward_op().call(grads[0], y, signs, u, b, final_abs || !abs, needs, abs, dim);
    return {needs[0] ? dx : Tensor(), needs[1] ? du : Tensor(), needs[2] ? db : Tensor(), {}, {}, {}, {}};
  }
};

namespace {

struct HanStack : Function<HanStack> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs,
                        bool abs, int64_t dim, bool exact) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t save = exact && u.requires_grad() ? 2 : 1;
    auto [y, signs] = forward_op().call(x, u, b, final_abs, save, abs, dim);
    ctx->set_materialize_grads(false);
    if (rest_planes(x.scalar_type(), save) > 0) ctx->saved_data["has_rest"] = true;
    if (!is_last(x, dim)) ctx->saved_data["dim"] = at::maybe_wrap_dim(dim, x.dim());
    variable_list saved;
    saved.reserve(4);
    if (u.requires_grad()) saved.push_back(y);  // to rebuild the activations, which only du asks for
    saved.push_back(signs);
    saved.push_back(u);
    if (b) saved.push_back(*b);
    ctx->save_for_backward(std::move(saved));
    return y;
  }
};

}  // namespace
}  // namespace hanops

// Profilers, anomaly mode and a printed tensor show the node by this name; torch's own is the demangled type.
template <>
struct torch::autograd::CppNode<hanops::HanStack> : CppNode<hanops::HanStackBackward> {
  std::string name() const override { return "HanStackBackward"; }
};

namespace hanops {
namespace {

// Whether the backend of a call has no kernels for its axis. Then rows are copied above autograd, and only they are
// kept for the backward. Of sizes that are symbols nothing is asked.
bool lacks_axis(const Tensor& x, const Tensor& u, int64_t dim) {
  if (is_last(x, dim) || x.is_meta()) return false;
  const auto features = u.sym_size(-1).maybe_as_int(), elements = x.sym_numel().maybe_as_int();
  const auto layers = u.sym_size(-2).maybe_as_int();
  if (!features || !layers || !elements) return false;
  const Backend backend = select_backend(x.device(), x.scalar_type(), *features, *layers, *elements / *features);
  return x.scalar_type() == at::kDouble || *features > axis_features(backend);
}

Tensor han_stack_autograd(const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs, bool abs,
                          int64_t dim, bool exact) {
  check_strided("x", x);
  check_strided("u", u);
  check_strided("b", b);
  if (is_transformed(x, u, b)) {
    return std::get<0>(differentiable_forward_op().call(x, u, b, final_abs, exact ? 2 : 1, abs, dim));
  }
  if (!is_last(x, dim)) check_stack("x", x, u, b, final_abs, abs, dim);
  if (lacks_axis(x, u, dim)) {
    static const auto op = find_op<StackSchema>("hanops::han_stack");
    return op.call(x.movedim(dim, -1), u, b, final_abs, abs, -1, exact).movedim(-1, dim).contiguous();
  }
  if (any_requires_grad(x, u, b)) return HanStack::apply(x, u, b, final_abs, abs, dim, exact);
  at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(forward_op().call(x, u, b, final_abs, 0, abs, dim));
}

std::tuple<Tensor, Tensor> han_stack_forward_autograd(const Tensor& x, const Tensor& u, const OptionalTensor& b,
                                                      bool final_abs, int64_t save, bool abs, int64_t dim) {
  check_strided("x", x);
  check_strided("u", u);
  check_strided("b", b);
  if (is_transformed(x, u, b) || any_requires_grad(x, u, b)) {
    return differentiable_forward_op().call(x, u, b, final_abs, save, abs, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward_op().call(x, u, b, final_abs, save, abs, dim);
}

std::tuple<Tensor, Tensor, Tensor> han_stack_backward_autograd(const Tensor& dy, const OptionalTensor& y,
                                                               const Tensor& signs, const Tensor& u,
                                                               const OptionalTensor& b, bool final_abs, Needs needs,
                                                               bool abs, int64_t dim) {
  check_strided("dy", dy);
  check_strided("y", y);
  check_strided("signs", signs);
  check_strided("u", u);
  check_strided("b", b);
  if (is_transformed(dy, y, u, b) || any_requires_grad(dy, y, u, b)) {
    return differentiable_backward_op().call(dy, y, signs, u, b, final_abs, needs, abs, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return backward_op().call(dy, y, signs, u, b, final_abs, needs, abs, dim);
}

// ---- autocast: x alone, float64 excepted; u and b stay as they are. hanops/ops/autocast.py has the same

// A parameter as it goes with rows of a dtype: of the other half dtype it is widened, which is exact.
Tensor beside(at::ScalarType rows, const Tensor& t) {
  const at::ScalarType own = t.scalar_type();
  const bool other = (own == at::kHalf && rows == at::kBFloat16) || (own == at::kBFloat16 && rows == at::kHalf);
  return other ? t.to(at::kFloat) : t;
}

template <c10::DeviceType device>
Tensor han_stack_autocast(const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs, bool abs,
                          int64_t dim, bool exact) {
  const c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  static const auto op = find_op<StackSchema>("hanops::han_stack");
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const Tensor cast = at::autocast::cached_cast(dtype, x, device);
  if (!x.defined() || cast.scalar_type() != dtype) return op.call(x, u, b, final_abs, abs, dim, exact);
  const OptionalTensor b_beside = b ? OptionalTensor(beside(dtype, *b)) : std::nullopt;
  return op.call(cast, beside(dtype, u), b_beside, final_abs, abs, dim, exact);
}

// ---- implementations

Tensor han_stack(const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs, bool abs, int64_t dim,
                 bool /*exact*/) {
  return std::get<0>(forward_op().call(x, u, b, final_abs, 0, abs, dim));
}

// The backends that are ops of their own: CUDA below, plain torch and Triton in hanops/ops/registration.py.
// BackendSelect, which comes before every device, checks the arguments of a direct call; the two ops above go past it.
const auto& forward_op_of(Backend backend) {
  static const auto torch = find_op<ForwardSchema>("hanops::han_stack_forward_torch");
  static const auto triton = find_op<ForwardSchema>("hanops::han_stack_forward_triton");
  static const auto cuda = find_op<ForwardSchema>("hanops::han_stack_forward_cuda");
  return backend == Backend::kCuda ? cuda : backend == Backend::kTriton ? triton : torch;
}

const auto& backward_op_of(Backend backend) {
  static const auto torch = find_op<BackwardSchema>("hanops::han_stack_backward_torch");
  static const auto triton = find_op<BackwardSchema>("hanops::han_stack_backward_triton");
  static const auto cuda = find_op<BackwardSchema>("hanops::han_stack_backward_cuda");
  return backend == Backend::kCuda ? cuda : backend == Backend::kTriton ? triton : torch;
}

constexpr c10::DispatchKeySet kDevices(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect);

c10::DispatchKeySet device_of_checked(const Tensor& x) {
  return c10::impl::computeDispatchKeySet(x.key_set(), kDevices);
}

template <Backend backend>
std::tuple<Tensor, Tensor> checked_forward(c10::DispatchKeySet keys, const Tensor& x, const Tensor& u,
                                           const OptionalTensor& b, bool final_abs, int64_t save, bool abs,
                                           int64_t dim) {
  check_forward(x, u, b, final_abs, save, abs, dim);
  return forward_op_of(backend).redispatch(keys & kDevices, x, u, b, final_abs, save, abs, dim);
}

template <Backend backend>
std::tuple<Tensor, Tensor, Tensor> checked_backward(c10::DispatchKeySet keys, const Tensor& dy, const OptionalTensor& y,
                                                    const Tensor& signs, const Tensor& u, const OptionalTensor& b,
                                                    bool final_abs, Needs needs, bool abs, int64_t dim) {
  check_backward(dy, y, signs, u, b, final_abs, needs, abs, dim);
  return backward_op_of(backend).redispatch(keys & kDevices, dy, y, signs, u, b, final_abs, needs, abs, dim);
}

// A stack along another axis than the last, where a backend has no kernel for it: its kernel for rows, on copies
// (hanops/ops/registration.py). `suffix`: of the backend's op.
using ForwardByRowsSchema = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&, bool,
                                                       int64_t, bool, int64_t, std::string_view);
using BackwardByRowsSchema = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&, const Tensor&,
                                                                const Tensor&, const OptionalTensor&, bool, Needs, bool,
                                                                int64_t, std::string_view);

const auto& forward_by_rows_op() {
  static const auto op = find_op<ForwardByRowsSchema>("hanops::han_stack_forward_by_rows");
  return op;
}

const auto& backward_by_rows_op() {
  static const auto op = find_op<BackwardByRowsSchema>("hanops::han_stack_backward_by_rows");
  return op;
}

// Every op but han_stack (hanops/ops/nested.py) for nested tensors, which come here even where nothing else of torch is
// asked: names the one that is nested.
void refuse_nested(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = torch::jit::peek(*stack, i, arguments.size());
    if (value.isTensor()) check_strided(arguments[i].name().c_str(), value.toTensor());
  }
  TORCH_CHECK_TYPE(false, "han_stack: tensors must be strided, got a nested tensor");
}

std::tuple<Tensor, Tensor> han_stack_forward(const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs,
                                             int64_t save, bool abs, int64_t dim) {
  check_forward(x, u, b, final_abs, save, abs, dim);
  const Backend backend = select_backend(x, u);
  if (backend == Backend::kCpu) {
    if (!is_last(x, dim) && !cpu::takes_any_axis(x.scalar_type())) {
      return forward_by_rows_op().call(x, u, b, final_abs, save, abs, dim, "");
    }
    return cpu::han_stack_forward(x, u, b, layers_with_abs(u.size(-2), final_abs, abs), save,
                                  at::maybe_wrap_dim(dim, x.dim()));
  }
  return forward_op_of(backend).redispatch(device_of_checked(x), x, u, b, final_abs, save, abs, dim);
}

std::tuple<Tensor, Tensor, Tensor> han_stack_backward(const Tensor& dy, const OptionalTensor& y, const Tensor& signs,
                                                      const Tensor& u, const OptionalTensor& b, bool final_abs,
                                                      Needs needs, bool abs, int64_t dim) {
  check_backward(dy, y, signs, u, b, final_abs, needs, abs, dim);
  const Backend backend = select_backend(dy, u);
  if (backend == Backend::kCpu) {
    if (!is_last(dy, dim) && !cpu::takes_any_axis(dy.scalar_type())) {
      return backward_by_rows_op().call(dy, y, signs, u, b, final_abs, needs, abs, dim, "");
    }
    return cpu::han_stack_backward(dy, y, signs, u, b, layers_with_abs(u.size(-2), final_abs, abs), needs,
                                   at::maybe_wrap_dim(dim, dy.dim()));
  }
  return backward_op_of(backend).redispatch(device_of_checked(dy), dy, y, signs, u, b, final_abs, needs, abs, dim);
}

#ifdef HANOPS_CUDA
std::tuple<Tensor, Tensor> han_stack_forward_cuda(const Tensor& x, const Tensor& u, const OptionalTensor& b,
                                                  bool final_abs, int64_t save, bool abs, int64_t dim) {
  const int64_t axis = at::maybe_wrap_dim(dim, x.dim());
  if (!is_last(x, dim) && !cuda::has_axis_kernels(x, axis, u.dim() == 3)) {
    return forward_by_rows_op().call(x, u, b, final_abs, save, abs, dim, "_cuda");
  }
  return cuda::han_stack_forward(x, u, b, layers_with_abs(u.size(-2), final_abs, abs), save, axis);
}

std::tuple<Tensor, Tensor, Tensor> han_stack_backward_cuda(const Tensor& dy, const OptionalTensor& y,
                                                           const Tensor& signs, const Tensor& u,
                                                           const OptionalTensor& b, bool final_abs, Needs needs,
                                                           bool abs, int64_t dim) {
  const int64_t axis = at::maybe_wrap_dim(dim, dy.dim());
  if (!is_last(dy, dim) && !cuda::has_axis_kernels(dy, axis, u.dim() == 3)) {
    return backward_by_rows_op().call(dy, y, signs, u, b, final_abs, needs, abs, dim, "_cuda");
  }
  return cuda::han_stack_backward(dy, y, signs, u, b, layers_with_abs(u.size(-2), final_abs, abs), needs, axis);
}
#endif

}  // namespace

// What each argument may be: checks.h. hanops/ops/registration.py has the same.
constexpr const char* kStack =
    "(Tensor x, Tensor u, Tensor? b, bool final_abs=True, bool abs=True, int dim=-1, bool exact=True) -> Tensor";
constexpr const char* kForward =
    "(Tensor x, Tensor u, Tensor? b, bool final_abs, int save, bool abs=True, int dim=-1) "
    "-> (Tensor y, Tensor signs)";
constexpr const char* kBackward =
    "(Tensor dy, Tensor? y, Tensor signs, Tensor u, Tensor? b, bool final_abs, bool[3] needs, bool abs=True, "
    "int dim=-1) -> (Tensor dx, Tensor du, Tensor db)";

TORCH_LIBRARY(hanops, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(c10::str("han_stack", kStack).c_str(), tags);
  for (const char* suffix : {"", "_cuda", "_triton", "_torch"}) {
    m.def(c10::str("han_stack_forward", suffix, kForward).c_str(), tags);
    m.def(c10::str("han_stack_backward", suffix, kBackward).c_str(), tags);
  }
}

TORCH_LIBRARY_IMPL(hanops, Autograd, m) {
  m.impl("han_stack", han_stack_autograd);
  m.impl("han_stack_forward", han_stack_forward_autograd);
  m.impl("han_stack_backward", han_stack_backward_autograd);
}

TORCH_LIBRARY_IMPL(hanops, AutocastCPU, m) { m.impl("han_stack", han_stack_autocast<at::kCPU>); }
TORCH_LIBRARY_IMPL(hanops, AutocastCUDA, m) { m.impl("han_stack", han_stack_autocast<at::kCUDA>); }

TORCH_LIBRARY_IMPL(hanops, CompositeExplicitAutograd, m) {
  m.impl("han_stack", han_stack);
  m.impl("han_stack_forward", han_stack_forward);
  m.impl("han_stack_backward", han_stack_backward);
}

TORCH_LIBRARY_IMPL(hanops, CompositeImplicitAutogradNestedTensor, m) {
  for (const char* suffix : {"", "_cuda", "_triton", "_torch", "_differentiable"}) {
    for (const char* op : {"han_stack_forward", "han_stack_backward"}) {
      m.impl(c10::str(op, suffix).c_str(), torch::CppFunction::makeFromBoxedFunction<&refuse_nested>());
    }
  }
}

TORCH_LIBRARY_IMPL(hanops, BackendSelect, m) {
  m.impl("han_stack_forward_cuda", checked_forward<Backend::kCuda>);
  m.impl("han_stack_backward_cuda", checked_backward<Backend::kCuda>);
  m.impl("han_stack_forward_triton", checked_forward<Backend::kTriton>);
  m.impl("han_stack_backward_triton", checked_backward<Backend::kTriton>);
  m.impl("han_stack_forward_torch", checked_forward<Backend::kTorch>);
  m.impl("han_stack_backward_torch", checked_backward<Backend::kTorch>);
}

#ifdef HANOPS_CUDA
TORCH_LIBRARY_IMPL(hanops, CUDA, m) {
  m.impl("han_stack_forward_cuda", han_stack_forward_cuda);
  m.impl("han_stack_backward_cuda", han_stack_backward_cuda);
}
#endif

}  // namespace hanops
