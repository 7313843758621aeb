// The backward's main kernel: rows stay in registers while every layer is undone, from the output and the sign bits.
#pragma once

#include "han_stack_layer.cuh"
#include "han_stack_parameters.cuh"
#include "partial_sums.cuh"
#include "rest.cuh"

namespace hanops::cuda {

// Whether a layer's w and b are read a layer ahead. Before sm_90, ptxas has no registers for them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kReadsAhead = false;
#else
constexpr bool kReadsAhead = true;
#endif

// Tiles back through all layers. Each thread group takes every parts-th tile of a group and has partial sums of its
// own, so that an address has one writer and sums have one order. kX: du is needed, and the activations are rebuilt.
// kSums: this kernel sums dw and db; otherwise it keeps the coefficients c and a of every row and layer for
// parameter_gradients.
template <class Tile, bool kX, bool kSums>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) backward(const BackwardCall call) {
  using A = typename Tile::A;
  constexpr int kDots = kX ? 2 * Tile::R : Tile::R;
  // Few columns: there are registers for the w and b of a layer ahead.
  constexpr bool kAhead = kReadsAhead && Tile::K == 1 && !Tile::kSmall;
  // Whether dy and y are read at once. float64 has no registers for it, nor, before sm_90, have two chunks of few
  // layers; in other wide tiles the layers' loop suffers.
  constexpr bool kTogether =
      std::is_same_v<A, float> && ((Tile::K == 1 && Tile::W <= 2) || (Tile::kSmall && (kReadsAhead || Tile::K == 1)));
  let_next_kernel_start();
  A* memory = shared_memory<A>();
  ThreadGroup<Tile> threads(call.lanes, call.warps, memory, kDots);
  const int64_t group = blockIdx.x / call.blocks;
  const Packed<Tile> packed(call, group, threads.warps() > 1 ? memory + 2 * threads.warps() * kDots : memory);
  const int columns = Tile::columns(call), chunk = columns / Tile::K, sign_bytes = columns / 8;
  const int column = Tile::V * threads.lane();
  const int64_t part = int64_t(blockIdx.x % call.blocks) * threads.count() + threads.index();
  const int64_t parts = int64_t(call.blocks) * threads.count();
  A* block_sums = memory + (threads.warps() > 1 ? 2 * threads.warps() * kDots : 0) +
                  size_t(threads.index()) * call.block_layers * 2 * columns;
  PartialSums<Tile> sums(call, group, part, column, chunk, block_sums);
  const SignPlace<Tile> place(column, sign_bytes);
  // Before sm_90, ptxas has no registers for a branch around the reads of sign bits. Where a stack has none, they then
  // read other memory, the same again and again, and a mask hides it.
  constexpr bool kBranches = kReadsAhead || std::is_same_v<A, double>;
  const bool has_bits = kBranches || call.abs_layers > 0;
  const unsigned sign_stride = kBranches ? pinned(call.sign_stride) : has_bits ? call.sign_stride : 0;
  const unsigned mask = has_bits ? kHighestBit : 0;
  const int sign_step = has_bits ? sign_bytes : 0;
  // Memory that is there, also where nothing is read: otherwise float64's one-row kernel spills.
  const uint8_t* sign_memory = call.abs_layers > 0 ? call.signs : reinterpret_cast<const uint8_t*>(packed.layers);

  // All thread groups of a block take part in every round, the last ones perhaps with no rows.
  // With sums the round is needed and the tile follows from it, without them the tile alone: registers are few.
  int64_t round = 0, next = part;
  const auto index = [&] { return kSums ? round * parts + part : next; };
  for (; (index() - threads.index()) * Tile::R < call.rows; ++round, next += parts) {
    if (kSums) sums.template begin<kX>(round);
    const TileRows<Tile> tile(index(), call.rows);
    const unsigned own = threads.registers(tile.own);
    const int64_t sign_row = (group * call.rows + tile.first) * call.planes + call.abs_layers - 1;
    const uint8_t* layer_signs = sign_memory + (call.abs_layers > 0 ? sign_row * sign_bytes : 0) + place.byte;
    unsigned signs[Tile::R] = {};
    if (call.abs_layers == call.layers) {
      read_tile_signs<Tile>(signs, threads, layer_signs, sign_stride);
      layer_signs -= call.layers > 1 ? sign_step : 0;
    }
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    if constexpr (kX && kTogether) {
      read_gradient_and_output<Tile>(g, x, threads, call, group, tile.first, column, chunk);
    } else {
      read_rows<Tile>(g, threads, call, call.dy, group, tile.first, column, chunk);
      if constexpr (kX) read_output<Tile>(x, threads, call, group, tile.first, column, chunk);
    }
    if (index() == part) wait_for_kernels_before();
    clear_rows<Tile>(g, own);
    if constexpr (kX) {
      const unsigned live = nonzero_rows<Tile>(g, threads);  // a row whose dy is 0 adds 0, whatever its y
      clear_rows<Tile>(x, live);
      if (!kSums && call.by_coefficients && threads.lane() == 0) {
        uint8_t* flags = call.live + group * call.rows + tile.first;
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {
          if (own >> r & 1) write(flags + r, static_cast<uint8_t>(live >> r & 1));
        }
      }
    }
    if constexpr (Tile::kSmall) {
      prefetch_rows<Tile>(threads, call, call.dy, group, index() + call.ahead);
      if constexpr (kX) prefetch_rows<Tile>(threads, call, call.y, group, index() + call.ahead);
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
      undo_abs<Tile, kX>(g, x, signs, place.shift, dots, w, b, mask);
      Sums<Tile> layer_sums, before;
      if (kSums && !Tile::kLateSums) sums.template read<kX>(before, layer);
      if (!kBranches || call.abs_layers > 0) read_tile_signs<Tile>(signs, threads, layer_signs, sign_stride);
      layer_signs -= layer > 1 ? sign_step : 0;
      if (kAhead) {
        parameters -= layer > 0 ? 2 * columns : 0;
        read_parameter<Tile>(w_next, parameters, stride);
        if (kX) read_parameter<Tile>(b_next, parameters + columns, stride);
      }
      threads.sum(dots, A(-2));
      if (!kAhead) read_parameter<Tile>(w, parameters, stride);
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        c[r] = dots[r];
        a[r] = kX ? dots[(kX ? Tile::R : 0) + r] : A(0);
      }
      if (!kSums && call.by_coefficients && threads.lane() == 0) {
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {  // the first lane's swizzle is 0
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
    if (call.needs_dx) write_rows<Tile>(call.dx, g, threads, call, group, tile.first, own, column, chunk);
  }
  if (kSums) sums.template end<kX>(round);
  if constexpr (Tile::T == 0) {
    if (!call.finish_here) return;
    __syncthreads();
    LayerThreads<A> warp(32, 1, nullptr, 0);
    for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
      finish_layer<A>(warp, call, group, layer, static_cast<const A*>(call.partials), call.parts,
                      packed.layers + int64_t(layer) * 2 * columns, packed.norms + 2 * layer);
    }
  }
}

}  // namespace hanops::cuda
