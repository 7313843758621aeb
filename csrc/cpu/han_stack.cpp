// The CPU implementation of the ops: tensors in, row tasks for torch's threads, partial sums in a fixed order.
#include "han_stack.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty_cpu_dispatch.h>  // past the dispatcher: a call of few rows takes 2 % less time
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>

#include "../checks.h"
#include "kernels.h"

namespace hanops::cpu {
namespace {

using at::Tensor;

// Element-layers below which a second thread costs more than it saves: 4 to 6 us of work.
constexpr int64_t kForwardGrain = 64 << 10, kBackwardGrain = 32 << 10;

constexpr int64_t kAlignment = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Storage::kFloat;
    case at::kDouble:
      return Storage::kDouble;
    case at::kBFloat16:
      return Storage::kBFloat16;
    default:
      return Storage::kHalf;
  }
}

// The one stride that axes [first, last) of x collapse to, innermost last; none where they do not.
std::optional<int64_t> collapsed_stride(const Tensor& x, int64_t first, int64_t last) {
  int64_t rows = 1, stride = 0;
  for (int64_t i = last - 1; i >= first; --i) {
    if (x.size(i) == 1) continue;
    if (rows == 1) {
      stride = x.stride(i);
    } else if (x.stride(i) != stride * rows) {
      return std::nullopt;
    }
    rows *= x.size(i);
  }
  return stride;
}

int64_t inner_size(const Tensor& x, int64_t dim) { return c10::multiply_integers(x.sizes().slice(dim + 1)); }

// x as (groups, rows, features), or (groups, outer, features, inner), without a copy where the axes before the features
// collapse to one stride, and those after them to the stride 1.
struct Rows {
  Tensor owner;
  int64_t group_stride;
  Matrix matrix;

  Rows(const Tensor& x, bool grouped, int64_t dim) : owner(x) {
    const int64_t first = grouped ? 1 : 0;
    const bool adjacent = inner_size(x, dim) == 1 || collapsed_stride(x, dim + 1, x.dim()) == 1;
    auto stride = collapsed_stride(x, first, dim);
    if (!adjacent || !stride) {
      owner = x.contiguous();
      stride = collapsed_stride(owner, first, dim);
    }
    matrix = {owner.const_data_ptr(), *stride, owner.stride(dim)};
    group_stride = grouped ? owner.stride(0) : 0;
  }

  Matrix group(int64_t g) const {
    return {static_cast<const char*>(matrix.data) + g * group_stride * owner.element_size(), matrix.row_stride,
            matrix.column_stride};
  }
};

// The packed parameters of every group.
struct Packed {
  at::DataPtr memory;
  int64_t packed_bytes;
  Stack shape;

  Packed(const Kernels& kernels, const Tensor& x, const Tensor& u, const std::optional<Tensor>& b, int64_t abs_layers,
         int64_t groups, int64_t inner) {
    shape = {storage_of(x), u.size(-1), u.size(-2), abs_layers, inner, nullptr, nullptr};
    const Tensor u_rows = u.contiguous(), b_rows = b ? b->contiguous() : Tensor();
    packed_bytes = round_up(shape.layers * kernels.layer_bytes(shape), kAlignment);
    memory = c10::GetCPUAllocator()->allocate(groups * (packed_bytes + shape.layers * 2 * sizeof(double)));
    const int64_t bytes = shape.layers * shape.features * u.element_size();
    at::parallel_for(0, groups * shape.layers, std::max<int64_t>(1, kForwardGrain / shape.features),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t g = i / shape.layers;
                         const Parameters parameters{
                             storage_of(u), static_cast<const char*>(u_rows.const_data_ptr()) + g * bytes,
                             b ? static_cast<const char*>(b_rows.const_data_ptr()) + g * bytes : nullptr};
                         kernels.pack(stack(g, groups), parameters, i % shape.layers);
                       }
                     });
  }

  Stack stack(int64_t g, int64_t groups) const {
    Stack s = shape;
    char* base = static_cast<char*>(memory.get());
    s.packed = base + g * packed_bytes;
    s.norms = reinterpret_cast<double*>(base + groups * packed_bytes) + g * 2 * shape.layers;
    return s;
  }
};

