// The backward kernel for narrow stacks, rows in the lanes of a vector; the steps are those of han_stack_backward.h.
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
  Registers<float, G> dot_gz{}, dot_p{};                // of the layer below, so far
  Registers<float, G> bits{};                           // of the layer below, those of the column at hand on top
  const float *parameters = nullptr, *below = nullptr;  // of the layer and of the one below, from the word's columns on
  float *dw = nullptr, *db = nullptr;                   // of the tile, from the word's columns on

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
        dot_gz[g] = vec::fmadd(w_below, next, dot_gz[g]);
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
          dot_p[g] = vec::fmadd(w_below, p_below, dot_p[g]);
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
  float* sums;                                    // (features, lanes): dw of the tile, then db
  alignas(64) float minus_beta2[G * kGroupRows];  // -2 w . gz of the layer at hand
  alignas(64) float alpha2[G * kGroupRows];       // -2 w . p, which is 2 w . x_l

  // Undoes `layer`, and prepares the one below: see BackwardWord.
  template <bool kDb, bool kUndo, bool kPrepare>
  HANOPS_NOINLINE void pass(const Stack& stack, int64_t layer, float* partials) {
    const auto words = signs;
    const int64_t padded = layer_size<float>(stack.features) / 2;  // columns
    float *dw = sums, *db = sums + padded * kGroupRows;
    BackwardWord<G, kDu, kDb, kUndo, kPrepare> at{state};
    if constexpr (kUndo) at.c = Registers<float, G>::load(minus_beta2);
    if constexpr (kUndo && kDu) at.a = Registers<float, G>::load(alpha2);
    for (int64_t word = 0; word * kWordColumns < stack.features; ++word) {
      const int64_t first = word * kWordColumns, columns = std::min(kWordColumns, stack.features - first);
      at.parameters = layer_parameters<float>(stack, kUndo ? layer : layer - 1) + 2 * first;
      at.below = layer_parameters<float>(stack, kPrepare ? layer - 1 : layer) + 2 * first;
      at.dw = dw + first * kGroupRows;
      at.db = db + first * kGroupRows;
      if constexpr (kPrepare) {
        unroll<G>([&](auto g) HANOPS_LAMBDA {
          at.bits[g] = shift_words(load(words.at(layer - 1, word, g)), kWordColumns - columns);
        });
      }
      for (int64_t column = columns - 1; column >= 0; --column) at.visit(column, first);
    }
    if constexpr (kPrepare) (at.dot_gz * Vec<float>(-2.f)).store(minus_beta2);
    if constexpr (kPrepare && kDu) (at.dot_p * Vec<float>(-2.f)).store(alpha2);
    if constexpr (kUndo) add_sums<kDb>(dw, db, padded, partials + layer * 2 * padded);
  }

  // Adds the tile's dw and db, summed over lanes, to a layer's partial sums.
  template <bool kDb>
  HANOPS_INLINE static void add_sums(const float* dw, const float* db, int64_t padded, float* partial) {
    if constexpr (kDu || kDb) {
      for (int64_t j = 0; j < padded; j += kGroupRows) {
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

template <class S, int G, bool kDu, bool kDb>
void backward_lanes(const Stack& stack, const Backward& call, int64_t row, float* partials, Scratch& scratch) {
  const int64_t features = stack.features, last = stack.layers - 1;
  using State = BackwardLanes<G, kDu>;
  const int64_t state_size = decltype(State::state)::size(features), words_size = decltype(State::signs)::kSize;
  const int64_t sums_size = kDu || kDb ? layer_size<float>(features) * kGroupRows : 0;
  float* memory = static_cast<float*>(scratch.reserve((state_size + words_size + sums_size) * sizeof(float)));
  float *words = memory + state_size, *sums = words + words_size;
  State tile{{memory}, {stack, call.signs, row, words}, sums, {}, {}};
  std::memset(sums, 0, sums_size * sizeof(float));  // columns past `features`
  tile.state.template read_rows<S>(call.dy, row, features, 0, {});
  if constexpr (kDu) tile.state.template read_rows<S>(call.y, row, features, 1, call.rest);
  tile.signs.fetch(last);
  tile.template pass<kDb, false, true>(stack, last + 1, partials);
  if constexpr (kDu) tile.silence(features);
  for (int64_t layer = last; layer > 0; --layer) {
    if (tile.signs.ends(layer - 1)) tile.signs.fetch(layer - 1);
    tile.template pass<kDb, true, true>(stack, layer, partials);
  }
  tile.template pass<kDb, true, false>(stack, 0, partials);
  if (call.dx) tile.state.template write_rows<S>(static_cast<S*>(call.dx), row, features, 0, {});
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
