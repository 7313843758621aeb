// du and db of rows too wide for the main kernel's sums: with the coefficients at hand, columns do not meet.
#pragma once

#include "han_stack_layer.cuh"
#include "partial_sums.cuh"
#include "rest.cuh"

namespace hanops::cuda {

template <class A>
using Slice = Tile<A, std::is_same_v<A, double> ? 4 : 16, 1, 4, 0, 0>;

// A warp takes 128 columns of every parts-th tile of a group.
template <class A, bool kX>
__global__ void __launch_bounds__(kGradientsThreads, 1) parameter_gradients(const BackwardCall call) {
  let_next_kernel_start();
  wait_for_kernels_before();
  using Tile = Slice<A>;
  ThreadGroup<Tile> threads(32, 1, nullptr, 0);
  const int slices = call.columns / (32 * Tile::V), sign_bytes = call.sign_bytes;
  const int column = (blockIdx.x % slices * 32 + threads.lane()) * Tile::V;
  const int64_t group = blockIdx.x / slices / call.blocks, block = blockIdx.x / slices % call.blocks;
  const int64_t part = block * threads.count() + threads.index(), parts = int64_t(call.blocks) * threads.count();
  const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns + column;
  const SignPlace<Tile> place(column, sign_bytes);
  PartialSums<Tile> sums(call, group, part, column, 0, nullptr);

  int64_t round = 0;
  for (int64_t tile = part; tile == part || tile * Tile::R < call.rows; tile += parts, ++round) {
    sums.template begin<kX>(round);
    const int64_t first = tile * Tile::R, rows = max(int64_t{0}, min(call.rows - first, int64_t{Tile::R}));
    const unsigned valid = (1u << rows) - 1;
    unsigned live = 0;
    if (kX) {
      uint8_t flags[Tile::R] = {};
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        if (r < rows) flags[r] = read(call.live + group * call.rows + first + r);
      }
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) live |= unsigned(flags[r]) << r;
    }
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    with_type<A>(call.type, [&](auto type) {
      using S = decltype(type);
      const auto read_from = [&](auto& to, const Rows& rows, unsigned there, auto beside) {
        const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride + first * rows.row_stride;
        const auto row = [](int r) { return unsigned(r); };
        read_elements<Tile, S, false>(to, data, rows.row_stride, row, there, column, call.features, 0,
                                      rows.vector >= Tile::V, beside);
      };
      read_from(g, call.dy, valid, Nothing());
      if constexpr (kX) read_from(x, call.y, live, Rest<Tile, S>(threads, call, group, first, live, column, 0));
    });
    const int64_t row = group * call.rows + first;
    const uint8_t* layer_signs = call.signs + row * call.planes * sign_bytes + place.byte;
    const A* coefficients = static_cast<const A*>(call.coefficients) + row * call.layers * 2;
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const A* parameters = layers + int64_t(layer) * 2 * call.columns;
      A unused[kX ? 2 * Tile::R : Tile::R] = {}, c[Tile::R], a[Tile::R];
      unsigned signs[Tile::R] = {};
      Sums<Tile> layer_sums, before;
      sums.template read<kX>(before, layer);
      // Addresses are made anew for each layer: sixteen rows' would take all registers.
      const unsigned sign_stride = pinned(call.sign_stride), pair_stride = pinned(2 * call.layers);
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        A pair[2] = {};
        if (valid >> r & 1) {
          if (layer < call.abs_layers) {
            signs[r] = read_signs<Tile>(layer_signs + layer * sign_bytes + size_t(r) * sign_stride);
          }
          read_vector(pair, coefficients + 2 * layer + size_t(r) * pair_stride);
        }
        c[r] = pair[0];
        a[r] = pair[1];
      }
      A w[Tile::E], b[Tile::E];
      read_parameter<Tile>(w, parameters, 0);
      if (kX) read_parameter<Tile>(b, parameters + call.columns, 0);
      undo_abs<Tile, kX>(g, x, signs, place.shift, unused, w, b);
      undo_reflection<Tile, kX, true>(g, x, c, a, w, layer_sums);
      sums.template write<kX>(layer_sums, before, layer);
    }
  }
  sums.template end<kX>(round);
}

}  // namespace hanops::cuda
