// The main kernels: rows stay in registers through all layers, and the backward undoes each layer.
#pragma once

#include "han_stack_parameters.cuh"

namespace hanops::cuda {

// One layer of a tile; a holds -2 w . x of this layer before, and of the next one after, and w is this layer's, then
// the next one's. Sign bits of the registers in `valid` go to `signs`.
template <class Tile, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void forward_layer(A (&x)[Tile::R][Tile::E], A (&w)[Tile::E], A (&a)[Tile::R],
                                              Team<Tile>& team, const A* parameters, bool last, int columns,
                                              uint8_t* signs, unsigned sign_stride, unsigned valid) {
  A dot[Tile::R] = {};
  unsigned bits[Tile::R][Tile::V] = {};
  reflect<Tile, kAbs, kSave>(x, w, a, dot, bits, parameters + columns, last ? parameters : parameters + 2 * columns,
                             columns / 8);
  if (kSave) write_tile_signs<Tile>(signs, team, sign_stride, valid, bits);
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
  Team<Tile> team(call.lanes, call.warps, memory, Tile::R);
  const int64_t group = blockIdx.x / call.blocks, block = blockIdx.x % call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * Tile::R : memory);
  const int64_t index = block * team.count() + team.index();
  const TileRows<Tile> tile(index, call.rows);
  const int columns = Tile::columns(call), column = Tile::V * team.lane(), stride = columns / 8;
  const unsigned own = pinned(team.registers(tile.own));

  A x[Tile::R][Tile::E], w[Tile::E], a[Tile::R] = {};
  read_rows<Tile>(x, team, call, call.x, group, tile.first, column, stride);
  prefetch_rows<Tile>(team, call, call.x, group, index + call.ahead);
  const A* parameters = packed.layers + column;
  read_parameter<Tile>(w, parameters, stride);
  add_dots<Tile>(x, a, w);
  team.sum(a, A(-2));
  uint8_t* signs = call.signs + (group * call.rows + tile.first) * call.abs_layers * stride + column;
  const unsigned sign_stride = pinned(call.sign_stride);
  forward_layer<Tile, false, kSave>(x, w, a, team, parameters, call.layers == 1, columns, signs, sign_stride,
                                    call.abs_layers > 0 ? own : 0);
  for (int layer = 1; layer < call.layers; ++layer) {
    parameters += 2 * columns;
    signs += stride;
    forward_layer<Tile, true, kSave>(x, w, a, team, parameters, layer + 1 == call.layers, columns, signs, sign_stride,
                                     layer < call.abs_layers ? own : 0);
  }
  if (call.abs_layers == call.layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = fabs(x[r][e]);
    }
  }
  write_rows<Tile>(call.y.data, x, team, call, group, tile.first, own, column, stride);
}

// Whether a layer's w and b are read a layer ahead. Before sm_90, ptxas has no registers for them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kReadsAhead = false;
#else
constexpr bool kReadsAhead = true;
#endif

