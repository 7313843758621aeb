// Tiles of rows, the threads that hold them, and sums over these threads.
//
// The letters, in all kernels' files:
//   A  type of the arithmetic: float, or double      S  type of x, y, dy and dx, or of the parameters, in memory
//   R  rows of a tile                                F  rows that a sum over lanes folds: see reduce()
//   T  lanes of a warp that share a row              W  warps that share a row
//   V  columns of a chunk: what a lane reads at once   K  chunks of a lane      E  columns of a lane: K * V
#pragma once

#include "values.cuh"

extern __shared__ double hanops_shared[];

namespace hanops::cuda {

// The memory that the threads of a block share.
template <class A>
__device__ __forceinline__ A* shared_memory() {
  return reinterpret_cast<A*>(hanops_shared);
}

// a or b, by value: `c ? v[i] : v[j]` would choose an address, and so put v into local memory.
template <class A>
__device__ __forceinline__ A chosen(bool first, A a, A b) {
  return first ? A(a) : A(b);
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

// The bits of ThreadGroup's swizzle, for F rows that are folded over T lanes, V columns each: those that leave whole
// stretches of 32 columns of a row to neighbouring lanes. Shorter ones would each be an access of its own to the L1
// cache.
constexpr unsigned swizzle_bits(int F, int T, int V) {
  unsigned bits = 0;
  for (int h = 1; h < F; h *= 2) bits |= h * (T / F) * V >= 32 ? h : 0;
  return bits;
}

// A thread group holds kR rows: kT lanes of a warp, or kW whole warps. Each lane owns, of every row, kK chunks
// of kV columns. kT = 0 leaves the lanes and warps to the call.
template <class Arithmetic, int kR, int kK, int kV, int kT, int kW>
struct Tile {
  using A = Arithmetic;
  static constexpr int R = kR, K = kK, V = kV, T = kT, W = kW;
  static constexpr int E = K * V;                         // elements of a row in a lane
  static constexpr int F = T == 0 ? 1 : (R < T ? R : T);  // rows that a sum over lanes folds
  static constexpr unsigned kSwizzle = swizzle_bits(F, T, V);
  __device__ static int columns(const Stack& call) { return T ? E * T * W : call.columns; }
  static constexpr int kThreads = T == 0 ? 512 : W == 1 ? 128 : 32 * W;  // of a block, at most
  // Small tiles leave room for twice the warps on an SM, in 128 registers.
  static constexpr bool kSmall = R * E <= 32;
  static constexpr int kWarps = kSmall ? 16 : 8;
  static constexpr int kBlocks = 32 * kWarps / kThreads;
  // Whether partial sums of dw and db go to the block's memory first. On an H100, 16 layers, bfloat16 and float32: at
  // 256 columns 0.87 and 0.78 of the time with sums in L2, at 4096 0.89 and 0.90, at 1024 1.07 and 1.02.
  static constexpr bool kBlockSums = T > 0 && (E * T * W <= 256 || E * T * W == 4096 || kSmall);
  // Whether a warp adds up the sums of its thread groups, each of one row, before any leave its registers.
  static constexpr bool kWarpSums = R == 1 && T == 0;
  // Whether the sums of the tiles before are read when a tile's own are there: registers are few.
  static constexpr bool kLateSums = kSmall && K > 1;
};

// Which rows a tile holds. The last tile of a group starts early enough to be full, so that no access needs a check,
// and leaves the rows that it shares with the tile before to that one. A group has at least R rows.
template <class Tile>
struct TileRows {
  int64_t first;
  unsigned own;  // bit r: row first + r is this tile's own

  __device__ TileRows(int64_t tile, int64_t rows) : first(min(tile * Tile::R, rows - Tile::R)) {
    constexpr unsigned kAll = (1u << Tile::R) - 1;
    const int64_t shared = tile * Tile::R - first;
    own = shared < Tile::R ? kAll << shared & kAll : 0;
  }
};

// The threads that hold the same rows: lanes of a warp, or whole warps. And sums over them.
//
// Registers are swizzled: register r of a lane holds row r ^ swizzle(). Two lanes whose swizzles differ in one bit then
// exchange each other's rows without a select: see reduce(). Neighbours have the same swizzle, so that together they
// access long stretches of one row.
template <class Tile>
class ThreadGroup {
  using A = typename Tile::A;
  static constexpr int F = Tile::F;

 public:
  // exchange: memory of the block for 2 * warps * values, the most that a sum takes, where a thread group has more than
  // one warp.
  __device__ ThreadGroup(unsigned lanes, unsigned warps, A* exchange, unsigned values)
      : lanes_(lanes), warps_(warps), exchange_(exchange), values_(values) {}

  __device__ unsigned lanes() const { return Tile::T ? Tile::T : lanes_; }  // of a warp
  __device__ unsigned warps() const { return Tile::T ? Tile::W : warps_; }
  __device__ unsigned size() const { return lanes() * warps(); }
  __device__ unsigned lane() const { return threadIdx.x % size(); }
  __device__ unsigned index() const { return threadIdx.x / size(); }
  __device__ unsigned count() const { return blockDim.x / size(); }
  __device__ unsigned row(unsigned r) const { return r ^ swizzle(); }

  // A set of rows, bit r for row r, as the set of this lane's registers: bit r for register r; and back.
  __device__ unsigned registers(unsigned rows) const {
#pragma unroll
    for (int bit = 0; bit < 4; ++bit) {
      constexpr unsigned kLow[] = {0x5555, 0x3333, 0x0f0f, 0x00ff};
      const int h = 1 << bit;
      if (h < Tile::R && swizzle() & h) rows = (rows & kLow[bit]) << h | (rows >> h & kLow[bit]);
    }
    return rows;
  }

  // row(r) * stride for each register, modulo 2^32: each from an earlier one, whose register differs in one bit.
  __device__ void row_offsets(unsigned (&offsets)[Tile::R], unsigned stride) const {
    offsets[0] = swizzle() * stride;
#pragma unroll
    for (unsigned r = 1; r < Tile::R; ++r) {
      const unsigned bit = r & -r;
      offsets[r] = offsets[r - bit] + (swizzle() & bit ? 0 - bit * stride : bit * stride);
    }
  }

  // Sums v[i] over the thread group and multiplies by `factor`; i % R is the register of a row. Every lane gets the
  // sums of its own rows.
  template <int N>
  __device__ void sum(A (&v)[N], A factor = 1) {
    reduce(v, Add(), factor);
  }

  // Joins the lanes' sets of rows; bit r is row r.
  __device__ unsigned join(unsigned rows) {
    for (unsigned s = lanes() / 2; s > 0; s /= 2) rows |= __shfl_xor_sync(~0u, rows, s);
    if (warps() > 1) {
      A* half = next_half();
      if (threadIdx.x % 32 == 0) write(half + lane() / 32, static_cast<A>(rows));
      __syncthreads();
      for (unsigned warp = 0; warp < warps(); ++warp) rows |= static_cast<unsigned>(read(half + warp));
    }
    return rows;
  }

  template <int N, class Op>
  __device__ void reduce(A (&v)[N], Op op, A factor = 1) {
    // Fold: lanes h steps apart keep one half each of F rows. Lane l's v[i] and lane l ^ h's v[i + h] are one row;
    // where lanes do not swizzle by h, the upper lane keeps v[i + h].
#pragma unroll
    for (int bit = 4; bit >= 0; --bit) {
      const int h = 1 << bit;
      if (h >= F) continue;
      const bool upper = !(Tile::kSwizzle & h) && place() & h;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i % F >= h || i + h >= N) continue;
        const A kept = chosen(upper, v[i + h], v[i]), given = chosen(upper, v[i], v[i + h]);
        v[i] = op(kept, __shfl_xor_sync(~0u, given, h * step()));
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
      const bool upper = !(Tile::kSwizzle & h) && place() & h;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i % F >= h || i + h >= N) continue;
        const A own = v[i], other = __shfl_xor_sync(~0u, own, h * step());
        v[i] = chosen(upper, other, own);
        v[i + h] = chosen(upper, own, other);
      }
    }
  }

 private:
  __device__ unsigned step() const { return lanes() / F; }
  __device__ unsigned place() const { return threadIdx.x % lanes() / step(); }  // the row that a fold leaves to a lane
  __device__ unsigned swizzle() const { return place() & Tile::kSwizzle; }

  // Two halves of the memory take turns, so that one barrier is enough: who writes a half again has met everyone
  // after they read it.
  __device__ A* next_half() {
    if (!HANOPS_BROKEN("unordered halves")) half_ ^= 1;
    return exchange_ + half_ * warps() * values_;
  }

  template <int N, class Op>
  __device__ void reduce_warps(A (&v)[N], Op op) {
    A* half = next_half();
    const unsigned warp = lane() / 32;
    if (threadIdx.x % 32 % step() == 0) {
#pragma unroll
      for (int i = 0; i < N; i += F) write(half + warp * N + i + place(), v[i]);
    }
    if (HANOPS_BROKEN("divergent barrier") && threadIdx.x < 32)
      __syncthreads();
    else if (!HANOPS_BROKEN("removed barrier"))
      __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i += F) {
      v[i] = read(half + i + place());
      for (unsigned other = 1; other < warps(); ++other) v[i] = op(v[i], read(half + other * N + i + place()));
    }
  }

  unsigned lanes_, warps_;
  A* exchange_;
  unsigned values_, half_ = 0;
};

}  // namespace hanops::cuda
