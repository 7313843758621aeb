// Between rows in memory, in any storage type and with any strides, and vectors of the arithmetic type.
//
// The letters, in all files of the CPU kernels; csrc/cuda/tile.cuh has the same:
//   A  type of the arithmetic: float, or double      S  type of x, y, dy and dx, or of the parameters, in memory
//   R  rows of a tile                                G  lane groups of a tile, where rows are in the lanes
// A vector has kLanes<A> columns.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <class A>
inline int64_t column_vectors(int64_t features) {
  return (features + kLanes<A> - 1) / kLanes<A>;
}

// w and b of one layer, or one layer's partial sums of dw and db, stand side by side for each column vector.
template <class A>
inline int64_t layer_size(int64_t features) {
  return 2 * kLanes<A> * column_vectors<A>(features);
}

template <class A>
inline const A* layer_parameters(const Stack& stack, int64_t layer) {
  return static_cast<const A*>(stack.packed) + layer * layer_size<A>(stack.features);
}

// Calls body(j, columns) for each column vector j; `columns` is a constant but for the tail, which comes last. Between
// blocks of column vectors it calls fold().
template <class A, class Body, class Fold>
HANOPS_INLINE void for_columns(int64_t features, Body&& body, Fold&& fold) {
  constexpr int64_t kBlock = 64;
  const int64_t full = features / kLanes<A>;
  int64_t j = 0;
  for (;;) {
    for (const int64_t end = std::min(j + kBlock, full); j < end; ++j) {
      body(j, std::integral_constant<int64_t, kLanes<A>>{});
    }
    if (j == full) break;
    fold();
  }
  if (full * kLanes<A> < features) body(full, features - full * kLanes<A>);
}

template <class A, class Body>
HANOPS_INLINE void for_columns(int64_t features, Body&& body) {
  for_columns<A>(features, std::forward<Body>(body), [] {});
}

// The first `columns` lanes at (row, column); the others are 0.
template <class S>
HANOPS_INLINE Vec<Arithmetic<S>> read(const Matrix& m, int64_t row, int64_t column, int64_t columns) {
  constexpr int64_t lanes = kLanes<Arithmetic<S>>;
  const S* p = static_cast<const S*>(m.data) + row * m.row_stride + column * m.column_stride;
  if (m.column_stride == 1 && columns == lanes) return load_storage<S>(p);
  if constexpr (std::is_same_v<S, Arithmetic<S>>) {
    if (m.column_stride == 1) return load(p, columns);
  }
  S gathered[lanes] = {};
  for (int64_t i = 0; i < columns; ++i) gathered[i] = p[i * m.column_stride];
  return load_storage<S>(gathered);
}

template <class S>
HANOPS_INLINE void write(const Vec<Arithmetic<S>>& v, S* p, int64_t columns) {
  if (columns == kLanes<Arithmetic<S>>) return store_storage<S>(v, p);
  if constexpr (std::is_same_v<S, Arithmetic<S>>) return v.store(p, columns);
  S scattered[kLanes<Arithmetic<S>>];
  store_storage<S>(v, scattered);
  std::memcpy(p, scattered, columns * sizeof(S));
}

// The sign bytes of one layer, from row `row` on. All rows and layers of a stack without bits read the same ones.
template <class Byte>
struct SignRows {
  Byte* first;
  int64_t stride;

  SignRows(const Stack& stack, const Planes<Byte>& signs, int64_t row, int64_t layer)
      : first(nullptr), stride(signs.row_stride) {
    if (signs.data) first = signs.data + (stride ? row * stride + layer * sign_bytes(stack.features) : 0);
  }
  HANOPS_INLINE Byte* at(int64_t r, int64_t column) const { return first + r * stride + sign_bit(column).byte; }
};

template <class A>
HANOPS_INLINE void write_signs(SignWord<A> word, uint8_t* p, int64_t columns) {
  if (columns > 8) {
    std::memcpy(p, &word, sizeof word);
  } else {
    *p = static_cast<uint8_t>(word);
  }
}

