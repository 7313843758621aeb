// The backward kernel with rows in the lanes of a vector, narrow stacks and positions; the steps are those of
// han_stack_backward.h.
#pragma once

#include "han_stack_lanes.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// The columns of one sign word in a pass. kUndo: undoes a layer, leaving x and g. kPrepare: applies signs and bias of
// the layer below, and takes its dot products.
template <int G, bool kDu, bool kDb, bool kUndo, bool kPrepare>
struct BackwardWord {
  LaneTile<G, kDu ? 2 : 1> tile;
  Registers<float, G> c{}, a{};                         // -2 w . gz and -2 w . p of the layer
  Dots<float, G> dot_gz{}, dot_p{};                     // of the layer below, so far
  Registers<float, G> bits{};                           // of the layer below, those of the column at hand on top
  const float *parameters = nullptr, *below = nullptr;  // of the layer and of the one below, from the word's columns on
  float *dw = nullptr, *db = nullptr;                   // of the tile and the word

  // A column of the word, whose first one is column `first` of the tile.
  HANOPS_INLINE void visit(int64_t column, int64_t first) {
    const int64_t k = parameter_index(column);
    const Vec<float> w(kUndo ? parameters[k] : 0.f), w_below(kPrepare ? below[k] : 0.f),
        b_below(kPrepare ? below[k + kGroupRows] : 0.f);
    Vec<float> dw_c, db_c;
    unroll<G>([&](auto g) HANOPS_LAMBDA {
      float* at = tile.at(first + column, g);
      const Vec<float> gz = load(at);
      Vec<float> next = kUndo ? vec::fmadd(c[g], w, gz) : gz;
      if constexpr (kUndo && kDb) db_c = g == 0 ? gz : db_c + gz;
      if constexpr (kPrepare) {
        next = flip_by_top(next, bits[g]);
        dot_gz.add(g, w_below, next);
      }
      next.store(at);
      if constexpr (kDu) {
        Vec<float> x = load(at + kGroupRows);
        if constexpr (kUndo) {
          x = vec::fmadd(a[g], w, x);
          dw_c = nmadd<float>(a[g], gz, g == 0 ? c[g] * x : vec::fmadd(c[g], x, dw_c));
        }
        if constexpr (kPrepare) {
          const Vec<float> p_below = flip_by_top(x, bits[g]) - b_below;
          dot_p.add(g, w_below, p_below);
          p_below.store(at + kGroupRows);
        }
      }
      if constexpr (kPrepare) bits[g] = shift_words(bits[g], 1);
    });
    if constexpr (kUndo && kDu) dw_c.store(dw + column * kGroupRows);
    if constexpr (kUndo && kDb) db_c.store(db + column * kGroupRows);
  }
};

template <int G, bool kDu>
struct BackwardLanes {
  static constexpr int kPlanes = kDu ? 2 : 1;

  LaneTile<G, kPlanes> state;  // gz, and p
  LaneSigns<G, const uint8_t> signs;
  LanePrefetch& to_come;                          // dy, y and signs of the next tile, dx of this one
  float* sums;                                    // (word's columns, lanes): dw of the tile, then db
  alignas(64) float minus_beta2[G * kGroupRows];  // -2 w . gz of the layer at hand
  alignas(64) float alpha2[G * kGroupRows];       // -2 w . p, which is 2 w . x_l

  // All layers. The hooks are called before the words of the first pass, and after those of the last one.
  template <bool kDb>
  HANOPS_NOINLINE void run(const Stack& stack, float* partials, const WordHook& before, const WordHook& after) {
    const int64_t last = stack.layers - 1;
    signs.fetch(last);
    pass<kDb, false, true>(stack, last + 1, partials, before);
    if constexpr (kDu) silence(stack.features);
    for (int64_t layer = last; layer > 0; --layer) {
      if (signs.ends(layer - 1)) signs.fetch(layer - 1);
      pass<kDb, true, true>(stack, layer, partials);
    }
    pass<kDb, true, false>(stack, 0, partials, after);
  }

  // Undoes `layer`, and prepares the one below: see BackwardWord. The first pass calls the hook before it takes a word,
  // the last one after it.
  template <bool kDb, bool kUndo, bool kPrepare>
  HANOPS_NOINLINE void pass(const Stack& stack, int64_t layer, float* partials, const WordHook& hook = {}) {
    float* const words = signs.of(layer - 1);
    float* const partial = partials + layer * layer_size<float>(stack.features);
    BackwardWord<G, kDu, kDb, kUndo, kPrepare> at{state};
    at.dw = sums;
    at.db = sums + kWordColumns * kGroupRows;
    if constexpr (kUndo) at.c = Registers<float, G>::load(minus_beta2);
    if constexpr (kUndo && kDu) at.a = Registers<float, G>::load(alpha2);
    for (int64_t word = 0; word * kWordColumns < stack.features; ++word) {
      const int64_t first = word * kWordColumns, columns = std::min(kWordColumns, stack.features - first);
      at.parameters = layer_parameters<float>(stack, kUndo ? layer : layer - 1) + 2 * first;
      at.below = layer_parameters<float>(stack, kPrepare ? layer - 1 : layer) + 2 * first;
      if constexpr (!kUndo) hook(first, columns);
      to_come.fetch();
      if constexpr (kPrepare) {
        if (starts_block(first)) {
          at.dot_gz.fold();
          if constexpr (kDu) at.dot_p.fold();
        }
        unroll<G>([&](auto g) HANOPS_LAMBDA {
          at.bits[g] = shift_words(load(signs.at(words, word, g)), kWordColumns - columns);
        });
      }
      for (int64_t column = columns - 1; column >= 0; --column) at.visit(column, first);
      if constexpr (kUndo) add_sums<kDb>(at.dw, at.db, columns, partial + 2 * first);
      if constexpr (!kPrepare) hook(first, columns);
    }
    if constexpr (kPrepare) (at.dot_gz.total() * Vec<float>(-2.f)).store(minus_beta2);
    if constexpr (kPrepare && kDu) (at.dot_p.total() * Vec<float>(-2.f)).store(alpha2);
  }

