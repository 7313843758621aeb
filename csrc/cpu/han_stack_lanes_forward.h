// The forward kernel for narrow stacks, rows in the lanes of a vector.
#pragma once

#include "han_stack_lanes.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <int G>
struct ForwardLanes {
  LaneTile<G, 1> h;  // x of the layer to come
  LaneSigns<G, uint8_t> signs;
  alignas(64) float alpha2[G][kGroupRows];  // -2 w . x of that layer

  // The dot products of layer 0.
  HANOPS_NOINLINE void enter(const Stack& stack) {
    const auto tile = h;
    const float* w = layer_parameters<float>(stack, 0);
    Registers<float, G> dot;
    for (int64_t c = 0; c < stack.features; ++c) {
      const Vec<float> w_c(w[parameter_index(c)]);
      unroll<G>([&](auto g) HANOPS_LAMBDA { dot[g] = vec::fmadd(w_c, load(tile.at(c, g)), dot[g]); });
    }
    unroll<G>([&](auto g) HANOPS_LAMBDA { (dot[g] * Vec<float>(-2.f)).store(alpha2[g]); });
  }

  // z = x - 2 (w . x) w + b, |z| and its sign bits; then the dot products of the next layer, if there is one.
  template <bool kSave, bool kNext>
  HANOPS_NOINLINE void pass(const Stack& stack, int64_t layer, const Keep<float>& keep_bits) {
    const auto tile = h;
    const auto words = signs;
    const int64_t features = stack.features;
    const Vec<float> keep = load(keep_bits.all);
    Registers<float, G> a, dot;
    unroll<G>([&](auto g) HANOPS_LAMBDA { a[g] = load(alpha2[g]); });
    for (int64_t word = 0; word * kWordColumns < features; ++word) {
      const int64_t first = word * kWordColumns, columns = std::min(kWordColumns, features - first);
      const float* p = layer_parameters<float>(stack, layer) + 2 * first;
      const float* next = layer_parameters<float>(stack, kNext ? layer + 1 : layer) + 2 * first;
      Registers<float, G> bytes;
      // Columns `column`, + 8, + 16, + 24, as many as `count` says.
      const auto step = [&](auto count, int column) HANOPS_LAMBDA {
        constexpr int kCount = decltype(count)::value;
        Registers<float, G> pairs[2], even;
        unroll<kCount>([&](auto i) HANOPS_LAMBDA {
          const int64_t k = parameter_index(8 * i) + column;
          const Vec<float> w(p[k]), b(p[k + kGroupRows]);
          unroll<G>([&](auto g) HANOPS_LAMBDA {
            float* x = tile.at(first + column + 8 * i, g);
            const Vec<float> z = vec::fmadd(a[g], w, load(x)) + b, out = z & keep;
            out.store(x);
            if constexpr (kNext) dot[g] = vec::fmadd(Vec<float>(next[k]), out, dot[g]);
            if constexpr (kSave) {
              if constexpr (i % 2 == 1) {
                pairs[i / 2][g] = pack_signs(even[g], z);
              } else if constexpr (i == kCount - 1) {
                pairs[i / 2][g] = pack_signs(z, Vec<float>(0.f));
              } else {
                even[g] = z;
              }
            }
          });
        });
        if constexpr (kSave) {
          unroll<G>([&](auto g) HANOPS_LAMBDA { bytes[g] = push_signs(bytes[g], pairs[0][g], pairs[1][g]); });
        }
      };
      const auto steps = [&](auto count) HANOPS_LAMBDA {
        constexpr int kCount = decltype(count)::value;
        const int longer = columns - 8 * (kCount - 1);
        for (int column = 0; column < longer; ++column) step(count, column);
        for (int column = longer; column < 8; ++column) step(std::integral_constant<int, kCount - 1>{}, column);
      };
      switch ((columns + 7) / 8) {
        case 4:
          steps(std::integral_constant<int, 4>{});
          break;
        case 3:
          steps(std::integral_constant<int, 3>{});
          break;
        case 2:
          steps(std::integral_constant<int, 2>{});
          break;
        default:
          steps(std::integral_constant<int, 1>{});
      }
      if constexpr (kSave) {
        unroll<G>([&](auto g) HANOPS_LAMBDA { sign_words(bytes[g]).store(words.at(layer, word, g)); });
      }
    }
    if constexpr (kNext) {
      unroll<G>([&](auto g) HANOPS_LAMBDA { (dot[g] * Vec<float>(-2.f)).store(alpha2[g]); });
    }
  }
};

template <class S, int G, bool kSave>
void forward_lanes(const Stack& stack, const Forward& call, int64_t row, Scratch& scratch) {
  const int64_t features = stack.features, last = stack.layers - 1;
  const Keep<float> keep(true, features), keep_last(stack.final_abs, features);
  const int64_t state_size = LaneTile<G, 1>::size(features), words_size = kSave ? LaneSigns<G, uint8_t>::kSize : 0;
  float* memory = static_cast<float*>(scratch.reserve((state_size + words_size) * sizeof(float)));
  ForwardLanes<G> tile{{memory}, {stack, call.signs, row, memory + state_size}, {}};
  tile.h.template read_rows<S>(call.x, row, features, 0);
  tile.enter(stack);
  for (int64_t layer = 0; layer < last; ++layer) {
    tile.template pass<kSave, true>(stack, layer, keep);
    if (kSave && tile.signs.ends(layer)) tile.signs.flush(layer);
  }
  if (kSave && stack.final_abs) {
    tile.template pass<true, false>(stack, last, keep_last);
    tile.signs.flush(last);
  } else {
    tile.template pass<false, false>(stack, last, keep_last);
  }
  tile.h.template write_rows<S>(static_cast<S*>(call.y) + row * features, features, 0);
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
