// The forward's main kernel: a tile of rows stays in registers while every layer passes over it.
#pragma once

#include "han_stack_layer.cuh"
#include "han_stack_parameters.cuh"
#include "rest.cuh"

namespace hanops::cuda {

// One layer of a tile; a holds -2 w . x of this layer before, and of the next one after, and w is this layer's, then
// the next one's. Sign bits of the registers in `valid` go to `signs`.
template <class Tile, bool kBelow, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void forward_layer(A (&x)[Tile::R][Tile::E], A (&w)[Tile::E], A (&a)[Tile::R],
                                              ThreadGroup<Tile>& threads, const A* parameters, bool last, int columns,
                                              uint8_t* signs, unsigned sign_stride, unsigned valid) {
  A dot[Tile::R] = {};
  unsigned bits[Tile::R][Tile::V] = {};
  reflect<Tile, kBelow, kAbs, kSave>(x, w, a, dot, bits, parameters + columns,
                                     last ? parameters : parameters + 2 * columns, columns / 8);
  if (kSave) write_tile_signs<Tile>(signs, threads, sign_stride, valid, bits);
  if (last || (HANOPS_BROKEN("divergent shuffle") && threadIdx.x == 3)) return;
  threads.sum(dot, A(-2));
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) a[r] = dot[r];
}

// A tile for each thread group: x in, y and the sign bits out. kAbs: layers take the absolute value, the last perhaps.
template <class Tile, bool kAbs, bool kSave>
__global__ void __launch_bounds__(Tile::kThreads, 1) forward(const ForwardCall call) {
  using A = typename Tile::A;
  A* memory = shared_memory<A>();
  ThreadGroup<Tile> threads(call.lanes, call.warps, memory, Tile::R);
  const int64_t group = blockIdx.x / call.blocks, block = blockIdx.x % call.blocks;
  const Packed<Tile> packed(call, group, threads.warps() > 1 ? memory + 2 * threads.warps() * Tile::R : memory);
  const int64_t index = block * threads.count() + threads.index();
  const TileRows<Tile> tile(index, call.rows);
  const int columns = Tile::columns(call), column = Tile::V * threads.lane(), stride = columns / 8;
  const unsigned own = pinned(threads.registers(tile.own));

  A x[Tile::R][Tile::E], w[Tile::E], a[Tile::R] = {};
  read_rows<Tile>(x, threads, call, call.x, group, tile.first, column, stride);
  prefetch_rows<Tile>(threads, call, call.x, group, index + call.ahead);
  wait_for_kernels_before();
  const A* parameters = packed.layers + column;
  read_parameter<Tile>(w, parameters, stride);
  add_dots<Tile>(x, a, w);
  threads.sum(a, A(-2));
  uint8_t* signs = call.signs + (group * call.rows + tile.first) * call.planes * stride + column;
  const unsigned sign_stride = pinned(call.sign_stride);
  forward_layer<Tile, false, kAbs, kSave>(x, w, a, threads, parameters, call.layers == 1, columns, signs, sign_stride,
                                          call.abs_layers > 0 ? own : 0);
  for (int layer = 1; layer < call.layers; ++layer) {
    parameters += 2 * columns;
    signs += stride;
    forward_layer<Tile, kAbs, kAbs, kSave>(x, w, a, threads, parameters, layer + 1 == call.layers, columns, signs,
                                           sign_stride, layer < call.abs_layers ? own : 0);
  }
  if (kAbs && call.abs_layers == call.layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = fabs(x[r][e]);
    }
  }
  write_rows<Tile>(call.y, x, threads, call, group, tile.first, own, column, stride);
  if ((kSave || !kAbs) && call.rest) write_rest<Tile>(x, threads, call, group, tile.first, own, column, stride);
}

}  // namespace hanops::cuda