  // Adds a word's dw and db of the tile, summed over lanes, to a layer's partial sums, of which `partial` are the
  // word's.
  template <bool kDb>
  HANOPS_INLINE static void add_sums(float* dw, float* db, int64_t columns, float* partial) {
    if constexpr (kDu || kDb) {
      for (int64_t c = columns; c % kGroupRows != 0; ++c) {
        if constexpr (kDu) Vec<float>(0.f).store(dw + c * kGroupRows);
        if constexpr (kDb) Vec<float>(0.f).store(db + c * kGroupRows);
      }
      for (int64_t j = 0; j < columns; j += kGroupRows) {
        if constexpr (kDu) (load(partial + 2 * j) + square_sums(dw + j * kGroupRows)).store(partial + 2 * j);
        if constexpr (kDb) {
          float* q = partial + 2 * j + kGroupRows;
          (load(q) + square_sums(db + j * kGroupRows)).store(q);
        }
      }
    }
  }

  // A row whose dy is 0 everywhere goes on from p = 0, and so adds exactly 0 to dw, whatever its y holds.
  void silence(int64_t features) {
    for (int g = 0; g < G; ++g) {
      if (load(minus_beta2 + g * kGroupRows).zero_mask() != 0) silence(features, g);
    }
  }

  HANOPS_NOINLINE void silence(int64_t features, int g) {
    const auto tile = state;
    const Vec<float> zero(0.f);
    Vec<float> sizes(0.f);
    for (int64_t c = 0; c < features; ++c) sizes = sizes + load(tile.at(c, g)).abs();
    const Vec<float> silent = sizes == zero;
    const auto clear = [&](float* p) HANOPS_LAMBDA { Vec<float>::blendv(load(p), zero, silent).store(p); };
    for (int64_t c = 0; c < features; ++c) clear(tile.at(c, g, 1));
    clear(alpha2 + g * kGroupRows);
  }
};

// Rows [row, end), as forward_lanes.
template <class S>
HANOPS_NOINLINE void backward_lanes(const Stack& stack, const Backward& call, int64_t groups, int64_t row, int64_t end,
                                    float* partials, Scratch& scratch) {
  const int64_t features = stack.features;
  const bool du = call.y.data != nullptr;
  const int planes = du ? 2 : 1;
  const int64_t state_size = features * groups * planes * kGroupRows, words_size = lane_signs_size(stack, groups);
  const int64_t sums_size = du || call.needs_db ? 2 * kWordColumns * kGroupRows : 0;
  float* memory = static_cast<float*>(scratch.reserve((state_size + words_size + sums_size) * sizeof(float)));
  float *words = memory + state_size, *sums = words + words_size;
  const LanePlane gz(memory, groups, planes, 0), p(memory, groups, planes, 1);
  LanePrefetch to_come(stack, groups, stack.layers + 1);
  const auto run = [&](const WordHook& before, const WordHook& after) {
    with_constant<kMostLaneGroups>(groups, [&](auto g) {
      with_flag(du, [&](auto needs_du) {
        BackwardLanes<g, needs_du> tile{{memory}, {stack, call.signs, row, end, words}, to_come, sums, {}, {}};
        with_flag(call.needs_db, [&](auto db) { tile.template run<db>(stack, partials, before, after); });
      });
    });
  };
  if (stack.inner == 0) {
    read_rows<S>(gz, call.dy, {}, row, features);
    if (du) read_rows<S>(p, call.y, call.rest, row, features);
    run({}, {});
    if (call.dx) write_rows<S>(gz, static_cast<S*>(call.dx), {}, row, features);
  } else {
    const Matrix dx = contiguous(stack, call.dx);
    to_come.add(call.dy, sizeof(S), row + groups * kGroupRows);
    if (du) to_come.add(call.y, sizeof(S), row + groups * kGroupRows);
    if (call.dx) to_come.add(dx, sizeof(S), row);
    to_come.add(word_matrix(stack, call.signs), sizeof(float), row + groups * kGroupRows, word_columns(stack));
    const TileArray<const S> from_dy(stack, call.dy, {}, groups, row, end);
    const TileArray<const S> from_y(stack, call.y, call.rest, groups, row, end);
    const TileArray<S> to(stack, dx, {}, groups, row, end);
    const auto read = [&](int64_t first, int64_t columns) {
      from_dy.read_word(first, columns, gz);
      if (du) from_y.read_word(first, columns, p);
    };
    const auto write = [&](int64_t first, int64_t columns) { to.write_word(first, columns, gz); };
    run(WordHook(read), call.dx ? WordHook(write) : WordHook());
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
