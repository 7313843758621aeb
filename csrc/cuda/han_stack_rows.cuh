// Rows and their sign bits, between memory and tiles.
#pragma once

#include "tile.cuh"

namespace hanops::cuda {

// Reads a lane's elements of a row, zeros beyond the features.
template <class Tile, class S, class A>
__device__ __forceinline__ void read_row(A (&x)[Tile::E], const S* row, bool valid, int column, int features,
                                         int stride, bool vector) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    const int first = column + m * stride;
    S items[Tile::V] = {};
    if (vector) {
      if (valid && first < features) read_vector(items, row + first);
    } else {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        if (valid && first + j < features) items[j] = read(row + first + j);
      }
    }
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) x[m * Tile::V + j] = to<A>(items[j]);
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
                                          const Rows& rows, int64_t group, int64_t first, int column, int stride) {
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride;
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      const int64_t row = first + team.row(r);
      read_row<Tile>(x[r], data + row * rows.row_stride, row < call.rows, column, call.features, stride,
                     rows.vector >= Tile::V);
    }
  });
}

template <class Tile, class A>
__device__ __forceinline__ void write_rows(void* out, const A (&x)[Tile::R][Tile::E], const Team<Tile>& team,
                                           const Call& call, int64_t group, int64_t first, int column, int stride) {
  const bool vector = call.features % Tile::V == 0;  // `out` comes from the allocator
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      const int64_t row = first + team.row(r);
      S* data = static_cast<S*>(out) + (group * call.rows + row) * call.features;
      write_row<Tile>(data, x[r], row < call.rows, column, call.features, stride, vector);
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

template <class Tile>
__device__ __forceinline__ unsigned read_signs(const uint8_t* bytes, const SignPlace<Tile>& place) {
  return static_cast<unsigned>(read(reinterpret_cast<const SignBytes<Tile::V>*>(bytes))) << place.shift;
}

// Reads the sign bits of one layer of a tile; `bytes` points at the lane's in the tile's first row. Rows beyond `rows`
// are not read. The stride is a 32-bit argument, so that an address is one multiply-add.
template <class Tile>
__device__ __forceinline__ void read_tile_signs(unsigned (&signs)[Tile::R], const Team<Tile>& team, const Call& call,
                                                const uint8_t* bytes, unsigned rows, int layer,
                                                const SignPlace<Tile>& place) {
  const auto at = [&](int r) { return bytes + size_t(team.row(r)) * call.sign_stride; };
  if (layer >= call.abs_layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) signs[r] = 0;
  } else if (rows >= Tile::R) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) signs[r] = read_signs(at(r), place);
  } else {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) signs[r] = team.row(r) < rows ? read_signs(at(r), place) : 0;
  }
}

template <class Tile>
__device__ __forceinline__ void write_signs(uint8_t* layer, int byte, const unsigned (&signs)[Tile::V]) {
  static_assert(Tile::K == 8);
  unsigned word = signs[0];
  if constexpr (Tile::V >= 2) word = __byte_perm(word, signs[1], 0x0040);
  if constexpr (Tile::V == 4) word = __byte_perm(word, __byte_perm(signs[2], signs[3], 0x0040), 0x5410);
  write(reinterpret_cast<SignBytes<Tile::V>*>(layer + byte), static_cast<SignBytes<Tile::V>>(word));
}

}  // namespace hanops::cuda
