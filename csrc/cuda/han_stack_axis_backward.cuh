// The backward's main kernel where the features are not the last axis: see han_stack_axis_tile.cuh.
#pragma once

#include "han_stack_axis_tile.cuh"
#include "partial_sums.cuh"

namespace hanops::cuda {

// What a thread has of the sums of dw and db: one feature, of all positions of a tile.
struct FeatureSums : Tile<float, 2, 1, 1, 0, 0> {
  static constexpr bool kBlockSums = true;
};

// Gradient and output of a layer back to before its absolute value and bias, and their dots: see undo_abs().
template <int V, bool kX>
__device__ __forceinline__ void undo_abs_positions(Elements<V>& g, Elements<V>& x, const unsigned (&signs)[V],
                                                   float (&dots)[kX ? 2 * V : V], const float* w, const float* b) {
#pragma unroll
  for (int q = 0; q < kFeatures; q += kQuad) {
    float w_q[kQuad], b_q[kQuad];
    read_vector(w_q, w + q);
    if constexpr (kX) read_vector(b_q, b + q);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const int e = q + j;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const unsigned sign = signs[v] << (31 - e);
        g[e][v] = flipped(g[e][v], sign, kHighestBit);
        dots[v] += g[e][v] * w_q[j];
        if constexpr (kX) {
          x[e][v] = flipped(x[e][v], sign, kHighestBit) - b_q[j];
          dots[V + v] += x[e][v] * w_q[j];
        }
      }
    }
  }
}

// Back to before the reflection, see undo_reflection(), and a layer's dw and db, which end up with feature l of the
// warp in lane l. Lanes h steps apart keep one half each of 2 h features; a half is folded before the other one is
// computed, so that few of them wait in registers.
template <int V, bool kX>
class UndoReflection {
 public:
  struct Sum {
    float dw, db;
  };

  __device__ UndoReflection(Elements<V>& g, Elements<V>& x, const float (&c)[V], const float (&a)[V], const float* w)
      : g_(g), x_(x), c_(c), a_(a), w_(w) {}

  template <int N = kFeatures, int First = 0>
  __device__ __forceinline__ Sum run() {
    if constexpr (N == kQuad) {
      float w_q[kQuad];
      read_vector(w_q, w_ + First);
      const Sum low = folded<1>(feature<First>(w_q[0]), feature<First + 1>(w_q[1]));
      return folded<2>(low, folded<1>(feature<First + 2>(w_q[2]), feature<First + 3>(w_q[3])));
    } else {
      const Sum low = run<N / 2, First>();
      return folded<N / 2>(low, run<N / 2, First + N / 2>());
    }
  }

 private:
  template <int E>
  __device__ __forceinline__ Sum feature(float w) {
    Sum sum = {0, 0};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float& g = g_[E][v];
      if constexpr (kX) {
        float& x = x_[E][v];
        x += a_[v] * w;
        sum.dw += c_[v] * x;
        sum.dw -= a_[v] * g;
      }
      sum.db += g;
      g += c_[v] * w;
    }
    return sum;
  }

  template <int H>
  __device__ __forceinline__ static float folded(float low, float high) {
    const bool upper = threadIdx.x & H;
    return (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, H);
  }

  template <int H>
  __device__ __forceinline__ static Sum folded(Sum low, Sum high) {
    return {kX ? folded<H>(low.dw, high.dw) : 0, folded<H>(low.db, high.db)};
  }

  Elements<V>&g_, &x_;
  const float (&c_)[V], (&a_)[V];
  const float* w_;
};

// Zeros for the positions that `kept` has no bit for.
template <int V>
__device__ __forceinline__ void clear_positions(Elements<V>& x, unsigned kept) {
  if (kept == (1u << V) - 1) return;
#pragma unroll
  for (int e = 0; e < kFeatures; ++e) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[e][v] = kept >> v & 1 ? x[e][v] : 0;
  }
}

// The positions that have an element that is not 0, NaN among them, in any of the warps' features.
template <int V>
__device__ __forceinline__ unsigned live_positions(const Elements<V>& g, AxisWarps<2 * V>& warps) {
  float found[V] = {};
#pragma unroll
  for (int e = 0; e < kFeatures; ++e) {
#pragma unroll
    for (int v = 0; v < V; ++v) found[v] = g[e][v] != 0 ? 1 : found[v];
  }
  warps.sum(found, 1);
  unsigned live = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) live |= found[v] != 0 ? 1u << v : 0;
  return live;
}

