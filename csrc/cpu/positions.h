// Positions in the lanes: where the features are not the last axis, arrays are (outer, columns, inner), and position p
// is (p / inner, :, p % inner). Lanes are consecutive positions, so that a column of a lane group is one vector in
// memory where they lie in one outer, two where they lie in two, and no transpose is needed.
#pragma once

#include <limits>

#include "rest.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

constexpr int kGroupRows = kLanes<float>;

// Lane groups of a tile, at most: three registers each forward, five backward.
constexpr int kMostLaneGroups = kManyRegisters ? 4 : 2;

// One plane of a tile of lane groups, stored as LaneTile, whose sizes are constants: of all that goes in and out there
// is one instance for all tiles.
struct LanePlane {
  float* data;
  int64_t groups;
  int64_t step, next;  // to the next column, and to the next group

  LanePlane(float* tile, int64_t groups, int64_t planes, int64_t plane)
      : data(tile + plane * kGroupRows),
        groups(groups),
        step(groups * planes * kGroupRows),
        next(planes * kGroupRows) {}

  HANOPS_INLINE float* at(int64_t column, int64_t g) const { return data + column * step + g * next; }
};

// A word of the rest of y is of 4 columns: kRestPlanes of them are as many columns as a word of sign bits has.
constexpr int64_t kRestColumns = kWordColumns / kRestPlanes;

// A lane group in such an array of T; strides count elements. Lanes past `end` are spare: they are read as 0 and never
// written.
template <class T>
class LaneArray {
  using S = std::remove_const_t<T>;

 public:
  LaneArray() = default;
  LaneArray(T* data, int64_t outer_stride, int64_t column_stride, int64_t inner, int64_t position, int64_t end)
      : first_(data + position / inner * outer_stride + position % inner),
        column_stride_(column_stride),
        inner_(inner),
        left_(inner - position % inner),
        jump_(outer_stride - inner),
        count_(std::clamp<int64_t>(end - position, 0, kGroupRows)) {}

  // Whether a column is one vector in memory, as load<true> and store<true> ask.
  HANOPS_INLINE bool whole() const { return left_ >= kGroupRows && count_ == kGroupRows; }

  template <bool kWhole = false>
  HANOPS_INLINE Vec<float> load(int64_t column) const {
    const T* p = first_ + column * column_stride_;
    if (kWhole || whole()) return load_storage<S>(p);
    if constexpr (requires { load_lanes<S>(p, 0, p, 0); }) {
      if (count_ <= left_ + inner_) return load_lanes<S>(p, std::min(left_, count_), p + jump_, count_);
    }
    S lanes[kGroupRows] = {};
    each(p, [&](int64_t lane, const T* at) { std::memcpy(lanes + lane, at, sizeof(S)); });
    return load_storage<S>(lanes);
  }

  template <bool kWhole = false>
  HANOPS_INLINE void store(int64_t column, const Vec<float>& v) const {
    T* p = first_ + column * column_stride_;
    if (kWhole || whole()) return store_storage<S>(v, p);
    if constexpr (requires { store_lanes<S>(v, p, 0, p, 0); }) {
      if (count_ <= left_ + inner_) return store_lanes<S>(v, p, std::min(left_, count_), p + jump_, count_);
    }
    S lanes[kGroupRows];
    store_storage<S>(v, lanes);
    each(p, [&](int64_t lane, T* at) { std::memcpy(at, lanes + lane, sizeof(S)); });
  }

 private:
  // Calls body(lane, address) for each lane that is not spare; lane 0 is at p.
  template <class Pointer, class Body>
  HANOPS_INLINE void each(Pointer p, Body&& body) const {
    int64_t left = left_;
    for (int64_t lane = 0; lane < count_; ++lane, ++p, --left) {
      if (left == 0) {
        p += jump_;
        left = inner_;
      }
      body(lane, p);
    }
  }

  T* first_;  // lane 0, column 0
  int64_t column_stride_, inner_;
  int64_t left_;   // lanes until the next outer
  int64_t jump_;   // what an address gains there, beside 1 for each lane
  int64_t count_;  // lanes that are not spare
};

// Fetches into L2, while passes go over a tile, what is needed after them: columns lie too far apart
// for the processor to see them coming. Each block is spread evenly over the words of all passes.
class LanePrefetch {
 public:
  LanePrefetch(const Stack& stack, int64_t groups, int64_t passes)
      : inner_(stack.inner),
        features_(stack.features),
        groups_(groups),
        share_((features_ - 1) / (passes * word_count(features_)) + 1) {}

