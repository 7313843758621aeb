// The parameters' side of the stack: w = u / |u| on the way in, du and db from the partial sums on the way out.
#pragma once

#include <cmath>

#include "tile.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Where column i of w, or of dw, stands in a packed layer; that of b, or of db, is kLanes further.
template <class A>
inline int64_t position(int64_t i) {
  return i / kLanes<A> * 2 * kLanes<A> + i % kLanes<A>;
}

// Packs w and b of one layer. The norm is taken in double; for double itself u is scaled by its largest element first.
// So neither tiny nor huge u under- or overflows.
template <class A, class P>
void pack_layer(const Stack& stack, const Parameters& parameters, int64_t layer) {
  const int64_t features = stack.features;
  const P* u = static_cast<const P*>(parameters.u) + layer * features;
  const P* b = parameters.b ? static_cast<const P*>(parameters.b) + layer * features : nullptr;
  A* packed = static_cast<A*>(stack.packed) + layer * layer_size<A>(features);

  double scale = 1;
  if constexpr (std::is_same_v<P, double>) {
    double largest = 0;
    for (int64_t i = 0; i < features; ++i) largest = std::max(largest, std::fabs(u[i]));
    if (largest > 0 && std::isfinite(largest)) scale = largest;
  }
  const auto scaled = [&](int64_t i) -> double {
    if constexpr (std::is_same_v<P, double>) return u[i] / scale;
    return static_cast<float>(u[i]);
  };
  double partial[8] = {};  // independent sums, so that the loop is not bound by the latency of one
  for (int64_t i = 0; i < features; ++i) partial[i % 8] += scaled(i) * scaled(i);
  double squares = 0;
  for (const double p : partial) squares += p;
  const double norm = std::sqrt(squares), inverse = squares == 0 ? 0 : 1 / norm;  // u = 0: H = I

  for_columns<A>(features, [&](int64_t j, int64_t columns) {
    A* w = packed + 2 * j * kLanes<A>;
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      const int64_t column = j * kLanes<A> + i;
      w[i] = i < columns ? static_cast<A>(scaled(column) * inverse) : A(0);
      w[i + kLanes<A>] = i < columns && b ? static_cast<A>(b[column]) : A(-0.0);  // x + -0.0 is x, even for x = -0.0
    }
  });
  stack.norms[2 * layer] = scale;
  stack.norms[2 * layer + 1] = norm;
}

// db is the sum of the parts; du = (dw - (w . dw) w) / |u|, 0 where u = 0. Leaves the sums in the first part.
template <class A, class P>
void reduce_layer(const Stack& stack, const Gradients& gradients, int64_t layer, A* partials, int64_t parts) {
  const int64_t features = stack.features, size = layer_size<A>(features);
  const A* w = layer_parameters<A>(stack, layer);
  A* total = partials + layer * size;
  for (int64_t part = 1; part < parts; ++part) {
    const A* other = total + part * stack.layers * size;
    for (int64_t i = 0; i < size; i += kLanes<A>) (load(total + i) + load(other + i)).store(total + i);
  }
  if (gradients.du) {
    P* du = static_cast<P*>(gradients.du) + layer * features;
    const double scale = stack.norms[2 * layer], norm = stack.norms[2 * layer + 1];
    double along = 0;
    for (int64_t i = 0; i < features; ++i) along += static_cast<double>(w[position<A>(i)]) * total[position<A>(i)];
    for (int64_t i = 0; i < features; ++i) {
      const double across = total[position<A>(i)] - along * w[position<A>(i)];
      du[i] = norm == 0 ? P(0) : static_cast<P>(static_cast<A>(across / norm / scale));
    }
  }
  if (gradients.db) {
    P* db = static_cast<P*>(gradients.db) + layer * features;
    for (int64_t i = 0; i < features; ++i) db[i] = static_cast<P>(total[position<A>(i) + kLanes<A>]);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
