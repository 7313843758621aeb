// The main kernels for rows too wide for registers: a block streams one row at a time, in a scratch row of its own, and
// a lane meets its own columns.
#pragma once

#include "han_stack_layer.cuh"
#include "partial_sums.cuh"
#include "rest.cuh"

namespace hanops::cuda {

template <class A>
using Stream = Tile<A, 1, 8, std::is_same_v<A, double> ? 2 : 4, 32, 8>;
static_assert(Stream<float>::kThreads == kStreamThreads);

template <class Tile, class A>
__device__ __forceinline__ void write_stream(void* out, const A (&x)[1][Tile::E], const Stack& call, int64_t index,
                                             int column, int stride) {
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    write_row<Tile>(static_cast<S*>(out) + index * call.features, x[0], true, column, call.features, stride,
                    call.features % Tile::V == 0);
  });
}

// One pass per layer updates a row and takes the next layer's dot product.
template <class A, bool kAbs, bool kSave>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) forward_streaming(const ForwardCall call) {
  wait_for_kernels_before();
  using Tile = Stream<A>;
  ThreadGroup<Tile> threads(0, 0, shared_memory<A>(), 1);
  const int stride = call.sign_bytes, begin = Tile::V * threads.lane(), step = Tile::V * threads.size();
  A* scratch = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * call.columns;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* w = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A a[1] = {};
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E], w_0[Tile::E];
      read_rows<Tile>(x, threads, call, call.x, group, row, column, stride);
      read_parameter<Tile>(w_0, w + column, stride);
      add_dots<Tile>(x, a, w_0);
      write_parameter<Tile>(scratch + column, x[0], stride);
    }
    threads.sum(a, A(-2));
    for (int layer = 0; layer < call.layers; ++layer) {
      const bool last = layer + 1 == call.layers, with_abs = kAbs && layer < call.abs_layers;
      const A* next = last ? w : w + 2 * call.columns;
      A dot[1] = {};
      for (int column = begin; column < stride; column += step) {
        A x[1][Tile::E], w_l[Tile::E];
        unsigned bits[1][Tile::V] = {};
        read_parameter<Tile>(x[0], scratch + column, stride);
        read_parameter<Tile>(w_l, w + column, stride);
        reflect<Tile, false, kAbs, kSave>(x, w_l, a, dot, bits, w + call.columns + column, next + column, stride);
        if (with_abs) {
#pragma unroll
          for (int e = 0; e < Tile::E; ++e) x[0][e] = fabs(x[0][e]);
          if (kSave) write_signs<Tile>(call.signs + (index * call.planes + layer) * stride + column, bits[0]);
        }
        write_parameter<Tile>(scratch + column, x[0], stride);
      }
      w = next;
      threads.sum(dot, A(-2));
      a[0] = dot[0];
    }
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E];
      read_parameter<Tile>(x[0], scratch + column, stride);
      write_stream<Tile>(call.y, x, call, index, column, stride);
      if ((kSave || !kAbs) && call.rest) write_rest<Tile>(x, threads, call, group, row, 1u, column, stride);
    }
  }
}

// dx, and the coefficients for parameter_gradients. One pass per layer undoes the reflection of the layer above and
// this layer's absolute value, and takes this layer's dot products.
template <class A, bool kX>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) backward_streaming(const BackwardCall call) {
  let_next_kernel_start();
  wait_for_kernels_before();
  using Tile = Stream<A>;
  ThreadGroup<Tile> threads(0, 0, shared_memory<A>(), 2);
  const int stride = call.sign_bytes, begin = Tile::V * threads.lane(), step = Tile::V * threads.size();
  A* scratch_g = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * 2 * call.columns;
  A* scratch_x = scratch_g + call.columns;
  Sums<Tile> none;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A c[1] = {}, a[1] = {};  // of the layer above
    bool live = false;
    if (kX) {
      for (int column = begin; column < stride; column += step) {
        A g[1][Tile::E];
        read_rows<Tile>(g, threads, call, call.dy, group, row, column, stride);
        live |= has_nonzero(g[0]);
      }
      live = threads.join(live) != 0;
      if (call.by_coefficients && threads.lane() == 0) write(call.live + index, static_cast<uint8_t>(live));
    }
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const bool top = layer + 1 == call.layers;
      const A* w = layers + int64_t(layer) * 2 * call.columns;
      const uint8_t* signs = call.signs + (index * call.planes + layer) * stride;
      A dots[kX ? 2 : 1] = {};
      for (int column = begin; column < stride; column += step) {
        A g[1][Tile::E], x[1][Tile::E] = {}, w_l[Tile::E], b_l[Tile::E];
        if (top) {
          read_rows<Tile>(g, threads, call, call.dy, group, row, column, stride);
          if (kX && live) read_output<Tile>(x, threads, call, group, row, column, stride);
        } else {
          const A* above = w + 2 * call.columns + column;
          read_parameter<Tile>(g[0], scratch_g + column, stride);
          if (kX) read_parameter<Tile>(x[0], scratch_x + column, stride);
          read_parameter<Tile>(w_l, above, stride);
          undo_reflection<Tile, kX, false>(g, x, c, a, w_l, none);
        }
        const unsigned bits[1] = {layer < call.abs_layers ? read_signs<Tile>(signs + column) : 0};
        read_parameter<Tile>(w_l, w + column, stride);
        if (kX) read_parameter<Tile>(b_l, w + call.columns + column, stride);
        undo_abs<Tile, kX>(g, x, bits, SignPlace<Tile>(column, stride).shift, dots, w_l, b_l);
        write_parameter<Tile>(scratch_g + column, g[0], stride);
        if (kX) write_parameter<Tile>(scratch_x + column, x[0], stride);
      }
      threads.sum(dots, A(-2));
      c[0] = dots[0];
      a[0] = kX ? dots[kX] : A(0);
      if (call.by_coefficients && threads.lane() == 0) write_coefficients(call, index, layer, c[0], a[0]);
    }
    if (!call.needs_dx) continue;
    for (int column = begin; column < stride; column += step) {
      A g[1][Tile::E], x[1][Tile::E], w_0[Tile::E];
      read_parameter<Tile>(g[0], scratch_g + column, stride);
      read_parameter<Tile>(w_0, layers + column, stride);
      undo_reflection<Tile, false, false>(g, x, c, a, w_0, none);
      write_stream<Tile>(call.dx, g, call, index, column, stride);
    }
  }
}

}  // namespace hanops::cuda
