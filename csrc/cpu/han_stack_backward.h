// The backward kernel: from y, dy and one bit per element back through every layer, rebuilding its input on the way.
//
// H is its own inverse and |.| loses only a sign, so a layer is undone from its output:
//   z = s x_{l+1}    p = z - b    x_l = p - 2 (w . p) w        gz = s g    g = gz - 2 (w . gz) w
// A tile holds p and gz of the layer at hand for R rows. One pass per layer undoes it, adds its share of dw and db,
// applies the signs of the layer below and takes that layer's two dot products.
#pragma once

#include <optional>

#include "rest.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// kDu: p is kept, and dw summed. kDb: db is summed. dx needs neither. A function's parameters are those it depends on,
// so that one instance serves many calls.
template <class A, int R, bool kDu>
struct BackwardTile {
  static constexpr int kPlanes = kDu ? 2 : 1;

  int64_t row;                // the first of R
  Tile<A, R, kPlanes> state;  // gz, and p
  Prefetch to_come;           // the rows after this tile, and dx of this one
  A minus_beta2[R];           // -2 w . gz of the layer at hand
  A alpha2[R];                // -2 w . p, which is 2 w . x_l

  BackwardTile(const Stack& stack, int64_t row, A* memory)
      : row(row), state{memory}, to_come(stack.layers - 1, column_vectors<A>(stack.features)) {}

  // What the passes are to fetch: the rows and bits of the tile from `next_row` on, and the memory of this one's dx.
  template <class S>
  void prefetch(const Stack& stack, const Backward& call, int64_t next_row) {
    const int64_t block = R * stack.features * sizeof(S), signs = call.signs.row_stride;
    to_come.add(static_cast<const S*>(call.dy.data) + next_row * call.dy.row_stride, block);
    to_come.add(kDu ? static_cast<const S*>(call.y.data) + next_row * call.y.row_stride : nullptr, block);
    to_come.add(call.dx ? static_cast<S*>(call.dx) + row * stack.features : nullptr, block);
    to_come.add(call.signs.data + next_row * signs, R * signs);
  }

  // Reads dy and y, and prepares the last layer. Two rows at a time, as in the forward.
  template <class S>
  HANOPS_NOINLINE void enter(const Stack& stack, const Backward& call) {
    constexpr int kAtOnce = R % 2 == 0 ? 2 : 1;
    const int64_t last = stack.layers - 1;
    const bool has_abs = stack.abs_layers == stack.layers;
    const Matrix dy = call.dy, y = call.y;
    [[maybe_unused]] const int64_t rest_stride = call.rest.row_stride;
    const A* parameters = layer_parameters<A>(stack, last);
    const auto tile = state;
    for (int r0 = 0; r0 < R; r0 += kAtOnce) {
      const int64_t first = row + r0;
      const SignRows signs(stack, call.signs, first, last);
      const int8_t* const rest = rest_at<S>(call.rest, first, 0);
      Dots<A, kAtOnce> dot_gz, dot_p;
      const auto fold = [&] {
        dot_gz.fold();
        if constexpr (kDu) dot_p.fold();
      };
      for_columns<A>(
          stack.features,
          [&](int64_t j, auto columns) HANOPS_LAMBDA {
            const A* q = parameters + 2 * j * kLanes<A>;
            const Vec<A> w = load(q), b = load(q + kLanes<A>);
            unroll<kAtOnce>([&](auto r) HANOPS_LAMBDA {
              const SignWord<A> negative =
                  has_abs ? read_signs<A>(signs.at(r, j * kLanes<A>), columns) : SignWord<A>(0);
              const Vec<A> gz = flip<A>(read<S>(dy, first + r, j * kLanes<A>, columns), negative);
              gz.store(tile.at(j, r0 + r));
              dot_gz.add(r, w, gz);
              if constexpr (kDu) {
                Vec<A> out = read<S>(y, first + r, j * kLanes<A>, columns);
                if constexpr (kRounds<S>) {
                  if (rest) out = with_rest<S>(out, rest + r * rest_stride + j * kLanes<A>, columns);
                }
                const Vec<A> p = flip<A>(out, negative) - b;
                p.store(tile.at(j, r0 + r, 1));
                dot_p.add(r, w, p);
              }
            });
          },
          fold);
      dot_gz.finish(-2, minus_beta2 + r0);
      if constexpr (kDu) {
        dot_p.finish(-2, alpha2 + r0);
        for (int r = r0; r < r0 + kAtOnce; ++r) {
          if (minus_beta2[r] == 0) silence(stack, r);
        }
      }
    }
  }

  // A row whose dy is 0 everywhere goes on from p = 0, and so adds exactly 0 to dw, whatever its y holds.
  HANOPS_NOINLINE void silence(const Stack& stack, int r) {
    const auto tile = state;
    const int64_t vectors = column_vectors<A>(stack.features);
    Vec<A> sizes(A(0));
    for (int64_t j = 0; j < vectors; ++j) sizes = sizes + load(tile.at(j, r)).abs();
    if (sum<A>(sizes) != 0) return;
    for (int64_t j = 0; j < vectors; ++j) Vec<A>(A(0)).store(tile.at(j, r, 1));
    alpha2[r] = 0;
  }

