// Rows in the lanes, for narrow stacks and for positions: what the forward and the backward kernel share.
//
// A tile is G lane groups: kGroupRows rows each, one in a lane, so that a dot product is a chain of multiply-adds over
// columns and needs no horizontal sum; w and b are broadcast. Rows go in and out through transposes, positions as they
// are (positions.h). Arithmetic is in float.
#pragma once

#include "positions.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Rows have so many features at most, or one or two sign words a layer. Positions have any number.
constexpr int64_t kMostLaneFeatures = 64;

// Dot products are summed in blocks of so many sign words: 64 columns.
constexpr int64_t kBlockWords = 2;

// w of a column in the packed parameters, and dw in a partial sum; b and db stand kLanes further.
HANOPS_INLINE int64_t parameter_index(int64_t column) {
  return column / kGroupRows * 2 * kGroupRows + column % kGroupRows;
}

HANOPS_INLINE bool starts_block(int64_t column) { return column > 0 && column % (kBlockWords * kWordColumns) == 0; }

// Rows [row, row + kGroupRows) of m, with their rest, through transposes: one in a lane, column c at `at` + c * step.
template <class S>
HANOPS_NOINLINE void read_group(const Matrix& m, const Planes<const int8_t>& rest, int64_t row, int64_t features,
                                float* at, int64_t step) {
  for_columns<float>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    Registers<float, kGroupRows> square;
    unroll<kGroupRows>([&](auto r) HANOPS_LAMBDA { square[r] = read<S>(m, row + r, j * kGroupRows, columns); });
    if constexpr (kRounds<S>) {
      if (const int8_t* more = rest_at<S>(rest, row, j * kGroupRows)) {
        unroll<kGroupRows>(
            [&](auto r) HANOPS_LAMBDA { square[r] = with_rest<S>(square[r], more + r * rest.row_stride, columns); });
      }
    }
    transpose(square);
    unroll<kGroupRows>([&](auto c) HANOPS_LAMBDA {
      if (c < columns) square[c].store(at + (j * kGroupRows + c) * step);
    });
  });
}

// The same back, to contiguous rows and to their rest from row `row` on.
template <class S>
HANOPS_NOINLINE void write_group(const float* at, int64_t step, int64_t features, S* rows, const Planes<int8_t>& rest,
                                 int64_t row) {
  for_columns<float>(features, [&](int64_t j, auto columns) HANOPS_LAMBDA {
    Registers<float, kGroupRows> square;
    unroll<kGroupRows>([&](auto c) HANOPS_LAMBDA {
      if (c < columns) square[c] = load(at + (j * kGroupRows + c) * step);
    });
    transpose(square);
    unroll<kGroupRows>([&](auto r)
                           HANOPS_LAMBDA { write<S>(square[r], rows + r * features + j * kGroupRows, columns); });
    if constexpr (kRounds<S>) {
      if (int8_t* more = rest_at<S>(rest, row, j * kGroupRows)) {
        unroll<kGroupRows>([&](auto r) HANOPS_LAMBDA {
          write_rest<S>(square[r], rows + r * features + j * kGroupRows, more + r * rest.row_stride, columns);
        });
      }
    }
  });
}

// The rows of all lane groups of a tile, from row `row` on.
template <class S>
HANOPS_INLINE void read_rows(const LanePlane& plane, const Matrix& m, const Planes<const int8_t>& rest, int64_t row,
                             int64_t features) {
  for (int64_t g = 0; g < plane.groups; ++g) {
    read_group<S>(m, rest, row + g * kGroupRows, features, plane.at(0, g), plane.step);
  }
}
template <class S>
HANOPS_INLINE void write_rows(const LanePlane& plane, S* matrix, const Planes<int8_t>& rest, int64_t row,
                              int64_t features) {
  for (int64_t g = 0; g < plane.groups; ++g) {
    const int64_t first = row + g * kGroupRows;
    write_group(plane.at(0, g), plane.step, features, matrix + first * features, rest, first);
  }
}

// What a pass does with the columns of each sign word, before it takes them or after: positions are read and written
// so, while their part of the tile is in L1. Nothing by default.
class WordHook {
 public:
  WordHook() = default;
  template <class Body>
  HANOPS_INLINE explicit WordHook(const Body& body)
      : body_(&body), run_([](const void* hook, int64_t first, int64_t columns) {
          (*static_cast<const Body*>(hook))(first, columns);
        }) {}

  HANOPS_INLINE void operator()(int64_t first, int64_t columns) const {
    if (run_) run_(body_, first, columns);
  }

 private:
  const void* body_ = nullptr;
  void (*run_)(const void*, int64_t, int64_t) = nullptr;
};

// G lane groups, one or two planes, stored (columns, G, planes, lanes).
template <int G, int kPlanes>
struct LaneTile {
  float* data;

  HANOPS_INLINE float* at(int64_t column, int g, int plane = 0) const {
    return data + ((column * G + g) * kPlanes + plane) * kGroupRows;
  }
};

constexpr int kHeldWords = kGroupRows;

// Elements of the memory of LaneSigns.
inline int64_t lane_signs_size(const Stack& stack, int64_t groups) {
  return (stack.inner > 0 ? word_count(stack.features) : kHeldWords) * groups * kGroupRows;
}

