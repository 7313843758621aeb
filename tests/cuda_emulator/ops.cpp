// Registers the CUDA ops for CPU tensors, on the emulator: csrc/cuda runs as it is, but for the layout of sign bits.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <vector>

#include "checks.h"
#include "cuda/han_stack.h"
#include "cuda/plan.h"
#include "emulator.h"
#include "signs.h"

namespace hanops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// While it lives, the given tensors and what this thread allocates are the memory that kernels may touch.
class Memory {
 public:
  explicit Memory(std::initializer_list<const Tensor*> tensors) : lock_(one_call) {
    for (const Tensor* t : tensors) {
      if (t && t->defined()) add(t->storage().data(), t->storage().nbytes());
    }
    current = this;
  }
  ~Memory() {
    current = nullptr;
    for (const void* buffer : buffers_) emulator::remove_buffer(buffer);
  }

  void add(const void* begin, size_t bytes) {
    emulator::add_buffer(begin, bytes);
    buffers_.push_back(begin);
  }

  static inline thread_local Memory* current = nullptr;

 private:
  static inline std::mutex one_call;
  std::lock_guard<std::mutex> lock_;
  std::vector<const void*> buffers_;
};

// The CPU's allocator, which tells the thread's Memory of what it gives. It stays, for other threads may hold it.
struct Allocator : c10::Allocator {
  Allocator() { c10::SetCPUAllocator(this, /*priority=*/100); }

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr data = base->allocate(bytes);
    if (Memory::current) Memory::current->add(data.get(), bytes);
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override { return base->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { base->copy_data(to, from, bytes); }

  c10::Allocator* const base = c10::GetCPUAllocator();
} allocator;

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

constexpr uint8_t kGarbage = 0x85;

// The rest of y from the GPU's planes to the CPU's, or back: byte j of a row's is column j's. A kernel leaves zeros
// beyond the features, and does not depend on what it finds there.
void convert_rest(const uint8_t* from, int64_t from_bytes, uint8_t* to, int64_t to_bytes, int64_t features,
                  bool to_cpu) {
  std::fill_n(std::copy_n(from, features, to), to_bytes - features, to_cpu ? 0 : kGarbage);
  TORCH_CHECK(!to_cpu || std::all_of(from + features, from + from_bytes, [](uint8_t byte) { return byte == 0; }),
              "CUDA emulator: the rest of y is not 0 beyond the features");
}

// Sign bits of so many layers, and the rest of y behind them, from the GPU's layout to the CPU's (csrc/signs.h), or
// back.
Tensor converted(const Tensor& signs, int64_t features, int64_t layers, bool to_cpu) {
  const int64_t chunked_bytes = chunked_sign_bytes(features), packed_bytes = sign_bytes(features);
  at::DimVector shape(signs.sizes().begin(), signs.sizes().end());
  shape.back() = to_cpu ? packed_bytes : chunked_bytes;
  const Tensor source = signs.contiguous(), target = at::zeros(shape, signs.options());
  const int64_t planes = source.size(-2), from_bytes = planes * source.size(-1), to_bytes = planes * shape.back();
  for (int64_t row = 0; row < source.numel() / std::max<int64_t>(from_bytes, 1); ++row) {
    const uint8_t* from = source.const_data_ptr<uint8_t>() + row * from_bytes;
    uint8_t* to = target.data_ptr<uint8_t>() + row * to_bytes;
    for (int64_t layer = 0; layer < layers; ++layer, from += source.size(-1), to += shape.back()) {
      for (int64_t column = 0; column < features; ++column) {
        const SignBit chunked = chunked_sign_bit(column, chunked_bytes), packed = sign_bit(column);
        const auto [source_bit, target_bit] = to_cpu ? std::pair(chunked, packed) : std::pair(packed, chunked);
        to[target_bit.byte] |= static_cast<uint8_t>((from[source_bit.byte] >> source_bit.bit & 1) << target_bit.bit);
      }
    }
    if (planes > layers) convert_rest(from, 8 * source.size(-1), to, 8 * shape.back(), features, to_cpu);
  }
  return target;
}

// Along another axis, where the kernels cannot: see csrc/ops.cpp.
using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&, bool, int64_t, bool,
                                           int64_t, std::string_view);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                                                    const OptionalTensor&, bool, std::array<bool, 3>, bool, int64_t,
                                                    std::string_view);