// Tiles back through all layers. Each team takes every parts-th tile of a group and has partial sums of its own, so
// that an address has one writer and sums have one order. kX: du is needed, and the activations are rebuilt. kSums:
// this kernel sums dw and db; otherwise it keeps the coefficients c and a of every row and layer for
// parameter_gradients.
template <class Tile, bool kX, bool kSums>
__global__ void __launch_bounds__(Tile::kThreads, 1) backward(const Call call) {
  using A = typename Tile::A;
  constexpr int kDots = kX ? 2 * Tile::R : Tile::R;
  constexpr bool kAhead =
      kReadsAhead && Tile::K == 1;  // few columns: there are registers for the w and b of a layer ahead
  A* memory = shared_memory<A>();
  Team<Tile> team(call.lanes, call.warps, memory, kDots);
  const int64_t group = blockIdx.x / call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * kDots : memory);
  const int columns = Tile::columns(call), chunk = columns / Tile::K, sign_bytes = columns / 8;
  const int column = Tile::V * team.lane();
  const int64_t part = int64_t(blockIdx.x % call.blocks) * team.count() + team.index();
  const int64_t parts = int64_t(call.blocks) * team.count();
  A* block_sums = memory + (team.warps() > 1 ? 2 * team.warps() * kDots : 0) +
                  size_t(team.index()) * call.block_layers * 2 * columns;
  PartialSums<Tile> sums(call, group, part, column, chunk, block_sums);
  const SignPlace<Tile> place(column, sign_bytes);
  const unsigned sign_stride = pinned(call.sign_stride);
  // Where there are no bits, what is read ahead is not used, but must be there.
  const uint8_t* sign_memory = call.abs_layers > 0 ? call.signs : reinterpret_cast<const uint8_t*>(packed.layers);

  // All teams of a block take part in every round, the last ones perhaps with no rows.
  int64_t round = 0;
  for (; (round * parts + part - team.index()) * Tile::R < call.rows; ++round) {
    if (kSums) sums.template begin<kX>(round);
    const TileRows<Tile> tile(round * parts + part, call.rows);
    const unsigned own = team.registers(tile.own);
    const int64_t sign_row = (group * call.rows + tile.first) * call.abs_layers + call.abs_layers - 1;
    const uint8_t* layer_signs = sign_memory + (call.abs_layers > 0 ? sign_row * sign_bytes : 0) + place.byte;
    unsigned signs[Tile::R] = {};
    if (call.abs_layers == call.layers) {
      read_tile_signs<Tile>(signs, team, layer_signs, sign_stride);
      layer_signs -= call.layers > 1 ? sign_bytes : 0;
    }
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    read_rows<Tile>(g, team, call, call.dy, group, tile.first, column, chunk);
    if constexpr (kX) read_rows<Tile>(x, team, call, call.y, group, tile.first, column, chunk);
    clear_rows<Tile>(g, own);
    if constexpr (kX) {
      const unsigned live = nonzero_rows<Tile>(g, team);  // a row whose dy is 0 adds 0, whatever its y
      clear_rows<Tile>(x, live);
      if (!kSums && call.live && team.lane() == 0) {
        uint8_t* flags = call.live + group * call.rows + tile.first;
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {
          if (own >> r & 1) write(flags + r, static_cast<uint8_t>(live >> r & 1));
        }
      }
    }
    const A* parameters = packed.layers + int64_t(call.layers - 1) * 2 * columns + column;
    A w[Tile::E], b[Tile::E];
    if (kAhead) {
      read_parameter<Tile>(w, parameters, chunk);
      if (kX) read_parameter<Tile>(b, parameters + columns, chunk);
    }
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const int stride = Tile::T ? chunk : pinned(chunk);  // a stride of the call's makes no addresses to keep
      A dots[kDots] = {}, c[Tile::R], a[Tile::R], w_next[Tile::E], b_next[Tile::E];
      if (!kAhead) {
        parameters = packed.layers + int64_t(layer) * 2 * columns + column;
        read_parameter<Tile>(w, parameters, stride);
        if (kX) read_parameter<Tile>(b, parameters + columns, stride);
      }
      undo_abs<Tile, kX>(g, x, signs, place.shift, dots, w, b);
      Sums<Tile> layer_sums, before;
      if (kSums && Tile::R > 1) sums.template read<kX>(before, layer);
      read_tile_signs<Tile>(signs, team, layer_signs, sign_stride);
      layer_signs -= layer > 1 ? sign_bytes : 0;
      if (kAhead) {
        parameters -= layer > 0 ? 2 * columns : 0;
        read_parameter<Tile>(w_next, parameters, stride);
        if (kX) read_parameter<Tile>(b_next, parameters + columns, stride);
      }
      team.sum(dots, A(-2));
      if (!kAhead) read_parameter<Tile>(w, parameters, stride);
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        c[r] = dots[r];
        a[r] = kX ? dots[(kX ? Tile::R : 0) + r] : A(0);
      }
      if (!kSums && call.coefficients && team.lane() == 0) {
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {  // the first lane's turn is 0
          const int64_t row = group * call.rows + tile.first + r;
          if (own >> r & 1) write_coefficients(call, row, layer, c[r], a[r]);
        }
      }
      undo_reflection<Tile, kX, kSums>(g, x, c, a, w, layer_sums);
      if (kSums) sums.template write<kX>(layer_sums, before, layer);
      if (kAhead) {
#pragma unroll
        for (int e = 0; e < Tile::E; ++e) w[e] = w_next[e], b[e] = b_next[e];
      }
    }
    if (call.dx) write_rows<Tile>(call.dx, g, team, call, group, tile.first, own, column, chunk);
  }
  if (kSums) sums.template end<kX>(round);
  if constexpr (Tile::T == 0) {
    if (!call.finish_here) return;
    __syncthreads();
    Crew<A> warp(32, 1, nullptr, 0);
    for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
      finish_layer<A>(warp, call, group, layer, static_cast<const A*>(call.partials), call.parts,
                      packed.layers + int64_t(layer) * 2 * columns, packed.norms + 2 * layer);
    }
  }
}

}  // namespace hanops::cuda
