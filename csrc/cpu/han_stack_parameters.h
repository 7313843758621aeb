// The parameters' side of the stack: w = u / |u| on the way in, du and db from the partial sums on the way out.
#pragma once

#include <cmath>

#include "tile.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Parameters, which may be narrower than A, as A; lanes past `columns` are 0.
template <class A, class S>
HANOPS_INLINE Vec<A> read_parameters(const S* p, int64_t columns) {
  if constexpr (std::is_same_v<A, S>) {
    return load(p, columns);
  } else {
    A wide[kLanes<A>] = {};
    for (int64_t i = 0; i < columns; ++i) wide[i] = static_cast<A>(p[i]);
    return load(wide);
  }
}

template <class A, class S>
HANOPS_INLINE void write_parameters(const Vec<A>& v, S* p, int64_t columns) {
  if constexpr (std::is_same_v<A, S>) {
    v.store(p, columns);
  } else {
    A wide[kLanes<A>];
    v.store(wide);
    for (int64_t i = 0; i < columns; ++i) p[i] = static_cast<S>(wide[i]);
  }
}

// The largest finite |u| of a double row, by which it is divided before it is squared.
template <class S>
double scale_of(const S* u, int64_t features) {
  if constexpr (!std::is_same_v<S, double>) return 1;  // squares of float32 fit in double
  double largest = 0;
  for (int64_t i = 0; i < features; ++i) largest = std::max(largest, std::fabs(static_cast<double>(u[i])));
  return largest > 0 && std::isfinite(largest) ? largest : 1;
}

// A sum of products, its chains no longer than a block of columns: the rounding error does not grow with the width.
template <class A>
struct WideSum {
  Wide<A> block{0.0}, blocks{0.0};

  HANOPS_INLINE void add(const Wide<A>& x, const Wide<A>& y) { block = vec::fmadd(x, y, block); }
  HANOPS_INLINE void fold() {
    blocks = blocks + block;
    block = Wide<A>(0.0);
  }
  double total() const { return sum<double>(blocks + block); }
};

// Packs w and b of one layer. The norm is taken in double; for double itself u is scaled by its largest element first.
// So neither tiny nor huge u under- or overflows.
template <class A, class S>
void pack_layer(const Stack& stack, const Parameters& parameters, int64_t layer) {
  const int64_t features = stack.features;
  const S* u = static_cast<const S*>(parameters.u) + layer * features;
  const S* b = parameters.b ? static_cast<const S*>(parameters.b) + layer * features : nullptr;
  A* packed = static_cast<A*>(stack.packed) + layer * layer_size<A>(features);

  const double scale = scale_of(u, features);
  const auto scaled = [&](int64_t j, auto columns) HANOPS_LAMBDA {
    const Wide<A> v = widen<A>(read_parameters<A>(u + j * kLanes<A>, columns));
    if constexpr (std::is_same_v<S, double>) {
      return v / Wide<A>(scale);
    } else {
      return v;
    }
  };
  WideSum<A> squares;
  for_columns<A>(
      features,
      [&](int64_t j, auto columns) HANOPS_LAMBDA {
        const Wide<A> v = scaled(j, columns);
        squares.add(v, v);
      },
      [&] { squares.fold(); });
  const double norm = std::sqrt(squares.total()), inverse = norm == 0 ? 0 : 1 / norm;  // u = 0: H = I

  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    const Vec<A> bias =
        b ? read_parameters<A>(b + j * kLanes<A>, columns) : Vec<A>(A(-0.0));  // x + -0.0 is x, even for x = -0.0
    narrow<A>(scaled(j, columns) * Wide<A>(inverse)).store(packed + 2 * j * kLanes<A>);
    bias.store(packed + (2 * j + 1) * kLanes<A>);
  });
  stack.norms[2 * layer] = scale;
  stack.norms[2 * layer + 1] = norm;
}

// db is the sum of the parts; du = (dw - (w . dw) w) / |u|, 0 where u = 0. Leaves the sums in the first part.
template <class A, class S>
void reduce_layer(const Stack& stack, const Gradients& gradients, int64_t layer, A* partials, int64_t parts) {
  const int64_t features = stack.features, size = layer_size<A>(features);
  const A* w = layer_parameters<A>(stack, layer);
  A* total = partials + layer * size;
  for (int64_t part = 1; part < parts; ++part) {
    const A* other = total + part * stack.layers * size;
    for (int64_t i = 0; i < size; i += kLanes<A>) (load(total + i) + load(other + i)).store(total + i);
  }
  if (gradients.db) {
    S* db = static_cast<S*>(gradients.db) + layer * features;
    for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
      write_parameters<A>(load(total + (2 * j + 1) * kLanes<A>), db + j * kLanes<A>, columns);
    });
  }
  if (!gradients.du) return;
  S* du = static_cast<S*>(gradients.du) + layer * features;
  const auto w_and_dw = [&](int64_t j) HANOPS_LAMBDA {
    const int64_t pair = 2 * j * kLanes<A>;
    return std::pair(widen<A>(load(w + pair)), widen<A>(load(total + pair)));
  };
  WideSum<A> products;
  for_columns<A>(
      features,
      [&](int64_t j, auto) HANOPS_LAMBDA {
        const auto [w_j, dw] = w_and_dw(j);
        products.add(w_j, dw);
      },
      [&] { products.fold(); });
  const Wide<A> along(products.total());
  const double scale = stack.norms[2 * layer], norm = stack.norms[2 * layer + 1], inverse = norm == 0 ? 0 : 1 / norm;
  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    const auto [w_j, dw] = w_and_dw(j);
    Wide<A> across = (dw - along * w_j) * Wide<A>(inverse);
    if constexpr (std::is_same_v<S, double>) across = across / Wide<A>(scale);
    write_parameters<A>(narrow<A>(across), du + j * kLanes<A>, columns);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
