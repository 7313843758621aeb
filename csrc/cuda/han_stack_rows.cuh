// Rows and their sign bits, between memory and tiles.
#pragma once

#include "tile.cuh"

namespace hanops::cuda {

// Whether chunk m of a lane is within the features wherever a row starts: the padding to a power of two from 32 is less
// than a half of a longer row.
template <class Tile>
__device__ constexpr bool within(int m) {
  return Tile::T > 0 && Tile::E * Tile::T * Tile::W > 32 && 2 * m < Tile::K && Tile::K > 1;
}

// What is read beside rows, and added to them: see Rest.
struct Nothing {
  __device__ void read() {}
  template <class Elements>
  __device__ void add_to(Elements&) {}
};

// A lane's elements of R rows, as whole words that are not converted yet: a load that shares a branch with its
// conversion is waited for before the next one starts.
template <class Tile, class S, int R>
class RawRows {
 public:
  // See read_elements; `data` is at the lane's first column.
  template <bool kAll, class RowOf>
  __device__ __forceinline__ void read(const S* data, int64_t row_stride, RowOf row, unsigned valid, int column,
                                       int features, int stride) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const S* from = data + row(r) * row_stride;
#pragma unroll
      for (int m = 0; m < Tile::K; ++m) {
        if ((kAll || valid >> r & 1) && (within<Tile>(m) || column + m * stride < features)) {
          packets_[r][m] = read_packet<S, Tile::V>(from + m * stride);
        }
      }
    }
  }

  template <class A>
  __device__ __forceinline__ void convert_to(A (&x)[R][Tile::E]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = item<A, S>(packets_[r][e / Tile::V], e % Tile::V);
    }
  }

 private:
  Packet<S, Tile::V> packets_[R][Tile::K] = {};
};

// Reads a lane's elements of R rows, zeros beyond the features, where `valid` has a bit for the register; kAll: it has
// one for each. Register r's row is at `data` + row(r) * row_stride. Every load is issued before the first value is
// converted. What is read beside is among them, but where columns are read one by one: there registers are few.
template <class Tile, class S, bool kAll, int R, class A, class RowOf, class Beside>
__device__ __forceinline__ void read_elements(A (&x)[R][Tile::E], const S* data, int64_t row_stride, RowOf row,
                                              unsigned valid, int column, int features, int stride, bool vector,
                                              Beside beside) {
  data += column;
  if (vector) {
    RawRows<Tile, S, R> raw;
    raw.template read<kAll>(data, row_stride, row, valid, column, features, stride);
    beside.read();
    raw.convert_to(x);
    beside.add_to(x);
  } else {
    constexpr int kRows = Tile::E < 32 ? (R * Tile::E < 32 ? R : 32 / Tile::E) : 1;  // at once: registers are few
#pragma unroll
    for (int begin = 0; begin < R; begin += kRows) {
      S items[kRows][Tile::E] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const S* from = data + row(begin + r) * row_stride;
#pragma unroll
        for (int e = 0; e < Tile::E; ++e) {
          const int i = e / Tile::V * stride + e % Tile::V;
          if ((kAll || valid >> (begin + r) & 1) && column + i < features) {
            items[r][e] = read(from + i + HANOPS_BROKEN("load off by one"));
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < Tile::E; ++e) x[begin + r][e] = to<A>(items[r][e]);
      }
    }
    beside.read();
    beside.add_to(x);
  }
}

// The compiler would take stores of whole words apart, but for those of write_once.
template <class Tile, class S, class A>
__device__ __forceinline__ void write_row(S* row, const A (&x)[Tile::E], bool valid, int column, int features,
                                          int stride, bool vector) {
  row += column;
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    if (vector) {
      const auto chunk = packet<S, Tile::V>(x + m * Tile::V);
      if (valid && (within<Tile>(m) || column + m * stride < features)) {
        write_once(reinterpret_cast<Packet<S, Tile::V>*>(row + m * stride), chunk);
      }
    } else {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        const S value = rounded<S>(x[m * Tile::V + j]);
        if (valid && column + m * stride + j < features) {
          write(row + m * stride + j + HANOPS_BROKEN("store off by one"), value);
        }
      }
    }
  }
}

template <class S>
__device__ __forceinline__ const S* row_of(const Rows& rows, int64_t group, int64_t row) {
  return static_cast<const S*>(rows.data) + group * rows.group_stride + row * rows.row_stride;
}

// A tile's rows of type S, all of which are there; kWords: in whole words, where these rows allow it.
template <class Tile, class S, bool kWords, class A, class Beside>
__device__ __forceinline__ void read_rows_of(A (&x)[Tile::R][Tile::E], const ThreadGroup<Tile>& threads,
                                             const Stack& call, const Rows& rows, int64_t group, int64_t first,
                                             int column, int stride, Beside beside) {
  const auto row = [&](int r) { return threads.row(r); };
  read_elements<Tile, S, true>(x, row_of<S>(rows, group, first), rows.row_stride, row, 0, column, call.features, stride,
                               kWords && rows.vector >= Tile::V, beside);
}

template <class Tile, class A>
__device__ __forceinline__ void read_rows(A (&x)[Tile::R][Tile::E], const ThreadGroup<Tile>& threads, const Stack& call,
                                          const Rows& rows, int64_t group, int64_t first, int column, int stride) {
  with_type<A>(call.type, [&](auto type) {
    read_rows_of<Tile, decltype(type), true>(x, threads, call, rows, group, first, column, stride, Nothing());
  });
}