template <class A>
HANOPS_INLINE SignWord<A> read_signs(const uint8_t* p, int64_t columns) {
  if (columns <= 8) return *p;
  SignWord<A> word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Bit masks: z & mask is |z|, or z where not `absolute`; lanes of the tail past `features` become 0, even from NaN.
template <class A>
struct Keep {
  alignas(64) A all[kLanes<A>], tail[kLanes<A>];

  Keep(bool absolute, int64_t features) {
    using Bits = std::conditional_t<std::is_same_v<A, float>, uint32_t, uint64_t>;
    const Bits kept = ~Bits(0) >> (absolute ? 1 : 0);
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      const Bits lane = i < features % kLanes<A> ? kept : 0;
      std::memcpy(all + i, &kept, sizeof kept);
      std::memcpy(tail + i, &lane, sizeof lane);
    }
  }
};

template <class Body>
HANOPS_INLINE void with_flag(bool flag, Body&& body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// Narrower rows come fast enough by themselves, and the bookkeeping would show.
constexpr int64_t kPrefetchedFeatures = 128;

// Fetches into L2, while passes go over a tile, what is needed after them: rows still to be read, and memory that
// results go to. Each block is spread evenly over all passes. A pass asks for one line at each column vector j, from
// the slots in turn; two blocks x and y, for instance, share the four slots so:
//
//   j        0      1      2      3      4    ...
//   slot     0: x   1: y   2: y   3: y   0: x
//   address  share * pass + step * j, from the start of the block
class Prefetch {
 public:
  Prefetch(int64_t passes, int64_t column_vectors) : passes_(passes), vectors_(passes * column_vectors) {}

  // A null block is none. The last one has all slots that are left.
  void add(const void* block, int64_t bytes) {
    if (!block || vectors_ == 0) return;
    for (int slot = blocks_++; slot < kSlots; ++slot) {
      slots_[slot] = {static_cast<const char*>(block), bytes / passes_, bytes / vectors_};
    }
  }

  // Asks for a line, at column vector j of the pass at hand.
  HANOPS_INLINE void fetch(int64_t j) const {
    const Slot& slot = slots_[j % kSlots];
    __builtin_prefetch(slot.next + j * slot.step, 0, 2);
  }

  void end_pass() {
    for (Slot& slot : slots_) slot.next += slot.share;
  }

 private:
  static constexpr int kSlots = 4;
  struct Slot {
    const char* next;  // where the pass at hand begins
    int64_t share;     // bytes of a pass
    int64_t step;      // bytes of a column vector
  };

  int64_t passes_, vectors_;
  int blocks_ = 0;
  Slot slots_[kSlots] = {};
};

// R rows of one or two planes, stored (column vectors, R, planes, lanes). Passes hold it by value: a vector store may
// alias any member, which would then be loaded again.
template <class A, int R, int kPlanes>
struct Tile {
  A* data;

  HANOPS_INLINE A* at(int64_t j, int r, int plane = 0) const {
    return data + ((j * R + r) * kPlanes + plane) * kLanes<A>;
  }
  static int64_t size(int64_t features) { return R * kPlanes * kLanes<A> * column_vectors<A>(features); }
};

// Takes rows [row, end) in tiles of R, then the rest in tiles of R / 2, and so on: body(constant R, row, tiles).
template <int R, class Body>
void for_tiles(int64_t row, int64_t end, Body&& body) {
  const int64_t tiles = (end - row) / R;
  if (tiles > 0) body(std::integral_constant<int, R>{}, row, tiles);
  if constexpr (R > 1) for_tiles<R / 2>(row + tiles * R, end, body);
}

// Up to kMostTiles tiles of one size, as many as fit in L1, which go through the layers side by side.
constexpr int64_t kMostTiles = 4, kCacheBytes = 32 << 10;

template <class A>
class TilesInCache {
 public:
  // Tiles of `size` elements, of which a caller has `tiles` to take through.
  TilesInCache(Scratch& scratch, int64_t size, int64_t tiles)
      : size_(size), count_(std::min(std::clamp<int64_t>(kCacheBytes / (size * sizeof(A)), 1, kMostTiles), tiles)) {
    data_ = static_cast<A*>(scratch.reserve(count_ * size * sizeof(A)));
  }
  int64_t count() const { return count_; }
  A* tile(int64_t t) const { return data_ + t * size_; }

 private:
  int64_t size_, count_;
  A* data_;
};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