  // Undoes `layer` and prepares the one below.
  template <bool kDb, bool kPrefetch>
  HANOPS_NOINLINE void pass(const Stack& stack, const Backward& call, int64_t layer, A* partials) {
    const A* parameters = layer_parameters<A>(stack, layer);
    const A* below = layer_parameters<A>(stack, layer - 1);
    A* partial = partials + layer * layer_size<A>(stack.features);
    const SignRows signs(stack, call.signs, row, layer - 1);
    const Prefetch prefetch = to_come;
    const auto tile = state;
    const Registers<A, R> c(minus_beta2), a(alpha2);
    Dots<A, R> dot_gz, dot_p;
    const auto fold = [&] {
      dot_gz.fold();
      if constexpr (kDu) dot_p.fold();
    };
    for_columns<A>(
        stack.features,
        [&](int64_t j, auto columns) HANOPS_LAMBDA {
          const int64_t pair = 2 * j * kLanes<A>;
          if constexpr (kPrefetch) prefetch.fetch(j);
          const Vec<A> w = load(parameters + pair), w_below = load(below + pair),
                       b_below = load(below + pair + kLanes<A>);
          Vec<A> dw(A(0)), db(A(0));  // of this tile: a short chain from one tile to the next
          unroll<R>([&](auto r) HANOPS_LAMBDA {
            const Vec<A> gz = load(tile.at(j, r));
            if constexpr (kDb) db = db + gz;
            const SignWord<A> negative = read_signs<A>(signs.at(r, j * kLanes<A>), columns);
            const Vec<A> gz_below = flip<A>(vec::fmadd(c[r], w, gz), negative);
            gz_below.store(tile.at(j, r));
            dot_gz.add(r, w_below, gz_below);
            if constexpr (kDu) {
              const Vec<A> x = vec::fmadd(a[r], w, load(tile.at(j, r, 1)));
              dw = nmadd<A>(a[r], gz, r == 0 ? c[r] * x : vec::fmadd(c[r], x, dw));
              const Vec<A> p_below = flip<A>(x, negative) - b_below;
              p_below.store(tile.at(j, r, 1));
              dot_p.add(r, w_below, p_below);
            }
          });
          if constexpr (kDu) (load(partial + pair) + dw).store(partial + pair);
          if constexpr (kDb) (load(partial + pair + kLanes<A>) + db).store(partial + pair + kLanes<A>);
        },
        fold);
    if constexpr (kPrefetch) to_come.end_pass();
    dot_gz.finish(-2, minus_beta2);
    if constexpr (kDu) dot_p.finish(-2, alpha2);
  }

  // Undoes layer 0, to dx.
  template <class S, bool kDb>
  void leave(const Stack& stack, const Backward& call, A* partials) {
    const int64_t features = stack.features;
    const A* parameters = layer_parameters<A>(stack, 0);
    S* dx = call.dx ? static_cast<S*>(call.dx) + row * features : nullptr;
    const auto tile = state;
    const Registers<A, R> c(minus_beta2), a(alpha2);
    for_columns<A>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
      const int64_t pair = 2 * j * kLanes<A>;
      const Vec<A> w = load(parameters + pair);
      Vec<A> dw, db;
      unroll<R>([&](auto r) HANOPS_LAMBDA {
        const Vec<A> gz = load(tile.at(j, r));
        if constexpr (kDb) db = r == 0 ? gz : db + gz;
        if constexpr (kDu) {
          const Vec<A> x = vec::fmadd(a[r], w, load(tile.at(j, r, 1)));
          dw = nmadd<A>(a[r], gz, r == 0 ? c[r] * x : vec::fmadd(c[r], x, dw));
        }
        if (dx) write<S>(vec::fmadd(c[r], w, gz), dx + r * features + j * kLanes<A>, columns);
      });
      if constexpr (kDu) (load(partials + pair) + dw).store(partials + pair);
      if constexpr (kDb) (load(partials + pair + kLanes<A>) + db).store(partials + pair + kLanes<A>);
    });
  }
};

template <class S, int R, bool kDu, bool kDb>
void backward_tiles(const Stack& stack, const Backward& call, int64_t row, int64_t tiles, Arithmetic<S>* partials,
                    Scratch& scratch) {
  using A = Arithmetic<S>;
  using State = BackwardTile<A, R, kDu>;
  const TilesInCache<A> cache(scratch, decltype(State::state)::size(stack.features), tiles);
  const int64_t side_by_side = cache.count();
  for (int64_t first = 0; first < tiles; first += side_by_side) {
    const int64_t count = std::min(side_by_side, tiles - first);
    std::optional<State> tile[kMostTiles];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t next = std::min(first + t + side_by_side, tiles - 1);
      tile[t].emplace(stack, row + (first + t) * R, cache.tile(t));
      tile[t]->template prefetch<S>(stack, call, row + next * R);
      tile[t]->template enter<S>(stack, call);
    }
    with_flag(stack.features >= kPrefetchedFeatures, [&](auto prefetch) {
      for (int64_t layer = stack.layers - 1; layer > 0; --layer) {
        for (int64_t t = 0; t < count; ++t) tile[t]->template pass<kDb, prefetch>(stack, call, layer, partials);
      }
    });
    for (int64_t t = 0; t < count; ++t) tile[t]->template leave<S, kDb>(stack, call, partials);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
