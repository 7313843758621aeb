// The rest of y, what rounding to 16 bits took from it: between tiles and the signed bytes behind the sign bits.
//
// In units of 2^k, with k = 8 for bfloat16 and 5 for float16, it is the difference between the bits of y in float32 and
// those of the stored y, as integers: rounded, and the nearest from -128 to 127. A stored y that is not finite has
// none.
#pragma once

#include "han_stack_rows.cuh"

namespace hanops::cuda {

template <class S>
constexpr int kRestShift = std::is_same_v<S, __nv_bfloat16> ? 8 : 5;

// Where a lane's bytes of row `first` of a group begin.
__device__ __forceinline__ int64_t rest_offset(const Stack& call, int64_t group, int64_t first, int column) {
  return ((group * call.rows + first) * call.planes + call.abs_layers) * call.sign_bytes + column;
}

template <class S>
__device__ __forceinline__ int rest_of(float y) {
  const unsigned stored = __float_as_uint(to<float>(rounded<S>(y)));
  const int difference = static_cast<int>(__float_as_uint(y) - stored);
  return (stored & 0x7f800000u) == 0x7f800000u ? 0 : (difference + (1 << (kRestShift<S> - 1))) >> kRestShift<S>;
}

// Writes the rest of a tile's rows from the registers that `valid` has a bit for, and zeros beyond the features: there
// y is 0, or not finite.
template <class Tile, class A>
__device__ __forceinline__ void write_rest(const A (&y)[Tile::R][Tile::E], const ThreadGroup<Tile>& threads,
                                           const ForwardCall& call, int64_t group, int64_t first, unsigned valid,
                                           int column, int stride) {
  uint8_t* bytes = call.signs + rest_offset(call, group, first, column);
  unsigned offsets[Tile::R];
  threads.row_offsets(offsets, call.sign_stride);
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    if constexpr (sizeof(S) == 2) {
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
        for (int m = 0; m < Tile::K; ++m) {
          int rest[4] = {};
#pragma unroll
          for (int j = 0; j < Tile::V; ++j) rest[j] = rest_of<S>(y[r][m * Tile::V + j]);
          const unsigned above = Tile::V == 4 ? packed_bytes(rest[2], rest[3], 0) : 0;
          const auto word = static_cast<SignBytes<Tile::V>>(packed_bytes(rest[0], rest[1], above));
          if (valid >> r & 1) write(reinterpret_cast<SignBytes<Tile::V>*>(bytes + offsets[r] + m * stride), word);
        }
      }
    }
  });
}

// The rest of a tile's rows of y, of type S, where there is one: of the registers that `valid` has a bit for.
template <class Tile, class S>
class Rest {
  static constexpr bool kMaybe = sizeof(S) == 2;

 public:
  __device__ Rest(const ThreadGroup<Tile>& threads, const BackwardCall& call, int64_t group, int64_t first,
                  unsigned valid, int column, int stride)
      : threads_(threads), call_(call), group_(group), first_(first), valid_(valid), column_(column), stride_(stride) {}

  __device__ __forceinline__ void read() {
    if constexpr (kMaybe) {
      if (!call_.rest) return;
      const uint8_t* bytes = call_.signs + rest_offset(call_, group_, first_, column_);
      unsigned offsets[Tile::R];
      threads_.row_offsets(offsets, call_.sign_stride);
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
        for (int m = 0; m < Tile::K; ++m) {
          if (valid_ >> r & 1) words_[r][m] = read_signs<Tile>(bytes + offsets[r] + m * stride_);
        }
      }
    }
  }

  // Beyond the features y stays 0, whatever bytes are there.
  template <class A>
  __device__ __forceinline__ void add_to(A (&y)[Tile::R][Tile::E]) const {
    if constexpr (kMaybe) {
      if (!call_.rest) return;
#pragma unroll
      for (int m = 0; m < Tile::K; ++m) {
        const int inside = call_.features - column_ - m * stride_;
        const unsigned kept = inside >= Tile::V ? ~0u : inside > 0 ? (1u << 8 * inside) - 1 : 0;
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
          for (int j = 0; j < Tile::V; ++j) {
            const int rest = static_cast<int8_t>((words_[r][m] & kept) >> 8 * j) * (1 << kRestShift<S>);
            A& value = y[r][m * Tile::V + j];
            value = __uint_as_float(__float_as_uint(value) + static_cast<unsigned>(rest));
          }
        }
      }
    }
  }

 private:
  const ThreadGroup<Tile>& threads_;
  const BackwardCall& call_;
  int64_t group_, first_;
  unsigned valid_;
  int column_, stride_;
  unsigned words_[kMaybe ? Tile::R : 1][kMaybe ? Tile::K : 1] = {};
};

// A tile's rows of y, all of which are there, with their rest.
template <class Tile, class A>
__device__ __forceinline__ void read_output(A (&y)[Tile::R][Tile::E], const ThreadGroup<Tile>& threads,
                                            const BackwardCall& call, int64_t group, int64_t first, int column,
                                            int stride) {
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    const Rest<Tile, S> rest(threads, call, group, first, ~0u, column, stride);
    read_rows_of<Tile, S, true>(y, threads, call, call.y, group, first, column, stride, rest);
  });
}

// A tile's rows of dy, and of y with their rest: all loads are issued before the first value is converted.
template <class Tile, class A>
__device__ __forceinline__ void read_gradient_and_output(A (&dy)[Tile::R][Tile::E], A (&y)[Tile::R][Tile::E],
                                                         const ThreadGroup<Tile>& threads, const BackwardCall& call,
                                                         int64_t group, int64_t first, int column, int stride) {
  with_type<A>(call.type, [&](auto type) {
    using S = decltype(type);
    Rest<Tile, S> rest(threads, call, group, first, ~0u, column, stride);
    if (call.dy.vector >= Tile::V && call.y.vector >= Tile::V) {
      const auto row = [&](int r) { return threads.row(r); };
      RawRows<Tile, S, Tile::R> raw_dy, raw_y;
      const auto read = [&](auto& raw, const Rows& rows) {
        const S* data = row_of<S>(rows, group, first) + column;
        raw.template read<true>(data, rows.row_stride, row, 0, column, call.features, stride);
      };
      read(raw_y, call.y);
      rest.read();
      read(raw_dy, call.dy);
      raw_y.convert_to(y);
      rest.add_to(y);
      raw_dy.convert_to(dy);
    } else {
      read_rows_of<Tile, S, false>(dy, threads, call, call.dy, group, first, column, stride, Nothing());
      read_rows_of<Tile, S, false>(y, threads, call, call.y, group, first, column, stride, rest);
    }
  });
}

}  // namespace hanops::cuda