  // The lane groups from `position` on, of as many columns as there are features, or `columns` if they are fewer. Of a
  // vector that lies in two lines the second is asked for: the first one is the second of the lane group before.
  HANOPS_NOINLINE void add(const Matrix& m, int64_t item_size, int64_t position,
                           int64_t columns = std::numeric_limits<int64_t>::max()) {
    Block& block = blocks_[count_++];
    block.columns = columns;
    block.column_stride = m.column_stride * item_size;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t last = position + (g + 1) * kGroupRows - 1;
      block.groups[g] =
          reinterpret_cast<uintptr_t>(m.data) + (last / inner_ * m.row_stride + last % inner_) * item_size;
    }
  }

  // Asks for the next columns; once for each word of a pass.
  HANOPS_INLINE void fetch() {
    if (count_ > 0) fetch_columns();
  }

 private:
  static constexpr int kMostBlocks = 4;
  struct Block {
    uintptr_t groups[kMostLaneGroups];  // the last lane's column 0, which may be past the end of the array
    int64_t column_stride, columns;
  };

  HANOPS_NOINLINE void fetch_columns() {
    const int64_t end = std::min(next_ + share_, features_);
    for (int i = 0; i < count_; ++i) {
      const Block block = blocks_[i];
      for (int64_t c = next_; c < std::min(end, block.columns); ++c) {
        for (int64_t g = 0; g < groups_; ++g) {
          __builtin_prefetch(reinterpret_cast<const void*>(block.groups[g] + c * block.column_stride), 0, 2);
        }
      }
    }
    next_ = end;
  }

  int64_t inner_, features_, groups_, share_, next_ = 0;
  int count_ = 0;
  Block blocks_[kMostBlocks];
};

// The words of planes beside the positions, (outer, planes, words, inner), as an array of columns: carried as floats.
template <class Byte>
auto word_lanes(const Planes<Byte>& planes, int64_t inner, int64_t position, int64_t end) {
  using Word = std::conditional_t<std::is_const_v<Byte>, const float, float>;
  return LaneArray<Word>(reinterpret_cast<Word*>(planes.data), planes.row_stride / int64_t{sizeof(float)}, inner, inner,
                         position, end);
}

// The sign words of positions, (outer, layers, words, inner), as a matrix of 4-byte items; how many columns it has.
template <class Byte>
Matrix word_matrix(const Stack& stack, const Planes<Byte>& signs) {
  return {signs.data, signs.row_stride / int64_t{sizeof(float)}, stack.inner};
}
inline int64_t word_columns(const Stack& stack) { return stack.abs_layers * word_count(stack.features); }

// A contiguous (outer, features, inner).
inline Matrix contiguous(const Stack& stack, const void* data) {
  return {data, stack.features * stack.inner, stack.inner};
}

// The lane groups of a tile, of positions [position, end), in an array and in the rest beside it. Loops hold one group
// by value, as passes hold tiles: so that neither strides nor masks are read or made again for each column.
template <class T>
class TileArray {
  using S = std::remove_const_t<T>;
  using Word = std::conditional_t<std::is_const_v<T>, const float, float>;
  using Int8 = std::conditional_t<std::is_const_v<T>, const int8_t, int8_t>;

