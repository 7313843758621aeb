// Device code of the Han stack: rows stay in registers through all layers, and the backward undoes each layer.
//
// A layer is z = x + a w + b, y = |z|, with w = u / |u| and a = -2 w . x. Backward, with c = -2 w . gz:
// x = z - b + a w, g = gz + c w, dw += c x - a gz, db += gz, where a is now -2 w . (z - b), since the reflection is its
// own inverse.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "plan.h"

extern __shared__ double hanops_shared[];  // the memory that the threads of a block share

namespace hanops::cuda {

// ---- memory: every access goes through read and write, which the emulator in tests/ replaces by checked ones

#ifdef HANOPS_CUDA_EMULATOR
using emulator::read;
using emulator::write;
using emulator::xor_and;
#else
template <class T>
__device__ __forceinline__ T read(const T* p) {
  return *p;
}

template <class T>
__device__ __forceinline__ void write(T* p, T value) {
  *p = value;
}

// x ^ (y & z) in one instruction; left to itself the compiler shares y & z, which then is one more.
__device__ __forceinline__ unsigned xor_and(unsigned x, unsigned y, unsigned z) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0x78;" : "=r"(result) : "r"(x), "r"(y), "r"(z));
  return result;
}
#endif

template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T items[N];
};

template <int N, class T>
__device__ __forceinline__ void read_vector(T (&out)[N], const T* p) {
  const auto vector = read(reinterpret_cast<const Vector<T, N>*>(p));
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = vector.items[i];
}

template <int N, class T>
__device__ __forceinline__ void write_vector(T* p, const T (&values)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.items[i] = values[i];
  write(reinterpret_cast<Vector<T, N>*>(p), vector);
}

// ---- numbers

template <class A, class S>
__device__ __forceinline__ A to(S value) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>)
    return __bfloat162float(value);
  else if constexpr (std::is_same_v<S, __half>)
    return __half2float(value);
  else
    return static_cast<A>(value);
}

template <class S, class A>
__device__ __forceinline__ S rounded(A value) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<S, __half>)
    return __float2half_rn(value);
  else
    return static_cast<S>(value);
}

// Calls f with a value of the type that tensors hold. Arithmetic on float64 reads float64 and float32 parameters.
template <class A, class F>
__device__ __forceinline__ void with_type(Type type, F f) {
  if constexpr (std::is_same_v<A, double>) {
    if (type == Type::kFloat64)
      f(double());
    else
      f(float());
  } else {
    if (type == Type::kFloat32)
      f(float());
    else if (type == Type::kBFloat16)
      f(__nv_bfloat16());
    else
      f(__half());
  }
}

__device__ __forceinline__ unsigned high_word(float x) { return __float_as_uint(x); }
__device__ __forceinline__ unsigned high_word(double x) { return static_cast<unsigned>(__double2hiint(x)); }

// Returns x, or -x where the highest bit of `word` is set.
__device__ __forceinline__ float flipped(float x, unsigned word) {
  return __uint_as_float(xor_and(__float_as_uint(x), word, 0x80000000u));
}
__device__ __forceinline__ double flipped(double x, unsigned word) {
  return __hiloint2double(static_cast<int>(xor_and(high_word(x), word, 0x80000000u)), __double2loint(x));
}

struct Add {
  template <class A>
  __device__ A operator()(A x, A y) const {
    return x + y;
  }
};

struct Largest {
  template <class A>
  __device__ A operator()(A x, A y) const {
    return fmax(x, y);
  }
};

// ---- tiles and teams

// A team of lanes holds kR rows: kT lanes of a warp, or kW whole warps. Each lane owns, of every row, kK chunks of kV
// columns. kT = 0 leaves the lanes and warps to the call.
template <class Arithmetic, int kR, int kK, int kV, int kT, int kW>
struct Tile {
  using A = Arithmetic;
  static constexpr int R = kR, K = kK, V = kV, T = kT, W = kW;
  static constexpr int E = K * V;                         // elements of a row in a lane
  static constexpr int F = T == 0 ? 1 : (R < T ? R : T);  // rows that a sum over lanes folds
  __device__ static int columns(const Call& call) { return T ? E * T * W : call.columns; }
  static constexpr int kThreads = T == 0 ? 512 : W == 1 ? 128 : 32 * W;  // of a block, at most
};

