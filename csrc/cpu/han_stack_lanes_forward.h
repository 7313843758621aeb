// The forward kernel with rows in the lanes of a vector: narrow stacks, and positions.
#pragma once

#include "han_stack_lanes.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// The columns of one sign word in a pass over a layer. The four columns c, c + 8, c + 16 and c + 24 are bit c of the
// word's four bytes, and their signs are packed together:
//
//   byte       0    1    2    3
//   c = 0      0    8   16   24
//   c = 1      1    9   17   25
//   ...                             a last word of 20 columns has bytes 0 to 2, and 2 only where c < 4
template <int G, bool kSave, bool kNext>
struct ForwardWord {
  LaneTile<G, 1> tile;
  const Vec<float>& keep;
  const Registers<float, G>& a;    // -2 w . x of the layer
  Dots<float, G>& dot;             // w . x of the next layer, so far
  Registers<float, G>& bytes;      // the word's sign bits
  int64_t first;                   // column of the word
  const float *parameters, *next;  // of the layer and of the next one, from that column on

  // Column c of a byte: z = x - 2 (w . x) w + b; |z| goes to the tile and into the dot product. `pair` is z in an
  // even byte; in an odd one its signs and those of the even one before, packed.
  template <int kByte>
  HANOPS_INLINE void reflect(int64_t c, Registers<float, G>& pair) {
    const int64_t k = parameter_index(8 * kByte) + c;
    const Vec<float> w(parameters[k]), b(parameters[k + kGroupRows]);
    unroll<G>([&](auto g) HANOPS_LAMBDA {
      float* x = tile.at(first + c + 8 * kByte, g);
      const Vec<float> z = vec::fmadd(a[g], w, load(x)) + b, out = z & keep;
      out.store(x);
      if constexpr (kNext) dot.add(g, Vec<float>(next[k]), out);
      if constexpr (kSave) pair[g] = kByte % 2 == 0 ? z : pack_signs(pair[g], z);
    });
  }

  // Column c of all bytes.
  template <int kBytes>
  HANOPS_INLINE void step(int64_t c) {
    Registers<float, G> pairs[2];
    unroll<kBytes>([&](auto byte) HANOPS_LAMBDA { reflect<byte>(c, pairs[byte / 2]); });
    if constexpr (kSave) {
      unroll<G>([&](auto g) HANOPS_LAMBDA {
        if constexpr (kBytes % 2 == 1) {  // the last byte has none beside it
          pairs[kBytes / 2][g] = pack_signs(pairs[kBytes / 2][g], Vec<float>(0.f));
        }
        bytes[g] = push_signs(bytes[g], pairs[0][g], pairs[1][g]);
      });
    }
  }

  // All columns of a word of kBytes bytes, the last of which may have fewer than 8.
  template <int kBytes>
  HANOPS_INLINE void steps(int64_t columns) {
    const int64_t of_last_byte = columns - 8 * (kBytes - 1);
    for (int64_t c = 0; c < of_last_byte; ++c) step<kBytes>(c);
    for (int64_t c = of_last_byte; c < 8; ++c) step<kBytes - 1>(c);
  }
};

template <int G>
struct ForwardLanes {
  LaneTile<G, 1> h;  // x of the layer to come
  LaneSigns<G, uint8_t> signs;
  LanePrefetch& to_come;                     // x of the next tile, y of this one
  alignas(64) float alpha2[G * kGroupRows];  // -2 w . x of that layer

  // All layers. The hooks are called before the words of the first pass, and after those of the last one.
  template <bool kSave>
  HANOPS_NOINLINE void run(const Stack& stack, const WordHook& before, const WordHook& after) {
    const int64_t last = stack.layers - 1;
    const bool final_abs = stack.abs_layers == stack.layers;
    const Keep<float> keep(stack.abs_layers > 0, stack.features), keep_last(final_abs, stack.features);
    enter(stack, before);
    for (int64_t layer = 0; layer < last; ++layer) {
      pass<kSave, true>(stack, layer, keep);
      if (kSave && signs.ends(layer)) signs.flush(layer);
    }
    if (kSave && final_abs) {
      pass<true, false>(stack, last, keep_last, after);
      signs.flush(last);
    } else {
      pass<false, false>(stack, last, keep_last, after);
    }
  }