// Tiles back through all layers. Each block takes every blocks-th tile of a group and has partial sums of its own. kX:
// du is needed, and the activations are rebuilt.
template <int V, bool kX>
__global__ void __launch_bounds__(axis_threads(V, 2), 1) axis_backward(const BackwardCall call) {
  constexpr int kDots = kX ? 2 * V : V;
  using Warps = AxisWarps<2 * V>;
  float* memory = shared_memory<float>();
  Warps warps(memory);
  const int feature = warps.feature();
  const unsigned group = blockIdx.x / unsigned(call.blocks), part = blockIdx.x % unsigned(call.blocks);
  AxisParameters parameters(call, group, memory + warps.count() * Warps::kFloats);
  PartialSums<FeatureSums> sums(call, group, part, static_cast<int>(threadIdx.x), 0,
                                memory + warps.count() * (Warps::kFloats + AxisParameters::kFloats));
  unsigned slot = 0;
  let_next_kernel_start();

  unsigned round = 0;
  for (unsigned tile = part; tile * 32 * V < call.rows; tile += call.blocks, ++round) {
    sums.template begin<kX>(round);
    const Positions<V> at((tile * 32 + warps.lane()) * V, call);
    const SignWords<V, const unsigned> signs(call, reinterpret_cast<const unsigned*>(call.signs), group, feature, at);
    const unsigned* words = signs.data + (call.abs_layers - 1) * signs.plane;
    unsigned bits[V] = {};
    if (call.abs_layers == call.layers) {
      read_vector(bits, words);
      words -= call.layers > 1 ? signs.plane : 0;
    }
    Elements<V> g, x;
    with_type<float>(call.type, [&](auto value) {
      using S = decltype(value);
      RawElements<V, S> raw_g(call.dy, group, at, feature), raw_x(call.y, group, at, feature);
      RawRest<V, S> rest;
      const unsigned last = last_feature(call, feature);
#pragma unroll
      for (unsigned e = 0; e < kFeatures; ++e) {
        raw_g.read(e, last);
        if constexpr (kX) raw_x.read(e, last);
      }
      raw_g.convert(g);
      if constexpr (kX) {
        rest.read(call, signs);
        raw_x.convert(x);
        rest.add_to(x, call);
      }
    });
    if (tile == part) {
      wait_for_kernels_before();
      parameters.fetch(call.layers - 1);
      parameters.keep(slot);
      __syncthreads();
    }
    clear_beyond<V>(g, call, feature);
    if constexpr (kX) clear_beyond<V>(x, call, feature);
    clear_positions<V>(g, at.valid ? ~0u >> (32 - V) : 0);
    if constexpr (kX) {
      const unsigned live = live_positions<V>(g, warps);  // a position whose dy is 0 adds 0, whatever its y
      clear_positions<V>(x, live);
    }
    prefetch_elements<V>(call, call.dy, group, tile + call.ahead, feature);
    if constexpr (kX) prefetch_elements<V>(call, call.y, group, tile + call.ahead, feature);
    prefetch_signs<V>(call, group, tile + call.ahead, feature);
    for (int layer = call.layers - 1; layer >= 0; --layer, ++slot) {
      float dots[kDots] = {}, c[V], a[V];
      parameters.fetch(layer > 0 ? layer - 1 : call.layers - 1);
      undo_abs_positions<V, kX>(g, x, bits, dots, parameters.w(slot), parameters.b(slot));
      Sums<FeatureSums> layer_sums, before;
      sums.template read<kX>(before, layer);
      if (layer > 0 && call.abs_layers > 0) read_vector(bits, words);
      words -= layer > 1 ? signs.plane : 0;
      parameters.keep(slot + 1);
      warps.sum(dots, -2);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        c[v] = dots[v];
        a[v] = kX ? dots[(kX ? V : 0) + v] : 0;
      }
      const auto sum = UndoReflection<V, kX>(g, x, c, a, parameters.w(slot)).run();
      layer_sums.dw[0] = sum.dw;
      layer_sums.db[0] = sum.db;
      sums.template write<kX>(layer_sums, before, layer);
    }
    if (call.needs_dx) {
      const Positions<V> again((pinned(tile) * 32 + warps.lane()) * V, call);
      write_elements<V>(call.dx, g, call, group, again, feature);
    }
  }
  sums.template end<kX>(round);
}

}  // namespace hanops::cuda