// The sign words of some layers of a tile, stored (words, G, lanes). Word k of a row is bytes [4 k, 4 k + 4) of its
// sign bytes where a layer is whole words; kHeldWords of them are then a transpose away. Positions have whole words,
// and their layers are held one by one.
template <int G, class Byte>
class LaneSigns {
 public:
  static constexpr int64_t kWordSize = G * kGroupRows;

  LaneSigns(const Stack& stack, const Planes<Byte>& signs, int64_t row, int64_t end, float* memory)
      : planes_(signs),
        row_(row),
        end_(end),
        inner_(stack.inner),
        bytes_(sign_bytes(stack.features)),
        words_(word_count(stack.features)),
        held_(stack.inner > 0 ? 1 : kHeldWords / words_),
        layers_(stack.abs_layers),
        memory_(memory) {}

  // The words of a layer.
  HANOPS_INLINE float* of(int64_t layer) const { return memory_ + (layer & (held_ - 1)) * words_ * kWordSize; }

  // Word `word` of those, of group g.
  static HANOPS_INLINE float* at(float* words, int64_t word, int g) {
    return words + word * kWordSize + g * kGroupRows;
  }

  // Whether `layer` is the last, or the first, of those held together.
  bool ends(int64_t layer) const { return ((layer + 1) & (held_ - 1)) == 0 || layer == layers_ - 1; }

  // Makes `layer` and those below that are held together readable; layers without signs read as 0.
  void fetch(int64_t layer) const { exchange<true>(layer); }

  // Writes `layer` and those below that are held together to the rows.
  void flush(int64_t layer) const { exchange<false>(layer); }

 private:
  template <bool kFetch>
  void exchange(int64_t layer) const {
    const int64_t first = (layer & ~(held_ - 1)) * words_;
    const int64_t count = std::clamp<int64_t>(layers_ * words_ - first, 0, held_ * words_);
    for (int g = 0; g < G; ++g) {
      if (inner_ > 0) {
        exchange_positions<kFetch>(first, count, g);
      } else if (bytes_ == 4 * words_ && count > 0) {  // a layer without signs may have no memory to point at
        exchange_square<kFetch>(first, count, g);
      } else {
        exchange_bytes<kFetch>(first, count, g);
      }
    }
  }

  template <bool kFetch>
  void exchange_positions(int64_t first, int64_t count, int g) const {
    const auto lanes = word_lanes(planes_, inner_, row_ + g * kGroupRows, end_);
    for (int64_t k = 0; k < words_; ++k) {
      if constexpr (kFetch) {
        (k < count ? lanes.load(first + k) : Vec<float>(0.f)).store(slot(k, g));
      } else {
        lanes.store(first + k, load(slot(k, g)));
      }
    }
  }

  template <bool kFetch>
  void exchange_square(int64_t first, int64_t count, int g) const {
    Byte* row = first_row(g) + 4 * first;
    if constexpr (kFetch) {
      Registers<float, kHeldWords> square;
      unroll<kGroupRows>([&](auto r) HANOPS_LAMBDA {
        square[r] = load(reinterpret_cast<const float*>(row + r * planes_.row_stride), count);
      });
      transpose(square);
      square.store(slot(0, g), kWordSize);
    } else {
      auto square = Registers<float, kHeldWords>::load(slot(0, g), kWordSize);
      transpose(square);
      unroll<kGroupRows>([&](auto r) HANOPS_LAMBDA { square[r].store(row + r * planes_.row_stride, count); });
    }
  }

  template <bool kFetch>
  void exchange_bytes(int64_t first, int64_t count, int g) const {
    for (int64_t k = 0; k < kHeldWords; ++k) {
      float* words = slot(k, g);
      if constexpr (kFetch) Vec<float>(0.f).store(words);
      if (k >= count) continue;
      const int64_t layer = (first + k) / words_, byte = 4 * ((first + k) % words_);
      Byte* row = first_row(g) + layer * bytes_ + byte;
      with_constant<4>(std::min<int64_t>(4, bytes_ - byte),
                       [&](auto bytes) HANOPS_LAMBDA { copy_bytes<kFetch, bytes>(row, words); });
    }
  }

  // The first bytes of each row's word.
  template <bool kFetch, int kBytes>
  HANOPS_INLINE void copy_bytes(Byte* row, float* words) const {
    for (int r = 0; r < kGroupRows; ++r) {
      if constexpr (kFetch) {
        std::memcpy(words + r, row + r * planes_.row_stride, kBytes);
      } else {
        std::memcpy(row + r * planes_.row_stride, words + r, kBytes);
      }
    }
  }

  // Word k of group g, one of those held.
  HANOPS_INLINE float* slot(int64_t k, int g) const { return at(memory_, k, g); }

  HANOPS_INLINE Byte* first_row(int g) const { return planes_.data + (row_ + g * kGroupRows) * planes_.row_stride; }

  Planes<Byte> planes_;
  int64_t row_, end_, inner_;
  int64_t bytes_, words_;  // of a layer
  int64_t held_;           // layers, a power of 2
  int64_t layers_;
  float* memory_;
};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