// The lanes that hold the same rows, and sums over them.
//
// Registers hold rows in an order that depends on the lane: register r of a lane is row r ^ turn(). Two lanes whose
// turns differ in one bit then exchange each other's rows without a select: see reduce().
template <class Tile>
class Team {
  using A = typename Tile::A;
  static constexpr int F = Tile::F;

 public:
  // exchange: memory of the block for 2 * warps * values, where a team has more than one warp.
  __device__ Team(unsigned lanes, unsigned warps, A* exchange) : lanes_(lanes), warps_(warps), exchange_(exchange) {}

  __device__ unsigned lanes() const { return Tile::T ? Tile::T : lanes_; }  // of a warp
  __device__ unsigned warps() const { return Tile::T ? Tile::W : warps_; }
  __device__ unsigned size() const { return lanes() * warps(); }
  __device__ unsigned lane() const { return threadIdx.x % size(); }
  __device__ unsigned index() const { return threadIdx.x / size(); }
  __device__ unsigned count() const { return blockDim.x / size(); }
  __device__ unsigned row(unsigned r) const { return r ^ turn(); }

  // Sums v[i] over the team and multiplies by `factor`; i % R is the register of a row. Every lane gets the sums of its
  // own rows.
  template <int N>
  __device__ void sum(A (&v)[N], A factor = 1) {
    reduce(v, Add(), factor);
  }

  template <int N, class Op>
  __device__ void reduce(A (&v)[N], Op op, A factor = 1) {
    // Fold: lanes h steps apart keep one half each of F rows. Lane l's v[i] and lane l ^ h's v[i + h] are one row.
#pragma unroll
    for (int bit = 4; bit >= 0; --bit) {
      const int h = 1 << bit;
      if (h >= F) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i % F < h) v[i] = op(v[i], __shfl_xor_sync(~0u, v[i + h < N ? i + h : i], h * step()));
      }
    }
    for (unsigned s = step() / 2; s > 0; s /= 2) {
#pragma unroll
      for (int i = 0; i < N; i += F) v[i] = op(v[i], __shfl_xor_sync(~0u, v[i], s));
    }
    if (warps() > 1) reduce_warps(v, op);
#pragma unroll
    for (int i = 0; i < N; i += F) v[i] *= factor;
    // Unfold.
#pragma unroll
    for (int bit = 0; bit < 5; ++bit) {
      const int h = 1 << bit;
      if (h >= F) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i % F < h && i + h < N) v[i + h] = __shfl_xor_sync(~0u, v[i], h * step());
      }
    }
  }

 private:
  __device__ unsigned step() const { return lanes() / F; }
  __device__ unsigned turn() const { return threadIdx.x % lanes() / step(); }

  // Two halves of the memory take turns, so that one barrier is enough: who writes a half again has met everyone
  // after they read it.
  template <int N, class Op>
  __device__ void reduce_warps(A (&v)[N], Op op) {
    A* half = exchange_ + half_ * warps() * N;
    const unsigned warp = lane() / 32;
    if (threadIdx.x % 32 % step() == 0) {
#pragma unroll
      for (int i = 0; i < N; i += F) write(half + warp * N + i + turn(), v[i]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i += F) {
      v[i] = read(half + i + turn());
      for (unsigned other = 1; other < warps(); ++other) v[i] = op(v[i], read(half + other * N + i + turn()));
    }
    half_ ^= 1;
  }

  unsigned lanes_, warps_;
  A* exchange_;
  int half_ = 0;
};

// ---- one layer of a lane's elements; w, b and next point at the lane's first column, chunks are `stride` apart

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

// ---- rows and sign bits in memory

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

// What parameter_gradients needs of a row and layer.
template <class A>
__device__ __forceinline__ void write_coefficients(const Call& call, int64_t row, int layer, A c, A a) {
  write_vector(static_cast<A*>(call.coefficients) + (row * call.layers + layer) * 2, {c, a});
}

// ---- parameters: packed before, finished after

// A team of no tile: lanes that share a layer's parameters.
template <class A>
using Crew = Team<Tile<A, 1, 1, 1, 0, 0>>;

