// Rows and their sign bits, between memory and tiles.
#pragma once

#include "tile.cuh"

namespace hanops::cuda {

// Reads a lane's elements of the rows in the registers that `valid` has a bit for, zeros into the others; register r's
// row is at `data` + row(r) * row_stride. Every load is issued before the first value is converted, from whole words: a
// load that shares a branch with its conversion is waited for before the next one starts.
template <class Tile, class S, int R, class A, class RowOf>
__device__ __forceinline__ void read_elements(A (&x)[R][Tile::E], const S* data, int64_t row_stride, RowOf row,
                                              unsigned valid, int column, int features, int stride, bool vector) {
  if (vector) {
    Packet<S, Tile::V> packets[R][Tile::K] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const S* from = data + row(r) * row_stride + column;
#pragma unroll
      for (int m = 0; m < Tile::K; ++m) {
        if (valid >> r & 1 && column + m * stride < features)
          packets[r][m] = read_packet<S, Tile::V>(from + m * stride);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = item<A, S>(packets[r][e / Tile::V], e % Tile::V);
    }
  } else {
    constexpr int kRows = Tile::E < 32 ? (R * Tile::E < 32 ? R : 32 / Tile::E) : 1;  // at once: registers are few
#pragma unroll
    for (int begin = 0; begin < R; begin += kRows) {
      S items[kRows][Tile::E] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const S* from = data + row(begin + r) * row_stride + column;
#pragma unroll
        for (int e = 0; e < Tile::E; ++e) {
          const int i = e / Tile::V * stride + e % Tile::V;
          if (valid >> (begin + r) & 1 && column + i < features) items[r][e] = read(from + i);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < Tile::E; ++e) x[begin + r][e] = to<A>(items[r][e]);
      }
    }
  }
}

template <class Tile, class S, class A>
__device__ __forceinline__ void write_row(S* row, const A (&x)[Tile::E], bool valid, int column, int features,
                                          int stride, bool vector) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    const int first = column + m * stride;
    S items[Tile::V];
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) items[j] = rounded<S>(x[m * Tile::V + j]);
    if (vector) {
      if (valid && first < features) write_vector(row + first, items);
    } else {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        if (valid && first + j < features) write(row + first + j, items[j]);
      }
    }
  }
}

template <class Tile, class A>
__device__ __forceinline__ void read_rows(A (&x)[Tile::R][Tile::E], const Team<Tile>& team, const Call& call,
                                          const Rows& rows, int64_t group, int64_t first, unsigned valid, int column,
                                          int stride) {
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride;
    const auto row = [&](int r) { return team.row(r); };
    read_elements<Tile, S>(x, data + first * rows.row_stride, rows.row_stride, row, valid, column, call.features,
                           stride, rows.vector >= Tile::V);
  });
}

template <class Tile, class A>
__device__ __forceinline__ void write_rows(void* out, const A (&x)[Tile::R][Tile::E], const Team<Tile>& team,
                                           const Call& call, int64_t group, int64_t first, unsigned valid, int column,
                                           int stride) {
  const bool vector = call.features % Tile::V == 0;  // `out` comes from the allocator
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      const int64_t row = first + team.row(r);
      S* data = static_cast<S*>(out) + (group * call.rows + row) * call.features;
      write_row<Tile>(data, x[r], valid >> r & 1, column, call.features, stride, vector);
    }
  });
}

// Where a lane finds its sign bits. Bit k of byte c is column k * (columns / 8) + c; a lane's chunks are 8 / K bits
// apart, and `shift` brings the bits of the first one to bit 8 / K - 1 of their bytes.
template <class Tile>
struct SignPlace {
  int byte, shift;
  __device__ SignPlace(int column, int sign_bytes)
      : byte(column % sign_bytes), shift(8 / Tile::K - 1 - column / sign_bytes) {}
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
__device__ __forceinline__ void read_tile_signs(unsigned (&signs)[Tile::R], const Team<Tile>& team,
                                                const uint8_t* bytes, unsigned row_stride) {
  unsigned offsets[Tile::R];
  team.row_offsets(offsets, row_stride);
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

// Writes the sign bits of one layer of a tile from the registers that `valid` has a bit for; register r's go to `bytes`
// + offsets[r].
template <class Tile>
__device__ __forceinline__ void write_tile_signs(uint8_t* bytes, const unsigned (&offsets)[Tile::R], unsigned valid,
                                                 const unsigned (&signs)[Tile::R][Tile::V]) {
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
__device__ __forceinline__ unsigned nonzero_rows(const A (&x)[Tile::R][Tile::E], Team<Tile>& team) {
  unsigned registers = 0;
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) registers |= has_nonzero(x[r]) ? 1u << r : 0;
  return team.registers(team.join(team.registers(registers)));
}

}  // namespace hanops::cuda