 public:
  HANOPS_NOINLINE TileArray(const Stack& stack, const Matrix& m, const Planes<Int8>& rest, int64_t groups,
                            int64_t position, int64_t end)
      : features_(stack.features), has_rest_(kRounds<S> && rest.data) {
    T* data = static_cast<T*>(const_cast<void*>(m.data));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = position + g * kGroupRows;
      lanes_[g] = LaneArray<T>(data, m.row_stride, m.column_stride, stack.inner, first, end);
      if (has_rest_) rest_[g] = word_lanes(rest, stack.inner, first, end);
      whole_ = whole_ && lanes_[g].whole();
    }
  }

  // The columns of the word from `first` on, into a plane of the tile.
  HANOPS_NOINLINE void read_word(int64_t first, int64_t columns, const LanePlane& plane) const {
    const int64_t step = plane.step, next = plane.next;
    if constexpr (kRounds<S>) {
      if (!has_rest_) {
        float* const at = plane.at(first, 0);
        return for_groups(plane.groups, [&](auto whole, auto groups) HANOPS_LAMBDA {
          for (int64_t c = 0; c < columns; ++c) {
            unroll<groups>([&](auto g) HANOPS_LAMBDA {
              lanes_[g].template load<whole>(first + c).store(at + c * step + g * next);
            });
          }
        });
      }
    }
    for (int64_t g = 0; g < plane.groups; ++g) {
      const LaneArray<T> lanes = lanes_[g];
      float* const at = plane.at(first, g);
      with_flag(lanes.whole(), [&](auto whole) HANOPS_LAMBDA {
        if constexpr (kRounds<S>) {
          if (has_rest_) return read_with_rest<whole>(lanes, rest_[g], first, columns, at, step);
        }
        for (int64_t c = 0; c < columns; ++c) lanes.template load<whole>(first + c).store(at + c * step);
      });
    }
  }

  // The same back.
  HANOPS_NOINLINE void write_word(int64_t first, int64_t columns, const LanePlane& plane) const {
    const int64_t step = plane.step, next = plane.next;
    if constexpr (kRounds<S>) {
      if (!has_rest_) {
        const float* const at = plane.at(first, 0);
        return for_groups(plane.groups, [&](auto whole, auto groups) HANOPS_LAMBDA {
          for (int64_t c = 0; c < columns; ++c) {
            unroll<groups>([&](auto g) HANOPS_LAMBDA {
              lanes_[g].template store<whole>(first + c, load(at + c * step + g * next));
            });
          }
        });
      }
    }
    for (int64_t g = 0; g < plane.groups; ++g) {
      const LaneArray<T> lanes = lanes_[g];
      const float* const at = plane.at(first, g);
      with_flag(lanes.whole(), [&](auto whole) HANOPS_LAMBDA {
        if constexpr (kRounds<S>) {
          if (has_rest_) return write_with_rest<whole>(lanes, rest_[g], first, columns, at, step);
        }
        for (int64_t c = 0; c < columns; ++c) lanes.template store<whole>(first + c, load(at + c * step));
      });
    }
  }

 private:
  // Calls body(constant whole, constant groups). Of 16-bit values, groups go side by side: one after another, as in
  // float32, took 1.2 to 1.5 of the time of a call where they are not whole (128 features, 49 positions, AVX-512).
  template <class Body>
  HANOPS_INLINE void for_groups(int64_t groups, Body&& body) const {
    with_flag(whole_, [&](auto whole) HANOPS_LAMBDA {
      with_constant<kMostLaneGroups>(groups, [&](auto g) HANOPS_LAMBDA { body(whole, g); });
    });
  }

  // Of plane p of the rest and the word from column `first` on.
  HANOPS_INLINE int64_t rest_column(int64_t p, int64_t first) const {
    return p * word_count(features_) + first / kWordColumns;
  }

  template <bool kWhole>
  HANOPS_INLINE void read_with_rest(const LaneArray<T>& lanes, const LaneArray<Word>& rest, int64_t first,
                                    int64_t columns, float* at, int64_t step) const {
    for (int64_t c = 0; c < columns; c += kRestColumns) {
      const Vec<float> bytes = rest.template load<kWhole>(rest_column(c / kRestColumns, first));
      unroll<kRestColumns>([&](auto j) HANOPS_LAMBDA {
        if (c + j >= columns) return;
        add_rest_byte<j>(lanes.template load<kWhole>(first + c + j), bytes, kDroppedBits<S>).store(at + (c + j) * step);
      });
    }
  }

  template <bool kWhole>
  HANOPS_INLINE void write_with_rest(const LaneArray<T>& lanes, const LaneArray<Word>& rest, int64_t first,
                                     int64_t columns, const float* at, int64_t step) const {
    for (int64_t c = 0; c < kWordColumns; c += kRestColumns) {
      Registers<float, kRestColumns> bytes;
      unroll<kRestColumns>([&](auto j) HANOPS_LAMBDA {
        if (c + j >= columns) return;
        const Vec<float> exact = load(at + (c + j) * step);
        S stored[kGroupRows];
        store_storage<S>(exact, stored);
        const Vec<float> rounded = load_storage<S>(stored);
        lanes.template store<kWhole>(first + c + j, rounded);
        bytes[j] = rest_of(exact, rounded, kDroppedBits<S>);
      });
      rest.template store<kWhole>(rest_column(c / kRestColumns, first), pack_rest(bytes));
    }
  }

  int64_t features_;
  bool has_rest_, whole_ = true;
  LaneArray<T> lanes_[kMostLaneGroups];
  LaneArray<Word> rest_[kMostLaneGroups];
};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
