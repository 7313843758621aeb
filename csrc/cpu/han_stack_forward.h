// The forward kernel: a tile of R rows stays in L1 while every layer passes over it.
//
// One pass per layer updates the tile and takes the dot products of the next layer, so that an element is loaded and
// stored once per layer, and w and b are loaded once for R rows. Rows never mix, and a row's sums run in the same
// order in tiles of every height: a row's result does not depend on its neighbours. (Narrow stacks take whole lane
// groups through han_stack_lanes_forward.h, where sums run in another order, and only the rest through here.)
#pragma once

#include <optional>

#include "rest.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Its functions know S where rows are read and written; the passes between have one instance for each A.
template <class A, int R>
struct ForwardTile {
  int64_t row;       // the first of R
  Tile<A, R, 1> h;   // x of the layer to come
  Prefetch to_come;  // the rows of x after this tile, y and the signs of this one
  A alpha2[R];       // -2 w . x of that layer

  ForwardTile(const Stack& stack, int64_t row, A* memory)
      : row(row), h{memory}, to_come(stack.layers - 1, column_vectors<A>(stack.features)) {}

  // What the passes are to fetch: x of the tile from `next_row` on, and the memory of this one's results.
  template <class S>
  void prefetch(const Stack& stack, const Forward& call, int64_t next_row) {
    const int64_t block = R * stack.features * sizeof(S), signs = call.signs.row_stride;
    to_come.add(static_cast<const S*>(call.x.data) + next_row * call.x.row_stride, block);
    to_come.add(static_cast<const S*>(call.y) + row * stack.features, block);
    to_come.add(call.signs.data ? call.signs.data + row * signs : nullptr, R * signs);
  }

  // Reads x and takes the dot products of layer 0. Rows of a matrix are read and written two at a time: more streams,
  // a row apart, fall on the same lines of the cache.
  template <class S>
  HANOPS_NOINLINE void enter(const Stack& stack, const Matrix x) {
    constexpr int kAtOnce = R % 2 == 0 ? 2 : 1;
    const auto tile = h;
    const int64_t first = row;
    const A* w = layer_parameters<A>(stack, 0);
    for (int r0 = 0; r0 < R; r0 += kAtOnce) {
      Dots<A, kAtOnce> dot;
      for_columns<A>(
          stack.features,
          [&](int64_t j, auto columns) HANOPS_LAMBDA {
            const Vec<A> w_j = load(w + 2 * j * kLanes<A>);
            unroll<kAtOnce>([&](auto r) HANOPS_LAMBDA {
              const Vec<A> v = read<S>(x, first + r0 + r, j * kLanes<A>, columns);
              v.store(tile.at(j, r0 + r));
              dot.add(r, w_j, v);
            });
          },
          [&] { dot.fold(); });
      dot.finish(-2, alpha2 + r0);
    }
  }

  // z = x - 2 (w . x) w + b, |z| and its sign bits; then the dot products of the next layer.
  template <bool kSave, bool kPrefetch>
  HANOPS_NOINLINE void pass(const Stack& stack, const Forward& call, int64_t layer, const Keep<A>& keep) {
    const Prefetch prefetch = to_come;
    const auto tile = h;  // copies, which the stores of rows cannot alias
    const A* parameters = layer_parameters<A>(stack, layer);
    const A* next = layer_parameters<A>(stack, layer + 1);
    const Vec<A> keep_all = load(keep.all), keep_tail = load(keep.tail);
    const SignRows signs(stack, call.signs, row, layer);
    const Registers<A, R> a(alpha2);
    Dots<A, R> dot;
    for_columns<A>(
        stack.features,
        [&](int64_t j, auto columns) HANOPS_LAMBDA {
          if constexpr (kPrefetch) prefetch.fetch(j);
          const A* p = parameters + 2 * j * kLanes<A>;
          const Vec<A> w = load(p), b = load(p + kLanes<A>), w_next = load(next + 2 * j * kLanes<A>);
          unroll<R>([&](auto r) HANOPS_LAMBDA {
            const Vec<A> z = vec::fmadd(a[r], w, load(tile.at(j, r))) + b;
            const Vec<A> out = z & (columns == kLanes<A> ? keep_all : keep_tail);
            if constexpr (kSave) write_signs<A>(sign_bits<A>(z), signs.at(r, j * kLanes<A>), columns);
            out.store(tile.at(j, r));
            dot.add(r, w_next, out);
          });
        },
        [&] { dot.fold(); });
    if constexpr (kPrefetch) to_come.end_pass();
    dot.finish(-2, alpha2);
  }

