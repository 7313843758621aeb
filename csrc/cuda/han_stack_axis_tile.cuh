// Tiles where the features are not the last axis: positions lie in lanes, features in registers and warps.
//
// x is (groups, outer, features, inner), inner contiguous; a position is a pair (outer, inner), what a row is
// elsewhere. A lane holds V positions, a warp 32 V positions of kFeatures features, the warps of a block all features
// of these positions. So a dot product is a chain of multiply-adds in each lane and one sum over the warps, w and b are
// the same for all lanes, and a position's kFeatures sign bits are one word.
#pragma once

#include "kernels.h"
#include "rest.cuh"

namespace hanops::cuda {

constexpr int kFeatures = kAxisFeatures;
constexpr int kQuad = 4;  // features whose w and b are read at once

// Threads of a block, at most: as many as have the registers for a lane's elements of one tensor, or backward of two.
constexpr int axis_threads(int V, int tensors) { return V * tensors <= 2 ? 512 : 256; }

// A lane's elements of a warp's features.
template <int V>
using Elements = float[kFeatures][V];

// The warps of a block, and sums over them. kValues: of a lane, the most that a sum takes.
template <int kValues>
class AxisWarps {
 public:
  // memory: of the block, kFloats for each warp.
  static constexpr int kFloats = 2 * 32 * kValues;
  __device__ explicit AxisWarps(float* memory) : memory_(memory) {}

  __device__ unsigned lane() const { return threadIdx.x % 32; }
  __device__ unsigned count() const { return blockDim.x / 32; }
  __device__ int feature() const { return static_cast<int>(threadIdx.x / 32) * kFeatures; }  // the warp's first one