// Packs w and b of one layer, padded with zeros, and |u| as two factors, the first of which is its largest element.
template <class A>
__device__ void pack_layer(Crew<A>& crew, const Call& call, int64_t layer, A* packed, A* norms) {
  with_type<A>(call.parameter_type, [&](auto type) {
    using S = decltype(type);
    const S* u = static_cast<const S*>(call.u) + layer * call.features;
    const S* b = call.b ? static_cast<const S*>(call.b) + layer * call.features : nullptr;
    A largest[1] = {}, squares[1] = {};
    for (int i = crew.lane(); i < call.features; i += crew.size()) {
      largest[0] = fmax(largest[0], fabs(to<A>(read(u + i))));
    }
    crew.reduce(largest, Largest());
    const A scale = largest[0] == 0 ? A(1) : largest[0];
    for (int i = crew.lane(); i < call.features; i += crew.size()) {
      const A part = to<A>(read(u + i)) / scale;
      squares[0] += part * part;
    }
    crew.sum(squares);
    const A norm = sqrt(squares[0]);
    const A factor = norm == 0 ? A(0) : A(1) / norm;
    for (int i = crew.lane(); i < call.columns; i += crew.size()) {
      const bool inside = i < call.features;
      // + 0: a reflector of zeros is +0 everywhere, and a missing bias -0, so that neither changes the sign of a 0.
      write(packed + i, inside ? to<A>(read(u + i)) / scale * factor + A(0) : A(0));
      write(packed + call.columns + i, !b ? -A(0) : inside ? to<A>(read(b + i)) : A(0));
    }
    if (crew.lane() == 0) {
      write(norms, scale);
      write(norms + 1, norm);
    }
  });
}

// Adds up the partial sums of one layer and takes du and db from them.
template <class A>
__device__ void finish_layer(Crew<A>& crew, const Call& call, int64_t group, int layer, const A* partials, int parts,
                             const A* packed, const A* norms) {
  const int64_t part_length = int64_t(call.layers) * 2 * call.columns;
  const A* sums = partials + group * parts * part_length + int64_t(layer) * 2 * call.columns;
  const auto sum = [&](int column) {
    A total = 0;
    for (int part = 0; part < parts; ++part) total += read(sums + part * part_length + column);
    return total;
  };
  with_type<A>(call.parameter_type, [&](auto type) {
    using S = decltype(type);
    const int64_t offset = (group * call.layers + layer) * call.features;
    if (call.du) {
      A along[1] = {};
      for (int i = crew.lane(); i < call.features; i += crew.size()) along[0] += sum(i) * read(packed + i);
      crew.sum(along);
      const A scale = read(norms), norm = read(norms + 1);
      for (int i = crew.lane(); i < call.features; i += crew.size()) {
        const A across = sum(i) - along[0] * read(packed + i);
        write(static_cast<S*>(call.du) + offset + i, rounded<S>(norm == 0 ? A(0) : across / norm / scale));
      }
    }
    if (call.db) {
      for (int i = crew.lane(); i < call.features; i += crew.size()) {
        write(static_cast<S*>(call.db) + offset + i, rounded<S>(sum(call.columns + i)));
      }
    }
  });
}

template <class A>
__device__ __forceinline__ A* shared_memory() {
  return reinterpret_cast<A*>(hanops_shared);
}

// One block for each layer of each group.
template <class A>
__global__ void prepare(const Call call) {
  Crew<A> crew(32, blockDim.x / 32, shared_memory<A>());
  const int64_t layer = blockIdx.x;
  pack_layer<A>(crew, call, layer, static_cast<A*>(call.packed) + layer * 2 * call.columns,
                static_cast<A*>(call.norms) + layer * 2);
}

// One block for each layer of each group.
template <class A>
__global__ void finish(const Call call) {
  Crew<A> crew(32, blockDim.x / 32, shared_memory<A>());
  const int64_t layer = blockIdx.x;
  const A* sums = static_cast<const A*>(call.totals ? call.totals : call.partials);
  finish_layer<A>(crew, call, layer / call.layers, layer % call.layers, sums, call.totals ? 1 : call.parts,
                  static_cast<const A*>(call.packed) + layer * 2 * call.columns,
                  static_cast<const A*>(call.norms) + layer * 2);
}

constexpr int kSlices = 32;  // of the parts, each with a warp

