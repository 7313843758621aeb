// The parameters' side of the stack: w = u / |u| on the way in, du and db from the partial sums on the way out.
#pragma once

#include <cmath>

#include "tile.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// A sum in double, one term for each lane: a loop over lanes becomes vector code.
struct LaneSums {
  double lanes[16] = {};

  double total() const {
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
  }
};

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
  const auto wide = [&](int64_t i) HANOPS_LAMBDA -> double {
    if constexpr (std::is_same_v<P, double>) {
      return u[i] / scale;
    } else {
      return static_cast<float>(u[i]);
    }
  };
  LaneSums squares;
  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    for (int64_t i = 0; i < columns; ++i) squares.lanes[i] += wide(j * kLanes<A> + i) * wide(j * kLanes<A> + i);
  });
  const double norm = std::sqrt(squares.total()), inverse = norm == 0 ? 0 : 1 / norm;  // u = 0: H = I

  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    // Local, so that no store can alias u or b and the loops become vector code.
    A w[kLanes<A>] = {}, bias[kLanes<A>];
    std::fill_n(bias, kLanes<A>, A(-0.0));  // x + -0.0 is x, even for x = -0.0
    for (int64_t i = 0; i < columns; ++i) w[i] = static_cast<A>(wide(j * kLanes<A> + i) * inverse);
    if (b) {
      for (int64_t i = 0; i < columns; ++i) bias[i] = static_cast<A>(b[j * kLanes<A> + i]);
    }
    std::memcpy(packed + 2 * j * kLanes<A>, w, sizeof w);
    std::memcpy(packed + (2 * j + 1) * kLanes<A>, bias, sizeof bias);
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
  P* du = gradients.du ? static_cast<P*>(gradients.du) + layer * features : nullptr;
  P* db = gradients.db ? static_cast<P*>(gradients.db) + layer * features : nullptr;
  const double scale = stack.norms[2 * layer], norm = stack.norms[2 * layer + 1], inverse = norm == 0 ? 0 : 1 / norm;
  LaneSums products;
  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    const int64_t pair = 2 * j * kLanes<A>;
    for (int64_t i = 0; i < columns; ++i) products.lanes[i] += static_cast<double>(w[pair + i]) * total[pair + i];
  });
  const double along = products.total();
  for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    const int64_t pair = 2 * j * kLanes<A>;
    if (du) {
      P out[kLanes<A>];
      for (int64_t i = 0; i < columns; ++i) {
        double across = (total[pair + i] - along * w[pair + i]) * inverse;
        if constexpr (std::is_same_v<P, double>) across /= scale;
        out[i] = static_cast<P>(static_cast<A>(across));
      }
      std::memcpy(du + j * kLanes<A>, out, columns * sizeof(P));
    }
    for (int64_t i = 0; db && i < columns; ++i) db[j * kLanes<A> + i] = static_cast<P>(total[pair + kLanes<A> + i]);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