  // The dot products of layer 0.
  HANOPS_NOINLINE void enter(const Stack& stack, const WordHook& before) {
    const auto tile = h;
    const float* w = layer_parameters<float>(stack, 0);
    Dots<float, G> dot;
    for (int64_t c = 0; c < stack.features; ++c) {
      if (c % kWordColumns == 0) before(c, std::min(kWordColumns, stack.features - c));
      if (starts_block(c)) dot.fold();
      const Vec<float> w_c(w[parameter_index(c)]);
      unroll<G>([&](auto g) HANOPS_LAMBDA { dot.add(g, w_c, load(tile.at(c, g))); });
    }
    (dot.total() * Vec<float>(-2.f)).store(alpha2);
  }

  // One layer, and the dot products of the next one, if there is one.
  template <bool kSave, bool kNext>
  HANOPS_NOINLINE void pass(const Stack& stack, int64_t layer, const Keep<float>& keep_bits,
                            const WordHook& after = {}) {
    const auto tile = h;
    float* const words = signs.of(layer);
    const Vec<float> keep = load(keep_bits.all);
    const auto a = Registers<float, G>::load(alpha2);
    Dots<float, G> dot;
    for (int64_t word = 0; word * kWordColumns < stack.features; ++word) {
      const int64_t first = word * kWordColumns, columns = std::min(kWordColumns, stack.features - first);
      if (kNext && starts_block(first)) dot.fold();
      to_come.fetch();
      const float* parameters = layer_parameters<float>(stack, layer) + 2 * first;
      const float* next = layer_parameters<float>(stack, kNext ? layer + 1 : layer) + 2 * first;
      Registers<float, G> bytes;
      ForwardWord<G, kSave, kNext> at{tile, keep, a, dot, bytes, first, parameters, next};
      with_constant<4>((columns + 7) / 8, [&](auto count) HANOPS_LAMBDA { at.template steps<count>(columns); });
      if constexpr (kSave) {
        unroll<G>([&](auto g) HANOPS_LAMBDA { sign_words(bytes[g]).store(signs.at(words, word, g)); });
      }
      after(first, columns);
    }
    if constexpr (kNext) (dot.total() * Vec<float>(-2.f)).store(alpha2);
  }
};

// Rows [row, end), which fill so many lane groups, or leave lanes of the last one spare where they are positions.
template <class S>
HANOPS_NOINLINE void forward_lanes(const Stack& stack, const Forward& call, int64_t groups, int64_t row, int64_t end,
                                   Scratch& scratch) {
  const int64_t state_size = stack.features * groups * kGroupRows;
  const int64_t words_size = call.signs.data ? lane_signs_size(stack, groups) : 0;
  float* memory = static_cast<float*>(scratch.reserve((state_size + words_size) * sizeof(float)));
  const LanePlane plane(memory, groups, 1, 0);
  LanePrefetch to_come(stack, groups, stack.layers);
  const auto run = [&](const WordHook& before, const WordHook& after) {
    with_constant<kMostLaneGroups>(groups, [&](auto g) {
      ForwardLanes<g> tile{{memory}, {stack, call.signs, row, end, memory + state_size}, to_come, {}};
      with_flag(call.signs.data != nullptr, [&](auto save) { tile.template run<save>(stack, before, after); });
    });
  };
  if (stack.inner == 0) {
    read_rows<S>(plane, call.x, {}, row, stack.features);
    run({}, {});
    write_rows<S>(plane, static_cast<S*>(call.y), call.rest, row, stack.features);
  } else {
    const Matrix y = contiguous(stack, call.y);
    to_come.add(call.x, sizeof(S), row + groups * kGroupRows);
    to_come.add(y, sizeof(S), row);
    const TileArray<const S> from(stack, call.x, {}, groups, row, end);
    const TileArray<S> to(stack, y, call.rest, groups, row, end);
    const auto read = [&](int64_t first, int64_t columns) { from.read_word(first, columns, plane); };
    const auto write = [&](int64_t first, int64_t columns) { to.write_word(first, columns, plane); };
    run(WordHook(read), WordHook(write));
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