// A block adds up 32 columns of the partial sums of a group: each warp a slice of the parts, then the first all slices.
template <class A>
__global__ void __launch_bounds__(32 * kSlices) sum_parts(const Call call) {
  A* slices = shared_memory<A>();
  const int64_t length = int64_t(call.layers) * 2 * call.columns;
  const int64_t blocks = length / 32;
  const int64_t group = blockIdx.x / blocks, column = blockIdx.x % blocks * 32 + threadIdx.x % 32;
  const int slice = threadIdx.x / 32;
  const A* partials = static_cast<const A*>(call.partials) + group * call.parts * length + column;
  A total = 0;
#pragma unroll 4
  for (int part = slice; part < call.parts; part += kSlices) total += read(partials + part * length);
  write(slices + threadIdx.x, total);
  __syncthreads();
  if (slice > 0) return;
  for (int other = 1; other < kSlices; ++other) total += read(slices + other * 32 + threadIdx.x);
  write(static_cast<A*>(call.totals) + group * length + column, total);
}

// The packed parameters of a group: from `prepare`, or packed by this block into its own memory at `place`.
template <class Tile>
struct Packed {
  using A = typename Tile::A;
  const A *layers, *norms;

  __device__ Packed(const Call& call, int64_t group, A* place) {
    const int64_t first = group * call.layers, stride = 2 * call.columns;
    layers = static_cast<const A*>(call.packed) + first * stride;
    norms = static_cast<const A*>(call.norms) + first * 2;
    if constexpr (Tile::T == 0) {
      if (!call.pack_here) return;
      A* own_norms = place + call.layers * stride;
      Crew<A> warp(32, 1, nullptr);
      for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
        pack_layer<A>(warp, call, first + layer, place + layer * stride, own_norms + 2 * layer);
      }
      __syncthreads();
      layers = place;
      norms = own_norms;
    }
  }
};

// ---- rows in registers

// One layer of a tile; a holds -2 w . x of this layer before, and of the next one after.
template <class Tile, bool kAbs, bool kSave, class A>
__device__ __forceinline__ void forward_layer(A (&x)[Tile::R][Tile::E], A (&a)[Tile::R], Team<Tile>& team,
                                              const Call& call, const A* layers, int layer, uint8_t* signs,
                                              int64_t sign_rows) {
  const int column = Tile::V * team.lane(), columns = Tile::columns(call), stride = columns / 8;
  const A* w = layers + int64_t(layer) * 2 * columns + column;
  const bool last = layer + 1 == call.layers;
  A dot[Tile::R] = {};
  unsigned bits[Tile::R][Tile::V] = {};
  reflect<Tile, kAbs, kSave>(x, a, dot, bits, w, w + columns, last ? w : w + 2 * columns, stride);
  if (kSave && layer < call.abs_layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
      if (team.row(r) < sign_rows) {
        uint8_t* row = signs + (int64_t(team.row(r)) * call.abs_layers + layer) * stride;
        write_signs<Tile>(row, column, bits[r]);
      }
    }
  }
  if (last) return;
  team.sum(dot, A(-2));
#pragma unroll
  for (int r = 0; r < Tile::R; ++r) a[r] = dot[r];
}

// A tile for each team: x in, y and the sign bits out.
template <class Tile, bool kSave>
__global__ void __launch_bounds__(Tile::kThreads, 1) forward(const Call call) {
  using A = typename Tile::A;
  A* memory = shared_memory<A>();
  Team<Tile> team(call.lanes, call.warps, memory);
  const int64_t group = blockIdx.x / call.blocks, block = blockIdx.x % call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * Tile::R : memory);
  const int64_t first = (block * team.count() + team.index()) * Tile::R;
  const int column = Tile::V * team.lane(), stride = Tile::columns(call) / 8;

  A x[Tile::R][Tile::E], a[Tile::R] = {};
  read_rows<Tile>(x, team, call, call.x, group, first, column, stride);
  add_dots<Tile>(x, a, packed.layers + column, stride);
  team.sum(a, A(-2));
  uint8_t* signs = call.signs + (group * call.rows + first) * call.abs_layers * stride;
  const int64_t sign_rows = call.rows - first;
  forward_layer<Tile, false, kSave>(x, a, team, call, packed.layers, 0, signs, sign_rows);
  for (int layer = 1; layer < call.layers; ++layer) {
    forward_layer<Tile, true, kSave>(x, a, team, call, packed.layers, layer, signs, sign_rows);
  }
  if (call.abs_layers == call.layers) {
#pragma unroll
    for (int r = 0; r < Tile::R; ++r) {
#pragma unroll
      for (int e = 0; e < Tile::E; ++e) x[r][e] = fabs(x[r][e]);
    }
  }
  write_rows<Tile>(call.y.data, x, team, call, group, first, column, stride);
}