  // Sums v[i] of each lane over the warps, in the same order for all of them, and multiplies by `factor`. Every sum
  // is a barrier. Two halves of the memory take turns, as in ThreadGroup.
  template <int N>
  __device__ __forceinline__ void sum(float (&v)[N], float factor) {
    half_ ^= 1;
    float* half = memory_ + half_ * count() * (kFloats / 2) + lane() * N;
    if (count() > 1) write_vector(half + threadIdx.x / 32 * 32 * N, v);
    __syncthreads();
    if (count() > 1) {
      read_vector(v, half);
#pragma unroll 4
      for (unsigned other = 1; other < count(); ++other) {
        float more[N];
        read_vector(more, half + other * 32 * N);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += more[i];
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= factor;
  }

 private:
  float* memory_;
  unsigned half_ = 0;
};

// The w and b of a warp's features, in its part of the block's memory: of a few layers, fetched a layer ahead. Read
// from device memory where they are used, ptxas would hold as many of them as there are registers, and more.
class AxisParameters {
 public:
  // One slot is written while others are read, by lanes a layer behind too.
  static constexpr unsigned kSlots = kAxisSlots;
  static constexpr int kFloats = kSlots * 2 * kFeatures;  // of a warp

  __device__ AxisParameters(const Stack& call, unsigned group, float* memory)
      : call_(call), group_(group), memory_(memory + threadIdx.x / 32 * kFloats) {}

  __device__ __forceinline__ void fetch(int layer) {
    const float* from = static_cast<const float*>(call_.packed) +
                        (int64_t{group_} * call_.layers + layer) * 2 * call_.columns + threadIdx.x;
    w_ = read(from);
    b_ = read(from + call_.columns);
  }

  // Puts what was fetched into a slot. A barrier must follow before it is read.
  __device__ __forceinline__ void keep(unsigned slot) {
    float* to = memory_ + slot % kSlots * 2 * kFeatures + threadIdx.x % 32;
    write(to, w_);
    write(to + kFeatures, b_);
  }

  __device__ const float* w(unsigned slot) const { return memory_ + slot % kSlots * 2 * kFeatures; }
  __device__ const float* b(unsigned slot) const { return w(slot) + kFeatures; }

 private:
  const Stack& call_;
  unsigned group_;
  float* memory_;
  float w_, b_;
};

// A lane's positions: V side by side, where V divides the inner axis. Beyond the group's last ones they are those
// again, so that no read needs a check.
template <int V>
struct Positions {
  bool valid;  // they are there
  unsigned outer, inner;

  __device__ Positions(unsigned first, const Stack& call) {
    const unsigned size = call.inner, position = min(first, call.outer * size - V);
    valid = position == first;
    outer = position / size;
    inner = position - outer * size;
  }

  // Where they begin in memory whose outer positions are `stride` apart.
  __device__ int64_t offset(int64_t stride) const { return outer * stride + inner; }
};

// Asks for a tile's elements in the L2 cache, each lane for those of a feature. On an H100 that makes tensors of 16
// bits faster, forward 0.97 and backward 0.90 of the time, and such of 32 bits slower, 1.12 and 1.06.
template <int V>
__device__ __forceinline__ void prefetch_elements(const Stack& call, const Rows& rows, unsigned group, int64_t tile,
                                                  int feature) {
  constexpr int kSize = 2;
  const int64_t first = tile * 32 * V;
  if (call.type == Type::kFloat32 || first >= call.rows) return;
  const int own = feature + min(static_cast<int>(threadIdx.x % 32), call.features - feature - 1);
  const int64_t begin = group * rows.group_stride + own * rows.feature_stride;
#pragma unroll
  for (int k = 0; k <= V; ++k) {  // the last one where the others do not lie at the begin of a line
    const Positions<1> at(static_cast<unsigned>(first) + min(32 * k, 32 * V - 1), call);
    prefetch_line(static_cast<const char*>(rows.data) + (begin + at.offset(rows.row_stride)) * kSize);
  }
}

// The bits of a warp's sign words that are of features.
__device__ __forceinline__ unsigned bits_of_features(const Stack& call, int feature) {
  return call.features - feature >= kFeatures ? ~0u : (1u << (call.features - feature)) - 1;
}

// Zeros beyond the features.
template <int V>
__device__ __forceinline__ void clear_beyond(Elements<V>& x, const Stack& call, int feature) {
  const unsigned mask = bits_of_features(call, feature);
  if (mask == ~0u) return;
#pragma unroll
  for (unsigned e = 0; e < kFeatures; ++e) {
    const unsigned kept = 0 - (mask >> e & 1);  // comparisons would stay in registers for others
#pragma unroll
    for (int v = 0; v < V; ++v) x[e][v] = __uint_as_float(__float_as_uint(x[e][v]) & kept);
  }
}

// A lane's elements as they lie in memory, of type S. Beyond the features the last one is read again, without a branch.
template <int V, class S>
class RawElements {
 public:
  __device__ RawElements(const Rows& rows, unsigned group, const Positions<V>& at, int feature)
      : from_(reinterpret_cast<const char*>(static_cast<const S*>(rows.data) + group * rows.group_stride +
                                            feature * rows.feature_stride + at.offset(rows.row_stride))),
        stride_(static_cast<unsigned>(rows.feature_stride * sizeof(S))) {}

  // The caller issues every load before the first value is converted, see read_elements.
  __device__ __forceinline__ void read(unsigned e, unsigned last) {
    packets_[e] = read_packet<S, V>(reinterpret_cast<const S*>(from_ + uint64_t{min(e, last)} * stride_));
  }

  __device__ __forceinline__ void convert(Elements<V>& x) const {
#pragma unroll
    for (unsigned e = 0; e < kFeatures; ++e) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[e][v] = item<float, S>(packets_[e], v);
    }
  }

 private:
  const char* from_;
  unsigned stride_;
  Packet<S, V> packets_[kFeatures];
};

// The last of a warp's features, counted from its first one: where it is used, or else values made of it would be kept.
__device__ __forceinline__ unsigned last_feature(const Stack& call, int feature) {
  return pinned(static_cast<unsigned>(call.features - feature) - 1);
}

// Writes y or dx, which are packed.
template <int V>
__device__ __forceinline__ void write_elements(void* out, const Elements<V>& x, const Stack& call, unsigned group,
                                               const Positions<V>& at, int feature) {
  with_type<float>(call.type, [&](auto value) {
    using S = decltype(value);
    const int64_t inner = call.inner, outer = call.features * inner;
    S* to = static_cast<S*>(out) + group * call.outer * outer + feature * inner + at.offset(outer);
    const unsigned count = at.valid ? call.features - feature : 0;
#pragma unroll
    for (unsigned e = 0; e < kFeatures; ++e) {
      const auto values = packet<S, V>(x[e]);
      if (e < count) write_once(reinterpret_cast<Packet<S, V>*>(to), values);
      to += inner;
    }
  });
}

// Where a lane has its words of the signs: a word for each of its positions, in every plane.
template <int V, class Word>
struct SignWords {
  Word* data;     // of plane 0
  int64_t plane;  // a stride