template <class Tile, class A>
__device__ __forceinline__ void write_rows(void* out, const A (&x)[Tile::R][Tile::E], const ThreadGroup<Tile>& threads,
                                           const Stack& call, int64_t group, int64_t first, unsigned valid, int column,
                                           int stride) {
  const bool vector = call.features % Tile::V == 0;  // `out` comes from the allocator
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    S* data = static_cast<S*>(out) + (group * call.rows + first) * call.features;
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      S* row = data + threads.row(r) * unsigned(call.features);
      write_row<Tile>(row, x[r], valid >> r & 1, column, call.features, stride, vector);
    }
  });
}

// Zeros for the rows of the registers that `kept` has no bit for.
template <class Tile, class A>
__device__ __forceinline__ void clear_rows(A (&x)[Tile::R][Tile::E], unsigned kept) {
  if (kept == (1u << Tile::R) - 1) return;
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
    for (int e = 0; e < Tile::E; ++e) x[r][e] = kept >> r & 1 ? x[r][e] : A(0);
  }
}

// Asks for `bytes` from `begin` on in the L2 cache, each lane for its lines.
template <class Tile>
__device__ __forceinline__ void prefetch(const void* begin, int64_t bytes, const ThreadGroup<Tile>& threads) {
  const char* p = static_cast<const char*>(begin);
  for (int64_t i = int64_t(threads.lane()) * kLine; i < bytes; i += int64_t(threads.size()) * kLine)
    prefetch_line(p + i);
}

// Asks for a tile's rows, if the group has that tile, and they lie one behind another.
template <class Tile>
__device__ __forceinline__ void prefetch_rows(const ThreadGroup<Tile>& threads, const Stack& call, const Rows& rows,
                                              int64_t group, int64_t tile) {
  constexpr int kSize = 2;
  if (Tile::T == 0 || call.type == Type::kFloat32 || rows.row_stride != call.features ||
      (tile + 1) * Tile::R > call.rows)
    return;
  const int64_t element = group * rows.group_stride + tile * Tile::R * rows.row_stride;
  prefetch<Tile>(static_cast<const char*>(rows.data) + element * kSize, int64_t(Tile::R) * call.features * kSize,
                 threads);
}

// Where a lane finds its sign bits. Its chunks are 8 / K bits apart, and `shift` brings the bits of the first one to
// bit 8 / K - 1 of their bytes.
template <class Tile>
struct SignPlace {
  int byte, shift;
  __device__ SignPlace(int column, int sign_bytes) {
    const SignBit first = chunked_sign_bit(column, sign_bytes);
    byte = first.byte;
    shift = 8 / Tile::K - 1 - first.bit;
  }
};

template <int V>
using SignBytes = std::conditional_t<V == 4, uint32_t, std::conditional_t<V == 2, uint16_t, uint8_t>>;

// A lane's sign bits of a row and layer, as they lie in memory.
template <class Tile>
__device__ __forceinline__ unsigned read_signs(const uint8_t* bytes) {
  return read(reinterpret_cast<const SignBytes<Tile::V>*>(bytes));
}

// Reads the sign bits of one layer of a tile; row r's are at `bytes` + row(r) * row_stride. They are shifted to their
// place where they are used: here it would be a wait for each load.
template <class Tile>
__device__ __forceinline__ void read_tile_signs(unsigned (&signs)[Tile::R], const ThreadGroup<Tile>& threads,
                                                const uint8_t* bytes, unsigned row_stride) {
  unsigned offsets[Tile::R];
  threads.row_offsets(offsets, row_stride);
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) signs[r] = read_signs<Tile>(bytes + offsets[r]);
}

template <class Tile>
__device__ __forceinline__ void write_signs(uint8_t* bytes, const unsigned (&signs)[Tile::V]) {
  static_assert(Tile::K == 8);
  unsigned word = signs[0];
  if constexpr (Tile::V >= 2) word = __byte_perm(word, signs[1], 0x0040);
  if constexpr (Tile::V == 4) word = __byte_perm(word, __byte_perm(signs[2], signs[3], 0x0040), 0x5410);
  write(reinterpret_cast<SignBytes<Tile::V>*>(bytes), static_cast<SignBytes<Tile::V>>(word));
}

// Writes the sign bits of one layer of a tile from the registers that `valid` has a bit for; row r's go to `bytes` +
// row(r) * row_stride.
template <class Tile>
__device__ __forceinline__ void write_tile_signs(uint8_t* bytes, const ThreadGroup<Tile>& threads, unsigned row_stride,
                                                 unsigned valid, const unsigned (&signs)[Tile::R][Tile::V]) {
  unsigned offsets[Tile::R];
  threads.row_offsets(offsets, row_stride);
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) {
    if (valid >> r & 1) write_signs<Tile>(bytes + offsets[r], signs[r]);
  }
}

template <int N, class A>
__device__ __forceinline__ bool has_nonzero(const A (&x)[N]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < N; ++i) found |= x[i] != A(0);  // NaN is not 0
  return found;
}

// The registers whose rows have an element that is not 0.
template <class Tile, class A>
__device__ __forceinline__ unsigned nonzero_rows(const A (&x)[Tile::R][Tile::E], ThreadGroup<Tile>& threads) {
  unsigned registers = 0;
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) registers |= has_nonzero(x[r]) ? 1u << r : 0;
  return threads.registers(threads.join(threads.registers(registers)));
}

}  // namespace hanops::cuda