// Tiles back through all layers. Each team takes every parts-th tile of a group and has partial sums of its own, so
// that an address has one writer and sums have one order. kX: du is needed, and the activations are rebuilt. kSums:
// this kernel sums dw and db; otherwise it keeps the coefficients c and a of every row and layer for
// parameter_gradients.
template <class Tile, bool kX, bool kSums>
__global__ void __launch_bounds__(Tile::kThreads, 1) backward(const Call call) {
  using A = typename Tile::A;
  constexpr int kDots = kX ? 2 * Tile::R : Tile::R;
  A* memory = shared_memory<A>();
  Team<Tile> team(call.lanes, call.warps, memory);
  const int64_t group = blockIdx.x / call.blocks;
  const Packed<Tile> packed(call, group, team.warps() > 1 ? memory + 2 * team.warps() * kDots : memory);
  const int columns = Tile::columns(call), stride = columns / Tile::K, sign_bytes = columns / 8;
  const int column = Tile::V * team.lane();
  const int64_t part = int64_t(blockIdx.x % call.blocks) * team.count() + team.index();
  const int64_t parts = int64_t(call.blocks) * team.count();
  const int64_t part_length = int64_t(call.layers) * 2 * columns;
  A* sums = kSums ? static_cast<A*>(call.partials) + (group * parts + part) * part_length + column : nullptr;
  const SignPlace<Tile> place(column, sign_bytes);

  // All teams of a block take part in every round, the last ones perhaps with no rows.
  for (int64_t round = 0; (round * parts + part - team.index()) * Tile::R < call.rows; ++round) {
    const int64_t first = (round * parts + part) * Tile::R;
    const auto rows = static_cast<unsigned>(max(int64_t{0}, min(call.rows - first, int64_t{Tile::R})));
    const uint8_t* layer_signs = call.signs + (group * call.rows + first) * call.abs_layers * sign_bytes + place.byte;
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    read_rows<Tile>(g, team, call, call.dy, group, first, column, stride);
    if constexpr (kX) read_rows<Tile>(x, team, call, call.y, group, first, column, stride);
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const A* w = packed.layers + int64_t(layer) * 2 * columns + column;
      unsigned signs[Tile::R];
      read_tile_signs<Tile>(signs, team, call, layer_signs + int64_t(layer) * sign_bytes, rows, layer, place);
      A dots[kDots] = {}, c[Tile::R], a[Tile::R];
      undo_abs<Tile, kX>(g, x, signs, dots, w, w + columns, stride);
      team.sum(dots, A(-2));
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        c[r] = dots[r];
        a[r] = kX ? dots[(kX ? Tile::R : 0) + r] : A(0);
      }
      if (!kSums && call.coefficients && team.lane() == 0) {
#pragma unroll
        for (int r = 0; r < Tile::R; ++r) {  // the first lane's turn is 0
          if (first + r < call.rows) write_coefficients(call, group * call.rows + first + r, layer, c[r], a[r]);
        }
      }
      undo_reflection<Tile, kX, kSums>(g, x, c, a, w, kSums ? sums + int64_t(layer) * 2 * columns : nullptr, columns,
                                       round == 0, stride);
    }
    if (call.dx) write_rows<Tile>(call.dx, g, team, call, group, first, column, stride);
  }
  if constexpr (Tile::T == 0) {
    if (!call.finish_here) return;
    __syncthreads();
    Crew<A> warp(32, 1, nullptr);
    for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
      finish_layer<A>(warp, call, group, layer, static_cast<const A*>(call.partials), call.parts,
                      packed.layers + int64_t(layer) * 2 * columns, packed.norms + 2 * layer);
    }
  }
}

// ---- du and db of rows too wide for the sums above: with the coefficients at hand, columns do not meet

template <class A>
using Slice = Tile<A, std::is_same_v<A, double> ? 4 : 16, 1, 4, 0, 0>;