  __device__ SignWords(const Stack& call, Word* signs, unsigned group, int feature, const Positions<V>& at) {
    plane = call.sign_bytes / 4 * int64_t{call.inner};
    const int64_t outer = call.planes * plane;
    data = signs + group * call.outer * outer + feature / kFeatures * int64_t{call.inner} + at.offset(outer);
  }
};

// Asks for a tile's sign words in the L2 cache, each lane for those of a plane.
template <int V>
__device__ __forceinline__ void prefetch_signs(const BackwardCall& call, unsigned group, int64_t tile, int feature) {
  const int64_t first = tile * 32 * V;
  if (call.type == Type::kFloat32 || first >= call.rows) return;
#pragma unroll
  for (int k = 0; k <= V; ++k) {
    const Positions<1> at(static_cast<unsigned>(first) + min(32 * k, 32 * V - 1), call);
    const SignWords<1, const unsigned> signs(call, reinterpret_cast<const unsigned*>(call.signs), group, feature, at);
    for (int plane = threadIdx.x % 32; plane < call.planes; plane += 32)
      prefetch_line(signs.data + plane * signs.plane);
  }
}

// Writes the rest of a tile's positions, see rest.cuh: a word holds four features' bytes.
template <int V>
__device__ __forceinline__ void write_rest(const Elements<V>& y, const ForwardCall& call, const Positions<V>& at,
                                           const SignWords<V, unsigned>& signs) {
  with_type<float>(call.type, [&](auto value) {
    using S = decltype(value);
    if constexpr (sizeof(S) == 2) {
#pragma unroll
      for (int p = 0; p < kRestPlanes; ++p) {
        unsigned words[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const auto rest = [&](int j) { return rest_of<S>(y[4 * p + j][v]); };
          words[v] = packed_bytes(rest(0), rest(1), packed_bytes(rest(2), rest(3), 0));
        }
        if (at.valid) write_vector(signs.data + (call.abs_layers + p) * signs.plane, words);
      }
    }
  });
}

// The rest of a tile's positions of y, of type S, where there is one.
template <int V, class S>
struct RawRest {
  static constexpr bool kMaybe = sizeof(S) == 2;
  unsigned words[kMaybe ? kRestPlanes : 1][V] = {};

  __device__ __forceinline__ void read(const BackwardCall& call, const SignWords<V, const unsigned>& signs) {
    if constexpr (kMaybe) {
      if (!call.rest) return;
#pragma unroll
      for (int p = 0; p < kRestPlanes; ++p) {
        read_vector(words[p], signs.data + (call.abs_layers + p) * signs.plane);
      }
    }
  }

  __device__ __forceinline__ void add_to(Elements<V>& y, const BackwardCall& call) const {
    if constexpr (kMaybe) {
      if (!call.rest) return;
#pragma unroll
      for (int e = 0; e < kFeatures; ++e) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int rest = static_cast<int8_t>(words[e / 4][v] >> 8 * (e % 4)) * (1 << kRestShift<S>);
          y[e][v] = __uint_as_float(__float_as_uint(y[e][v]) + static_cast<unsigned>(rest));
        }
      }
    }
  }
};

}  // namespace hanops::cuda
