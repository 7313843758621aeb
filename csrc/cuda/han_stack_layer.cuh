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
__device__ __forceinline__ void add_dots(const A (&x)[Tile::R][Tile::E], A (&dot)[Tile::R], const A* w, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A w_m[Tile::V];
    read_vector(w_m, w + m * stride);
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) dot[r] += x[r][m * Tile::V + j] * w_m[j];
    }
  }
}

// x = [|]x[|] + a w + b, the sign bits of that, and the next layer's dot += |x| . next. The absolute value of x is
// taken by who uses it, where it costs nothing; kAbs: the layer below left it to this one.
template <class Tile, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void reflect(A (&x)[Tile::R][Tile::E], const A (&a)[Tile::R], A (&dot)[Tile::R],
                                        unsigned (&signs)[Tile::R][Tile::V], const A* w, const A* b, const A* next,
                                        int stride) {
#pragma unroll
  for (int m = Tile::K - 1; m >= 0; --m) {  // the last chunk's bit ends up highest
    A w_m[Tile::V], b_m[Tile::V], next_m[Tile::V];
    read_vector(w_m, w + m * stride);
    read_vector(b_m, b + m * stride);
    read_vector(next_m, next + m * stride);
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        A& x_j = x[r][m * Tile::V + j];
        const A z = a[r] * w_m[j] + (kAbs ? fabs(x_j) : x_j) + b_m[j];
        if constexpr (kSave) signs[r][j] = __funnelshift_l(high_word(z), signs[r][j], 1);
        dot[r] += fabs(z) * next_m[j];
        x_j = z;
      }
    }
  }
}

// Gradient and output of a layer back to before its absolute value and bias: g = +-g, x = +-x - b; and their dots.
template <class Tile, bool kX, class A>
__device__ __forceinline__ void undo_abs(A (&g)[Tile::R][Tile::E], A (&x)[kX ? Tile::R : 1][Tile::E],
                                         const unsigned (&signs)[Tile::R], A (&dots)[kX ? 2 * Tile::R : Tile::R],
                                         const A* w, const A* b, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A w_m[Tile::V], b_m[Tile::V];
    read_vector(w_m, w + m * stride);
    if constexpr (kX) read_vector(b_m, b + m * stride);
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        const int e = m * Tile::V + j;
        const int bit = 8 * j + (m + 1) * (8 / Tile::K) - 1;  // see SignPlace
        const unsigned sign = signs[r] << (31 - bit);
        g[r][e] = flipped(g[r][e], sign);
        dots[r] += g[r][e] * w_m[j];
        if constexpr (kX) {
          x[r][e] = flipped(x[r][e], sign) - b_m[j];
          dots[Tile::R + r] += x[r][e] * w_m[j];
        }
      }
    }
  }
}

// Back to before the reflection: x += a w, g += c w. kSums: adds dw and db of these rows to the sums at `sums`,
// or, where these are the first, stores them.
template <class Tile, bool kX, bool kSums, class A>
__device__ __forceinline__ void undo_reflection(A (&g)[Tile::R][Tile::E], A (&x)[kX ? Tile::R : 1][Tile::E],
                                                const A (&c)[Tile::R], const A (&a)[Tile::R], const A* w, A* sums,
                                                int columns, bool first, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A w_m[Tile::V], dw[Tile::V] = {}, db[Tile::V] = {};
    read_vector(w_m, w + m * stride);
    if constexpr (kSums) {
      if (!first) {
        if constexpr (kX) read_vector(dw, sums + m * stride);
        read_vector(db, sums + columns + m * stride);
      }
    }
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int j = 0; j < Tile::V; ++j) {
        const int e = m * Tile::V + j;
        if constexpr (kX) {
          x[r][e] += a[r] * w_m[j];
          dw[j] += c[r] * x[r][e];
          dw[j] -= a[r] * g[r][e];
        }
        db[j] += g[r][e];
        g[r][e] += c[r] * w_m[j];
      }
    }
    if constexpr (kSums) {
      if constexpr (kX) write_vector(sums + m * stride, dw);
      write_vector(sums + columns + m * stride, db);
    }
  }
}

}  // namespace hanops::cuda