// A warp takes 128 columns of every parts-th tile of a group.
template <class A, bool kX>
__global__ void __launch_bounds__(128) parameter_gradients(const Call call) {
  using Tile = Slice<A>;
  Team<Tile> team(32, 1, nullptr);
  const int slices = call.columns / (32 * Tile::V), sign_bytes = call.sign_bytes;
  const int column = (blockIdx.x % slices * 32 + team.lane()) * Tile::V;
  const int64_t group = blockIdx.x / slices / call.blocks, block = blockIdx.x / slices % call.blocks;
  const int64_t part = block * team.count() + team.index(), parts = int64_t(call.blocks) * team.count();
  const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns + column;
  A* sums = static_cast<A*>(call.partials) + (group * parts + part) * call.layers * 2 * call.columns + column;
  const SignPlace<Tile> place(column, sign_bytes);

  for (int64_t tile = part; tile == part || tile * Tile::R < call.rows; tile += parts) {
    const int64_t first = tile * Tile::R;
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    read_rows<Tile>(g, team, call, call.dy, group, first, column, 0);
    if constexpr (kX) read_rows<Tile>(x, team, call, call.y, group, first, column, 0);
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const int64_t offset = int64_t(layer) * 2 * call.columns;
      const A* w = layers + offset;
      A unused[kX ? 2 * Tile::R : Tile::R] = {}, c[Tile::R], a[Tile::R];
      unsigned signs[Tile::R];
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        const int64_t row = group * call.rows + first + r;
        const bool valid = first + r < call.rows;
        const uint8_t* row_signs = call.signs + (row * call.abs_layers + layer) * sign_bytes;
        signs[r] = valid && layer < call.abs_layers ? read_signs(row_signs + place.byte, place) : 0;
        A pair[2] = {};
        if (valid) read_vector(pair, static_cast<const A*>(call.coefficients) + (row * call.layers + layer) * 2);
        c[r] = pair[0];
        a[r] = pair[1];
      }
      undo_abs<Tile, kX>(g, x, signs, unused, w, w + call.columns, 0);
      undo_reflection<Tile, kX, true>(g, x, c, a, w, sums + offset, call.columns, tile == part, 0);
    }
  }
}

// ---- rows in memory: a block streams one row at a time, in a scratch row of its own, and a lane meets its own columns

template <class A>
using Stream = Tile<A, 1, 8, std::is_same_v<A, double> ? 2 : 4, 32, 8>;

template <class Tile, class A>
__device__ __forceinline__ void read_scratch(A (&x)[1][Tile::E], const A* row, int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A x_m[Tile::V];
    read_vector(x_m, row + m * stride);
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) x[0][m * Tile::V + j] = x_m[j];
  }
}

template <class Tile, class A>
__device__ __forceinline__ void write_scratch(A* row, const A (&x)[1][Tile::E], int stride) {
#pragma unroll
  for (int m = 0; m < Tile::K; ++m) {
    A x_m[Tile::V];
#pragma unroll
    for (int j = 0; j < Tile::V; ++j) x_m[j] = x[0][m * Tile::V + j];
    write_vector(row + m * stride, x_m);
  }
}

// One pass per layer updates a row and takes the next layer's dot product.
template <class A, bool kSave>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) forward_streaming(const Call call) {
  using Tile = Stream<A>;
  Team<Tile> team(0, 0, shared_memory<A>());
  const int stride = call.sign_bytes, begin = Tile::V * team.lane(), step = Tile::V * team.size();
  A* scratch = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * call.columns;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* w = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A a[1] = {};
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E];
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        const S* data = static_cast<const S*>(call.x.data) + group * call.x.group_stride + row * call.x.row_stride;
        read_row<Tile>(x[0], data, true, column, call.features, stride, call.x.vector >= Tile::V);
      });
      add_dots<Tile>(x, a, w + column, stride);
      write_scratch<Tile>(scratch + column, x, stride);
    }
    team.sum(a, A(-2));
    for (int layer = 0; layer < call.layers; ++layer) {
      const bool last = layer + 1 == call.layers, with_abs = layer < call.abs_layers;
      const A* next = last ? w : w + 2 * call.columns;
      A dot[1] = {};
      for (int column = begin; column < stride; column += step) {
        A x[1][Tile::E];
        unsigned bits[1][Tile::V] = {};
        read_scratch<Tile>(x, scratch + column, stride);
        reflect<Tile, false, kSave>(x, a, dot, bits, w + column, w + call.columns + column, next + column, stride);
        if (with_abs) {
#pragma unroll
          for (int e = 0; e < Tile::E; ++e) x[0][e] = fabs(x[0][e]);
          if (kSave) write_signs<Tile>(call.signs + (index * call.abs_layers + layer) * stride, column, bits[0]);
        }
        write_scratch<Tile>(scratch + column, x, stride);
      }
      w = next;
      team.sum(dot, A(-2));
      a[0] = dot[0];
    }
    for (int column = begin; column < stride; column += step) {
      A x[1][Tile::E];
      read_scratch<Tile>(x, scratch + column, stride);
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        write_row<Tile>(static_cast<S*>(call.y.data) + index * call.features, x[0], true, column, call.features, stride,
                        call.features % Tile::V == 0);
      });
    }
  }
}

