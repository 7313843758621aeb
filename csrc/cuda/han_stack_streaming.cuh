// The main kernels for rows too wide for registers: a block streams one row at a time, in a scratch row of its own, and
// a lane meets its own columns.
#pragma once

#include "han_stack_parameters.cuh"

namespace hanops::cuda {

template <class A>
using Stream = Tile<A, 1, 8, std::is_same_v<A, double> ? 2 : 4, 32, 8>;

template <class Tile, class A>
__device__ __forceinline__ void read_scratch(A (&x)[1][Tile::E], const A* row, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A x_m[Tile::V];
    read_vector(x_m, row + m * stride);
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) x[0][m * Tile::V + j] = x_m[j];
  }
}

template <class Tile, class A>
__device__ __forceinline__ void write_scratch(A* row, const A (&x)[1][Tile::E], int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A x_m[Tile::V];
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) x_m[j] = x[0][m * Tile::V + j];
    write_vector(row + m * stride, x_m);
  }
}

// One pass per layer updates a row and takes the next layer's dot product.
template <class A, bool kSave>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) forward_streaming(const Call call) {
  using Tile = Stream<A>;
  Team<Tile> team(0, 0, shared_memory<A>());
  const int stride = call.sign_bytes, begin = Tile::V * team.lane(), step = Tile::V * team.size();
  A* scratch = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * call.columns;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* w = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A a[1] = {};
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E];
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        const S* data = static_cast<const S*>(call.x.data) + group * call.x.group_stride + row * call.x.row_stride;
        read_row<Tile>(x[0], data, true, column, call.features, stride, call.x.vector >= Tile::V);
      });
      add_dots<Tile>(x, a, w + column, stride);
      write_scratch<Tile>(scratch + column, x, stride);
    }
    team.sum(a, A(-2));
    for (int layer = 0; layer < call.layers; ++layer) {
      const bool last = layer + 1 == call.layers, with_abs = layer < call.abs_layers;
      const A* next = last ? w : w + 2 * call.columns;
      A dot[1] = {};
      for (int column = begin; column < stride; column += step) {
        A x[1][Tile::E];
        unsigned bits[1][Tile::V] = {};
        read_scratch<Tile>(x, scratch + column, stride);
        reflect<Tile, false, kSave>(x, a, dot, bits, w + column, w + call.columns + column, next + column, stride);
        if (with_abs) {
#pragma unroll
          for (int e = 0; e < Tile::E; ++e) x[0][e] = fabs(x[0][e]);
          if (kSave) write_signs<Tile>(call.signs + (index * call.abs_layers + layer) * stride, column, bits[0]);
        }
        write_scratch<Tile>(scratch + column, x, stride);
      }
      w = next;
      team.sum(dot, A(-2));
      a[0] = dot[0];
    }
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E];
      read_scratch<Tile>(x, scratch + column, stride);
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        write_row<Tile>(static_cast<S*>(call.y.data) + index * call.features, x[0], true, column, call.features, stride,
                        call.features % Tile::V == 0);
      });
    }
  }
}

// dx, and the coefficients for parameter_gradients. One pass per layer undoes the reflection of the layer above and
// this layer's absolute value, and takes this layer's dot products.
template <class A, bool kX>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) backward_streaming(const Call call) {
  using Tile = Stream<A>;
  Team<Tile> team(0, 0, shared_memory<A>());
  const int stride = call.sign_bytes, begin = Tile::V * team.lane(), step = Tile::V * team.size();
  A* scratch_g = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * 2 * call.columns;
  A* scratch_x = scratch_g + call.columns;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A c[1] = {}, a[1] = {};  // of the layer above
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const bool top = layer + 1 == call.layers;
      const A* w = layers + int64_t(layer) * 2 * call.columns;
      const uint8_t* signs = call.signs + (index * call.abs_layers + layer) * stride;
      A dots[kX ? 2 : 1] = {};
      for (int column = begin; column < stride; column += step) {
        A g[1][Tile::E], x[1][Tile::E];
        if (top) {
          with_type<A>(call.type, [&](auto type) {
            using S = decltype(type);
            const auto read_from = [&](A(&out)[Tile::E], const Rows& rows) {
              const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride + row * rows.row_stride;
              read_row<Tile>(out, data, true, column, call.features, stride, rows.vector >= Tile::V);
            };
            read_from(g[0], call.dy);
            if (kX) read_from(x[0], call.y);
          });
        } else {
          const A* above = w + 2 * call.columns + column;
          read_scratch<Tile>(g, scratch_g + column, stride);
          if (kX) read_scratch<Tile>(x, scratch_x + column, stride);
          undo_reflection<Tile, kX, false>(g, x, c, a, above, static_cast<A*>(nullptr), 0, false, stride);
        }
        const unsigned bits[1] = {layer < call.abs_layers ? read_signs<Tile>(signs + column, {column, stride}) : 0};
        undo_abs<Tile, kX>(g, x, bits, dots, w + column, w + call.columns + column, stride);
        write_scratch<Tile>(scratch_g + column, g, stride);
        if (kX) write_scratch<Tile>(scratch_x + column, x, stride);
      }
      team.sum(dots, A(-2));
      c[0] = dots[0];
      a[0] = kX ? dots[kX] : A(0);
      if (call.coefficients && team.lane() == 0) write_coefficients(call, index, layer, c[0], a[0]);
    }
    if (!call.dx) continue;
    for (int column = begin; column < stride; column += step) {
      A g[1][Tile::E], x[1][Tile::E];
      read_scratch<Tile>(g, scratch_g + column, stride);
      undo_reflection<Tile, false, false>(g, x, c, a, layers + column, static_cast<A*>(nullptr), 0, false, stride);
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        write_row<Tile>(static_cast<S*>(call.dx) + index * call.features, g[0], true, column, call.features, stride,
                        call.features % Tile::V == 0);
      });
    }
  }
}

}  // namespace hanops::cuda
