// The main kernels: rows stay in registers through all layers, and the backward undoes each layer.
#pragma once

#include "han_stack_parameters.cuh"

namespace hanops::cuda {

// One layer of a tile; a holds -2 w . x of this layer before, and of the next one after.
template <class Tile, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void forward_layer(A (&x)[Tile::R][Tile::E], A (&a)[Tile::R], Team<Tile>& team,
                                              const Call& call, const A* layers, int layer, uint8_t* signs,
                                              int64_t sign_rows) {
  const int column = Tile::V * team.lane(), columns = Tile::columns(call), stride = columns / 8;
  const A* w = layers + int64_t(layer) * 2 * columns + column;
  const bool last = layer + 1 == call.layers;
  A dot[Tile::R] = {};
  unsigned bits[Tile::R][Tile::V] = {};
  reflect<Tile, kAbs, kSave>(x, a, dot, bits, w, w + columns, last ? w : w + 2 * columns, stride);
  if (kSave && layer < call.abs_layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      if (team.row(r) < sign_rows) {
        uint8_t* row = signs + (int64_t(team.row(r)) * call.abs_layers + layer) * stride;
        write_signs<Tile>(row, column, bits[r]);
      }
    }
  }
  if (last) return;
  team.sum(dot, A(-2));
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) a[r] = dot[r];
}

// A tile for each team: x in, y and the sign bits out.
template <class Tile, bool kSave>
__global__ void __launch_bounds__(Tile::kThreads, 1) forward(const Call call) {
  using A = typename Tile::A;
  A* memory = shared_memory<A>();
  Team<Tile> team(call.lanes, call.warps, memory);
  const int64_t group = blockIdx.x / call.blocks, block = blockIdx.x % call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * Tile::R : memory);
  const int64_t first = (block * team.count() + team.index()) * Tile::R;
  const int column = Tile::V * team.lane(), stride = Tile::columns(call) / 8;

  A x[Tile::R][Tile::E], a[Tile::R] = {};
  read_rows<Tile>(x, team, call, call.x, group, first, column, stride);
  add_dots<Tile>(x, a, packed.layers + column, stride);
  team.sum(a, A(-2));
  uint8_t* signs = call.signs + (group * call.rows + first) * call.abs_layers * stride;
  const int64_t sign_rows = call.rows - first;
  forward_layer<Tile, false, kSave>(x, a, team, call, packed.layers, 0, signs, sign_rows);
  for (int layer = 1; layer < call.layers; ++layer) {
    forward_layer<Tile, true, kSave>(x, a, team, call, packed.layers, layer, signs, sign_rows);
  }
  if (call.abs_layers == call.layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = fabs(x[r][e]);
    }
  }
  write_rows<Tile>(call.y.data, x, team, call, group, first, column, stride);
}

// Tiles back through all layers. Each team takes every parts-th tile of a group and has partial sums of its own, so
// that an address has one writer and sums have one order. kX: du is needed, and the activations are rebuilt. kSums:
// this kernel sums dw and db; otherwise it keeps the coefficients c and a of every row and layer for
// parameter_gradients.
template <class Tile, bool kX, bool kSums>
__global__ void __launch_bounds__(Tile::kThreads, 1) backward(const Call call) {
  using A = typename Tile::A;
  constexpr int kDots = kX ? 2 * Tile::R : Tile::R;
  A* memory = shared_memory<A>();
  Team<Tile> team(call.lanes, call.warps, memory);
  const int64_t group = blockIdx.x / call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * kDots : memory);
  const int columns = Tile::columns(call), stride = columns / Tile::K, sign_bytes = columns / 8;
  const int column = Tile::V * team.lane();
  const int64_t part = int64_t(blockIdx.x % call.blocks) * team.count() + team.index();
  const int64_t parts = int64_t(call.blocks) * team.count();
  const int64_t part_length = int64_t(call.layers) * 2 * columns;
  A* sums = kSums ? static_cast<A*>(call.partials) + (group * parts + part) * part_length + column : nullptr;
  const SignPlace<Tile> place(column, sign_bytes);

  // All teams of a block take part in every round, the last ones perhaps with no rows.
  for (int64_t round = 0; (round * parts + part - team.index()) * Tile::R < call.rows; ++round) {
    const int64_t first = (round * parts + part) * Tile::R;
    const auto rows = static_cast<unsigned>(max(int64_t{0}, min(call.rows - first, int64_t{Tile::R})));
    const uint8_t* layer_signs = call.signs + (group * call.rows + first) * call.abs_layers * sign_bytes + place.byte;
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    read_rows<Tile>(g, team, call, call.dy, group, first, column, stride);
    if constexpr (kX) read_rows<Tile>(x, team, call, call.y, group, first, column, stride);
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const A* w = packed.layers + int64_t(layer) * 2 * columns + column;
      unsigned signs[Tile::R];
      read_tile_signs<Tile>(signs, team, call, layer_signs + int64_t(layer) * sign_bytes, rows, layer, place);
      A dots[kDots] = {}, c[Tile::R], a[Tile::R];
      undo_abs<Tile, kX>(g, x, signs, dots, w, w + columns, stride);
      team.sum(dots, A(-2));
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        c[r] = dots[r];
        a[r] = kX ? dots[(kX ? Tile::R : 0) + r] : A(0);
      }
      if (!kSums && call.coefficients && team.lane() == 0) {
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {  // the first lane's turn is 0
          if (first + r < call.rows) write_coefficients(call, group * call.rows + first + r, layer, c[r], a[r]);
        }
      }
      undo_reflection<Tile, kX, kSums>(g, x, c, a, w, kSums ? sums + int64_t(layer) * 2 * columns : nullptr, columns,
                                       round == 0, stride);
    }
    if (call.dx) write_rows<Tile>(call.dx, g, team, call, group, first, column, stride);
  }
  if constexpr (Tile::T == 0) {
    if (!call.finish_here) return;
    __syncthreads();
    Crew<A> warp(32, 1, nullptr);
    for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
      finish_layer<A>(warp, call, group, layer, static_cast<const A*>(call.partials), call.parts,
                      packed.layers + int64_t(layer) * 2 * columns, packed.norms + 2 * layer);
    }
  }
}

}  // namespace hanops::cuda