// dx, and the coefficients for parameter_gradients. One pass per layer undoes the reflection of the layer above and
// this layer's absolute value, and takes this layer's dot products.
template <class A, bool kX>
__global__ void __launch_bounds__(Stream<A>::kThreads, 1) backward_streaming(const Call call) {
  using Tile = Stream<A>;
  Team<Tile> team(0, 0, shared_memory<A>());
  const int stride = call.sign_bytes, begin = Tile::V * team.lane(), step = Tile::V * team.size();
  A* scratch_g = static_cast<A*>(call.scratch) + int64_t(blockIdx.x) * 2 * call.columns;
  A* scratch_x = scratch_g + call.columns;
  for (int64_t index = blockIdx.x; index < call.groups * call.rows; index += gridDim.x) {
    const int64_t group = index / call.rows, row = index % call.rows;
    const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns;
    A c[1] = {}, a[1] = {};  // of the layer above
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const bool top = layer + 1 == call.layers;
      const A* w = layers + int64_t(layer) * 2 * call.columns;
      const uint8_t* signs = call.signs + (index * call.abs_layers + layer) * stride;
      A dots[kX ? 2 : 1] = {};
      for (int column = begin; column < stride; column += step) {
        A g[1][Tile::E], x[1][Tile::E];
        if (top) {
          with_type<A>(call.type, [&](auto type) {
            using S = decltype(type);
            const auto read_from = [&](A(&out)[Tile::E], const Rows& rows) {
              const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride + row * rows.row_stride;
              read_row<Tile>(out, data, true, column, call.features, stride, rows.vector >= Tile::V);
            };
            read_from(g[0], call.dy);
            if (kX) read_from(x[0], call.y);
          });
        } else {
          const A* above = w + 2 * call.columns + column;
          read_scratch<Tile>(g, scratch_g + column, stride);
          if (kX) read_scratch<Tile>(x, scratch_x + column, stride);
          undo_reflection<Tile, kX, false>(g, x, c, a, above, static_cast<A*>(nullptr), 0, false, stride);
        }
        const unsigned bits[1] = {layer < call.abs_layers ? read_signs<Tile>(signs + column, {column, stride}) : 0};
        undo_abs<Tile, kX>(g, x, bits, dots, w + column, w + call.columns + column, stride);
        write_scratch<Tile>(scratch_g + column, g, stride);
        if (kX) write_scratch<Tile>(scratch_x + column, x, stride);
      }
      team.sum(dots, A(-2));
      c[0] = dots[0];
      a[0] = kX ? dots[kX] : A(0);
      if (call.coefficients && team.lane() == 0) write_coefficients(call, index, layer, c[0], a[0]);
    }
    if (!call.dx) continue;
    for (int column = begin; column < stride; column += step) {
      A g[1][Tile::E], x[1][Tile::E];
      read_scratch<Tile>(g, scratch_g + column, stride);
      undo_reflection<Tile, false, false>(g, x, c, a, layers + column, static_cast<A*>(nullptr), 0, false, stride);
      with_type<A>(call.type, [&](auto type) {
        using S = decltype(type);
        write_row<Tile>(static_cast<S*>(call.dx) + index * call.features, g[0], true, column, call.features, stride,
                        call.features % Tile::V == 0);
      });
    }
  }
}

}  // namespace hanops::cuda