template <class Schema>
auto by_rows(const char* way) {
  const auto name = c10::str("hanops::han_stack_", way, "_by_rows");
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").typed<Schema>();
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& u, const OptionalTensor& b, bool final_abs,
                                   int64_t save, bool abs, int64_t dim) {
  const bool last = is_last(x, dim);
  const int64_t axis = at::maybe_wrap_dim(dim, x.dim());
  if (!last && !cuda::has_axis_kernels(x, axis, u.dim() == 3)) {
    return by_rows<Forward>("forward").call(x, u, b, final_abs, save, abs, dim, "_cuda");
  }
  const Memory memory{&x, &u, pointer(b)};
  const int64_t abs_layers = layers_with_abs(u.size(-2), final_abs, abs);
  const auto [y, signs] = cuda::han_stack_forward(x, u, b, abs_layers, save, axis);
  return {y, save && last ? converted(signs, x.size(-1), abs_layers, true) : signs};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy, const OptionalTensor& y, const Tensor& signs,
                                            const Tensor& u, const OptionalTensor& b, bool final_abs,
                                            std::array<bool, 3> needs, bool abs, int64_t dim) {
  const bool last = is_last(dy, dim);
  const int64_t axis = at::maybe_wrap_dim(dim, dy.dim());
  if (!last && !cuda::has_axis_kernels(dy, axis, u.dim() == 3)) {
    return by_rows<Backward>("backward").call(dy, y, signs, u, b, final_abs, needs, abs, dim, "_cuda");
  }
  const Memory memory{&dy, pointer(y), &signs, &u, pointer(b)};
  const int64_t abs_layers = layers_with_abs(u.size(-2), final_abs, abs);
  const Tensor as_kept = last ? converted(signs, dy.size(-1), abs_layers, false) : signs;
  return cuda::han_stack_backward(dy, y, as_kept, u, b, abs_layers, needs, axis);
}

}  // namespace

TORCH_LIBRARY_IMPL(hanops, CPU, m) {
  m.impl("han_stack_forward_cuda", forward);
  m.impl("han_stack_backward_cuda", backward);
}

}  // namespace hanops

// ---- for tests, by ctypes

#define HANOPS_EXPORT extern "C" __attribute__((visibility("default")))

HANOPS_EXPORT void set_sms(int count) { emulator::sms = count; }

HANOPS_EXPORT void set_device(int device) { emulator::device = device; }

HANOPS_EXPORT int launches() { return emulator::launches; }

HANOPS_EXPORT int early_launches() { return emulator::early_launches; }

// The layout of sign bits, as csrc/signs.h has it: what hanops/definition/signs.py is compared with.
HANOPS_EXPORT long long sign_bytes_of(long long features, int chunked) {
  return chunked ? hanops::chunked_sign_bytes(features) : hanops::sign_bytes(features);
}

// Writes the byte and the bit of each column.
HANOPS_EXPORT void sign_bits_of(long long features, int chunked, long long* bytes, long long* bits) {
  for (long long column = 0; column < features; ++column) {
    const auto bit =
        chunked ? hanops::chunked_sign_bit(column, hanops::chunked_sign_bytes(features)) : hanops::sign_bit(column);
    bytes[column] = bit.byte;
    bits[column] = bit.bit;
  }
}

// Writes how a call with all gradients would run; inner: positions behind the features, 0 where they are the last axis.
HANOPS_EXPORT void describe_plan(long long rows, int features, int layers, int backward, int wide, int inner,
                                 char* text, int capacity) {
  using namespace hanops::cuda;
  Stack stack;
  stack.rows = rows;
  stack.inner = inner;
  stack.outer = inner ? static_cast<int>(rows / inner) : 0;
  stack.features = features;
  stack.layers = stack.abs_layers = layers;
  stack.type = stack.parameter_type = wide ? Type::kFloat64 : Type::kFloat32;
  std::snprintf(text, capacity, "%s", make_plan(stack, backward, true, Device::current())->describe().c_str());
}