// Grows to the most that its thread's kernels ask for.
class GrowingScratch final : public Scratch {
 public:
  void* reserve(int64_t bytes) override {
    if (bytes > bytes_) {
      memory_.clear();
      memory_ = c10::GetCPUAllocator()->allocate(bytes);
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  at::DataPtr memory_;
  int64_t bytes_ = 0;
};

char* offset(const Tensor& t, int64_t elements) {
  return t.defined() ? static_cast<char*>(t.data_ptr()) + elements * t.element_size() : nullptr;
}

// Rows, or positions, are those of a group.
struct Extent {
  bool grouped;
  int64_t groups, rows, features, layers, abs_layers;
  int64_t inner;  // of Stack

  Extent(const Tensor& x, const Tensor& u, int64_t abs_layers, int64_t dim)
      : grouped(u.dim() == 3),
        groups(grouped ? u.size(0) : 1),
        features(u.size(-1)),
        layers(u.size(-2)),
        abs_layers(abs_layers),
        inner(dim == x.dim() - 1 ? 0 : inner_size(x, dim)) {
    rows = groups ? x.numel() / (groups * features) : 0;
  }
};

// A group's part of `signs`, a row of which, or an outer, has the bits of a stack's layers and perhaps the rest of y.
template <class Byte>
struct Saved {
  Planes<Byte> planes;
  int64_t rows, bits;  // rows or outers of a group, bytes of a row or an outer
  bool has_rest;

  Saved(Byte* data, const Extent& n, int64_t rest_planes)
      : planes{data, (n.abs_layers + rest_planes) * plane_bytes(n)},
        rows(n.inner > 0 ? n.rows / n.inner : n.rows),
        bits(n.abs_layers * plane_bytes(n)),
        has_rest(rest_planes > 0) {}

  static int64_t plane_bytes(const Extent& n) {
    constexpr int64_t kWordBytes = kWordColumns / 8;
    return n.inner > 0 ? word_count(n.features) * kWordBytes * n.inner : sign_bytes(n.features);
  }

  Planes<Byte> signs(int64_t g) const {
    return bits > 0 ? Planes<Byte>{planes.data + g * rows * planes.row_stride, planes.row_stride} : Planes<Byte>{};
  }
  auto rest(int64_t g) const {
    using Int8 = std::conditional_t<std::is_const_v<Byte>, const int8_t, int8_t>;
    if (!has_rest) return Planes<Int8>{};
    return Planes<Int8>{reinterpret_cast<Int8*>(planes.data) + g * rows * planes.row_stride + bits, planes.row_stride};
  }
};

// Rows shared out in units, evenly; the last part also takes the rows that are no whole unit.
struct Parts {
  int64_t rows, unit, count;

  Parts(int64_t rows, int64_t unit, int64_t most)
      : rows(rows), unit(unit), count(std::min(most, std::max<int64_t>(1, rows / unit))) {}

  int64_t begin(int64_t part) const { return part == count ? rows : part * (rows / unit) / count * unit; }
};

// Parts with a partial sum of du and db each. Their number is a function of the shape alone, so that the sums are the
// same for any number of threads. 128 rows keep the partial sums at half the size of the saved bits; few rows are
// shared by up to four threads; 256 parts are work for many cores.
int64_t most_sums(int64_t rows) {
  const int64_t few = std::clamp<int64_t>(rows / 48, 1, 4);
  return std::clamp<int64_t>(ceil_div(rows, 128), few, 256);
}

const Kernels* table_of([[maybe_unused]] const std::string& capability) {
#if defined(HANOPS_X86)
  if (capability == "AVX512") return &AVX512::kTable;
  if (capability == "AVX2") return &AVX2::kTable;
#endif
  return &DEFAULT::kTable;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const table = table_of(at::get_cpu_capability());
  return *table;
}

std::tuple<Tensor, Tensor> han_stack_forward(const Tensor& x, const Tensor& u, const std::optional<Tensor>& b,
                                             int64_t abs_layers, int64_t save, int64_t dim) {
  const Extent n(x, u, abs_layers, dim);
  const int64_t of_rest = rest_planes(x.scalar_type(), save);
  const at::DimVector signs_sizes = save == 0 ? at::DimVector{0}
                                    : is_last(x, dim)
                                        ? signs_shape(x.sizes(), n.abs_layers + of_rest, sign_bytes(n.features))
                                        : sign_words_shape(x.sizes(), n.abs_layers + of_rest, dim);
  const Tensor signs = at::cpu::empty(signs_sizes, x.options().dtype(at::kByte));
  if (n.layers == 0) return {x.clone(at::MemoryFormat::Contiguous), signs.zero_()};
  Tensor y = at::cpu::empty(x.sizes(), x.options());
  if (y.numel() == 0) return {y, signs};

  const Kernels& k = kernels();
  const Rows x_rows(x, n.grouped, dim);
  const Packed packed(k, x, u, b, abs_layers, n.groups, n.inner);
  const Saved saved(save > 0 ? signs.data_ptr<uint8_t>() : nullptr, n, of_rest);
  const Parts parts(n.rows, k.task_rows(packed.shape), n.rows);  // a unit each
  const int64_t units = parts.count, grain = ceil_div(kForwardGrain, parts.unit * n.features * n.layers);
  at::parallel_for(0, n.groups * units, grain, [&](int64_t begin, int64_t end) {
    GrowingScratch scratch;
    while (begin < end) {
      const int64_t g = begin / units, first = begin % units, last = std::min(units, first + end - begin);
      const Forward call{x_rows.group(g), offset(y, g * n.rows * n.features),
                         save > 0 ? saved.signs(g) : Planes<uint8_t>{}, saved.rest(g)};
      k.forward(packed.stack(g, n.groups), call, parts.begin(first), parts.begin(last), scratch);
      begin += last - first;
    }
  });
  return {y, signs};
}

std::tuple<Tensor, Tensor, Tensor> han_stack_backward(const Tensor& dy, const std::optional<Tensor>& y,
                                                      const Tensor& signs, const Tensor& u,
                                                      const std::optional<Tensor>& b, int64_t abs_layers,
                                                      std::array<bool, 3> needs, int64_t dim) {
  const Extent n(dy, u, abs_layers, dim);
  const auto [needs_dx, needs_du, needs_db] = needs;
  const auto none = [](const Tensor& like) { return at::cpu::empty({0}, like.options()); };
  if (n.layers == 0 || dy.numel() == 0) {
    const auto zeros = [&](bool needed) { return needed ? at::zeros(u.sizes(), u.options()) : none(u); };
    return {needs_dx ? dy.clone(at::MemoryFormat::Contiguous) : none(dy), zeros(needs_du), zeros(needs_db)};
  }
  Tensor dx = needs_dx ? at::cpu::empty(dy.sizes(), dy.options()) : none(dy);
  Tensor du = needs_du ? at::cpu::empty(u.sizes(), u.options()) : none(u);
  Tensor db = needs_db ? at::cpu::empty(u.sizes(), u.options()) : none(u);

  const Kernels& k = kernels();
  const Rows dy_rows(dy, n.grouped, dim);
  const std::optional<Rows> y_rows = needs_du ? std::optional<Rows>(std::in_place, *y, n.grouped, dim) : std::nullopt;
  const Tensor kept = signs.contiguous();
  const Saved saved(kept.const_data_ptr<uint8_t>(), n, kept.size(n.inner > 0 ? dim : -2) - n.abs_layers);
  const Tensor zeros = abs_layers > 0 ? Tensor() : at::zeros({sign_bytes(n.features)}, signs.options());
  const Packed packed(k, dy, u, b, abs_layers, n.groups, n.inner);
  const bool sums = needs_du || needs_db;
  const int64_t part_bytes = sums ? n.layers * k.layer_bytes(packed.shape) : 0;
  const Parts split(n.rows, k.task_rows(packed.shape), most_sums(n.rows));
  const int64_t parts = split.count, grain = ceil_div(kBackwardGrain, n.rows / parts * n.features * n.layers);
  const at::DataPtr partials = c10::GetCPUAllocator()->allocate(n.groups * parts * part_bytes);
  const auto partial = [&](int64_t i) { return sums ? static_cast<char*>(partials.get()) + i * part_bytes : nullptr; };

  at::parallel_for(0, n.groups * parts, grain, [&](int64_t begin, int64_t end) {
    GrowingScratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / parts, part = i % parts;
      const Backward call{dy_rows.group(g),
                          y_rows ? y_rows->group(g) : Matrix{},
                          abs_layers > 0 ? saved.signs(g) : Planes<const uint8_t>{zeros.const_data_ptr<uint8_t>(), 0},
                          saved.rest(g),
                          needs_dx ? offset(dx, g * n.rows * n.features) : nullptr,
                          needs_db};
      k.backward(packed.stack(g, n.groups), call, split.begin(part), split.begin(part + 1), partial(i), scratch);
    }
  });
  if (sums) {
    at::parallel_for(0, n.groups * n.layers, ceil_div(kBackwardGrain, n.features * parts),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t g = i / n.layers, first = g * n.layers * n.features;
                         const Gradients gradients{storage_of(u), needs_du ? offset(du, first) : nullptr,
                                                   needs_db ? offset(db, first) : nullptr};
                         k.reduce(packed.stack(g, n.groups), gradients, i % n.layers, partial(g * parts), parts);
                       }
                     });
  }
  return {dx, du, db};
}

}  // namespace hanops::cpu