  // The last layer, to y.
  template <class S, bool kSave>
  void leave(const Stack& stack, const Forward& call, const Keep<A>& keep) {
    constexpr int kAtOnce = R % 2 == 0 ? 2 : 1;
    const auto tile = h;
    const int64_t features = stack.features;
    [[maybe_unused]] const int64_t rest_stride = call.rest.row_stride;
    const A* parameters = layer_parameters<A>(stack, stack.layers - 1);
    const Vec<A> keep_all = load(keep.all), keep_tail = load(keep.tail);
    for (int r0 = 0; r0 < R; r0 += kAtOnce) {
      const SignRows signs(stack, call.signs, row + r0, stack.layers - 1);
      S* y = static_cast<S*>(call.y) + (row + r0) * features;
      int8_t* const rest = rest_at<S>(call.rest, row + r0, 0);
      const Registers<A, kAtOnce> a(alpha2 + r0);
      for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
        const A* p = parameters + 2 * j * kLanes<A>;
        const Vec<A> w = load(p), b = load(p + kLanes<A>);
        unroll<kAtOnce>([&](auto r) HANOPS_LAMBDA {
          const Vec<A> z = vec::fmadd(a[r], w, load(tile.at(j, r0 + r))) + b;
          if constexpr (kSave) write_signs<A>(sign_bits<A>(z), signs.at(r, j * kLanes<A>), columns);
          const Vec<A> out = z & (columns == kLanes<A> ? keep_all : keep_tail);
          S* const to = y + r * features + j * kLanes<A>;
          write<S>(out, to, columns);
          if constexpr (kRounds<S>) {
            if (rest) write_rest<S>(out, to, rest + r * rest_stride + j * kLanes<A>, columns);
          }
        });
      });
    }
  }
};

// Tiles go through the layers side by side: the horizontal sums of one hide behind the columns of the next.
template <class S, int R, bool kSave>
void forward_tiles(const Stack& stack, const Forward& call, int64_t row, int64_t tiles, Scratch& scratch) {
  using A = Arithmetic<S>;
  const TilesInCache<A> cache(scratch, Tile<A, R, 1>::size(stack.features), tiles);
  const int64_t side_by_side = cache.count();
  const bool final_abs = stack.abs_layers == stack.layers;
  const Keep<A> keep(stack.abs_layers > 0, stack.features), keep_last(final_abs, stack.features);
  for (int64_t first = 0; first < tiles; first += side_by_side) {
    const int64_t count = std::min(side_by_side, tiles - first);
    std::optional<ForwardTile<A, R>> tile[kMostTiles];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t next = std::min(first + t + side_by_side, tiles - 1);
      tile[t].emplace(stack, row + (first + t) * R, cache.tile(t));
      tile[t]->template prefetch<S>(stack, call, row + next * R);
      tile[t]->template enter<S>(stack, call.x);
    }
    with_flag(stack.features >= kPrefetchedFeatures, [&](auto prefetch) {
      for (int64_t layer = 0; layer < stack.layers - 1; ++layer) {
        for (int64_t t = 0; t < count; ++t) tile[t]->template pass<kSave, prefetch>(stack, call, layer, keep);
      }
    });
    with_flag(kSave && final_abs, [&](auto save_last) {
      for (int64_t t = 0; t < count; ++t) tile[t]->template leave<S, save_last>(stack, call, keep_last);
    });
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
