// The arithmetic of one layer on a lane's elements, forward and back.
//
// A layer is z = x + a w + b, y = |z|, with w = u / |u| and a = -2 w . x. Backward, with c = -2 w . gz:
// x = z - b + a w, g = gz + c w, dw += c x - a gz, db += gz, where a is now -2 w . (z - b), since the reflection is its
// own inverse. Pointers to parameters point at the lane's first column; its chunks are `stride` apart.
#pragma once

#include "tile.cuh"

namespace hanops::cuda {

// dot += w . x
template <class Tile, class A>
__device__ __forceinline__ void add_dots(const A (&x)[Tile::R][Tile::E], A (&dot)[Tile::R], const A (&w)[Tile::E]) {
#pragma unroll
  for (int e = 0; e < Tile::E; ++e) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) dot[r] += x[r][e] * w[e];
  }
}

// A lane's elements of a parameter.
template <class Tile, bool kOnce = false, class A>
__device__ __forceinline__ void read_parameter(A (&out)[Tile::E], const A* p, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A chunk[Tile::V];
    read_vector<kOnce>(chunk, p + m * stride);
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) out[m * Tile::V + j] = chunk[j];
  }
}

template <class Tile, bool kOnce = false, class A>
__device__ __forceinline__ void write_parameter(A* p, const A (&values)[Tile::E], int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A chunk[Tile::V];
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) chunk[j] = values[m * Tile::V + j];
    write_vector<kOnce>(p + m * stride, chunk);
  }
}

// x = x + a w + b, its sign bits, and the next layer's dot += |x| . next; w becomes next. x is kept with its sign: |x|
// is an operand modifier of the instruction that reads it, and costs none of its own. kBelow: the layer below left its
// absolute value to this one. kAbs: this one takes its own, for the next; without, it is the dot product with x itself.
// A chunk's dot product is taken one chunk later, while the next w is read.
template <class Tile, bool kBelow, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void reflect(A (&x)[Tile::R][Tile::E], A (&w)[Tile::E], const A (&a)[Tile::R],
                                        A (&dot)[Tile::R], unsigned (&signs)[Tile::R][Tile::V], const A* b,
                                        const A* next, int stride) {
#pragma unroll
  for (int m = Tile::K - 1; m >= -1; --m) {  // the last chunk's bit ends up highest
    if (m >= 0) {
      A b_m[Tile::V], next_m[Tile::V];
      read_vector(b_m, b + m * stride + HANOPS_BROKEN("misaligned load"));
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
        for (int j = 0; j < Tile::V; ++j) {
          A& x_j = x[r][m * Tile::V + j];
          const A z = a[r] * w[m * Tile::V + j] + (kBelow ? fabs(x_j) : x_j) + b_m[j];
          if constexpr (kSave) signs[r][j] = __funnelshift_l(high_word(z), signs[r][j], 1);
          x_j = z;
        }
      }
      read_vector(next_m, next + m * stride);
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) w[m * Tile::V + j] = next_m[j];
    }
    if (m + 1 < Tile::K) {
#pragma unroll
      for (int e = (m + 1) * Tile::V; e < (m + 2) * Tile::V; ++e) {
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) dot[r] += (kAbs ? fabs(x[r][e]) : x[r][e]) * w[e];
      }
    }
  }
}

// Gradient and output of a layer back to before its absolute value and bias: g = +-g, x = +-x - b; and their dots.
// shift: of the sign bits, see SignPlace. mask: 0 where the words hold no sign bits.
template <class Tile, bool kX, class A>
__device__ __forceinline__ void undo_abs(A (&g)[Tile::R][Tile::E], A (&x)[kX ? Tile::R : 1][Tile::E],
                                         const unsigned (&signs)[Tile::R], int shift,
                                         A (&dots)[kX ? 2 * Tile::R : Tile::R], const A (&w)[Tile::E],
                                         const A (&b)[Tile::E], unsigned mask = kHighestBit) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        const int e = m * Tile::V + j;
        const int bit = 8 * j + (m + 1) * (8 / Tile::K) - 1;  // see SignPlace
        const unsigned sign = signs[r] << shift << (31 - bit);
        g[r][e] = flipped(g[r][e], sign, mask);
        dots[r] += g[r][e] * w[e];
        if constexpr (kX) {
          x[r][e] = flipped(x[r][e], sign, mask) - b[e];
          dots[Tile::R + r] += x[r][e] * w[e];
        }
      }
    }
  }
}

// A lane's elements of the sums of a layer's dw and db.
template <class Tile>
struct Sums {
  using A = typename Tile::A;
  A dw[Tile::E] = {}, db[Tile::E] = {};

  __device__ __forceinline__ void add(const Sums& other) {
#pragma unroll
    for (int e = 0; e < Tile::E; ++e) {
      dw[e] += other.dw[e];
      db[e] += other.db[e];
    }
  }

  // kOnce: not by way of the L1 cache.
  template <bool kX, bool kOnce>
  __device__ __forceinline__ void read(const A* at, int columns, int stride) {
    if constexpr (kX) read_parameter<Tile, kOnce>(dw, at, stride);
    read_parameter<Tile, kOnce>(db, at + columns, stride);
  }

  template <bool kX, bool kOnce>
  __device__ __forceinline__ void write(A* at, int columns, int stride) const {
    if constexpr (kX) write_parameter<Tile, kOnce>(at, dw, stride);
    write_parameter<Tile, kOnce>(at + columns, db, stride);
  }

  // Adds up those of thread groups of `lanes` lanes, for the whole warp.
  template <bool kX>
  __device__ __forceinline__ void add_groups(unsigned lanes) {
    for (unsigned s = lanes; s < 32; s *= 2) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) {
        if constexpr (kX) dw[e] += __shfl_xor_sync(~0u, dw[e], s);
        db[e] += __shfl_xor_sync(~0u, db[e], s);
      }
    }
  }

  // Adds to sums in memory, dw first: there are no registers for both.
  template <bool kX, bool kOnce>
  __device__ __forceinline__ void add_to(A* at, int columns, int stride) const {
    if constexpr (kX) add_values<kOnce>(at, dw, stride);
    add_values<kOnce>(at + columns, db, stride);
  }

 private:
  template <bool kOnce>
  __device__ __forceinline__ static void add_values(A* at, const A (&values)[Tile::E], int stride) {
    A total[Tile::E];
    read_parameter<Tile, kOnce>(total, at, stride);
#pragma unroll
    for (int e = 0; e < Tile::E; ++e) total[e] += values[e];
    write_parameter<Tile, kOnce>(at, total, stride);
  }
};

// Back to before the reflection: x += a w, g += c w; kSums: these rows' dw and db are added to `sums`.
template <class Tile, bool kX, bool kSums, class A>
__device__ __forceinline__ void undo_reflection(A (&g)[Tile::R][Tile::E], A (&x)[kX ? Tile::R : 1][Tile::E],
                                                const A (&c)[Tile::R], const A (&a)[Tile::R], const A (&w)[Tile::E],
                                                Sums<Tile>& sums) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        const int e = m * Tile::V + j;
        if constexpr (kX) {
          x[r][e] += a[r] * w[e];
          if constexpr (kSums) {
            sums.dw[e] += c[r] * x[r][e];
            sums.dw[e] -= a[r] * g[r][e];
          }
        }
        if constexpr (kSums) sums.db[e] += g[r][e];
        g[r][e] += c[r] * w[e];
      }
    }
  }
}

}  // namespace hanops::cuda
