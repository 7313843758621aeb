// The forward's main kernel where the features are not the last axis: see han_stack_axis_tile.cuh.
#pragma once

#include "han_stack_axis_tile.cuh"

namespace hanops::cuda {

// x = x + a w + b and its sign bits, bit e for feature e, and the next layer's dot products: see reflect(). Pointers to
// parameters point at the warp's first feature.
template <int V, bool kBelow, bool kAbs, bool kSave>
__device__ __forceinline__ void reflect_positions(Elements<V>& x, const float (&a)[V], float (&dots)[V],
                                                  unsigned (&bits)[V], const float* w, const float* b,
                                                  const float* next) {
#pragma unroll
  for (int q = kFeatures - kQuad; q >= 0; q -= kQuad) {  // the last feature's bit ends up highest
    float w_q[kQuad], b_q[kQuad], next_q[kQuad];
    read_vector(w_q, w + q);
    read_vector(b_q, b + q);
    read_vector(next_q, next + q);
#pragma unroll
    for (int j = kQuad - 1; j >= 0; --j) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float& x_v = x[q + j][v];
        const float z = a[v] * w_q[j] + (kBelow ? fabs(x_v) : x_v) + b_q[j];
        if constexpr (kSave) bits[v] = __funnelshift_l(high_word(z), bits[v], 1);
        dots[v] += (kAbs ? fabs(z) : z) * next_q[j];
        x_v = z;
      }
    }
  }
}

// One layer of a tile; a holds -2 w . x of this layer before, and of the next one after. A layer's slot is its number.
template <int V, bool kBelow, bool kAbs, bool kSave>
__device__ __forceinline__ void forward_positions(Elements<V>& x, float (&a)[V], AxisWarps<V>& warps,
                                                  AxisParameters& parameters, int layer, int layers, unsigned* signs,
                                                  unsigned mask) {
  float dots[V] = {};
  unsigned bits[V] = {};
  parameters.fetch(min(layer + 2, layers - 1));
  reflect_positions<V, kBelow, kAbs, kSave>(x, a, dots, bits, parameters.w(layer), parameters.b(layer),
                                            parameters.w(layer + 1));
  if (kSave && mask) {
#pragma unroll
    for (int v = 0; v < V; ++v) bits[v] &= mask;
    write_vector(signs, bits);
  }
  if (layer + 1 == layers) return;
  parameters.keep(layer + 2);
  warps.sum(dots, -2);
#pragma unroll
  for (int v = 0; v < V; ++v) a[v] = dots[v];
}

// A tile for each block: x in, y and the sign bits out. kAbs: layers take the absolute value, the last perhaps.
template <int V, bool kAbs, bool kSave>
__global__ void __launch_bounds__(axis_threads(V, 1), 1) axis_forward(const ForwardCall call) {
  AxisWarps<V> warps(shared_memory<float>());
  const int feature = warps.feature();
  const unsigned group = blockIdx.x / unsigned(call.blocks), tile = blockIdx.x % unsigned(call.blocks);
  const Positions<V> at((tile * 32 + warps.lane()) * V, call);
  AxisParameters parameters(call, group, shared_memory<float>() + warps.count() * AxisWarps<V>::kFloats);
  Elements<V> x;
  with_type<float>(call.type, [&](auto value) {
    RawElements<V, decltype(value)> raw(call.x, group, at, feature);
    const unsigned last = last_feature(call, feature);
#pragma unroll
    for (unsigned e = 0; e < kFeatures; ++e) raw.read(e, last);
    raw.convert(x);
  });
  prefetch_elements<V>(call, call.x, group, tile + call.ahead, feature);
  clear_beyond<V>(x, call, feature);
  wait_for_kernels_before();
  parameters.fetch(0);
  parameters.keep(0);
  parameters.fetch(min(1, call.layers - 1));
  parameters.keep(1);
  __syncthreads();
  float a[V] = {};
#pragma unroll
  for (int q = 0; q < kFeatures; q += kQuad) {
    float w_q[kQuad];
    read_vector(w_q, parameters.w(0) + q);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
#pragma unroll
      for (int v = 0; v < V; ++v) a[v] += x[q + j][v] * w_q[j];
    }
  }
  warps.sum(a, -2);
  const SignWords<V, unsigned> signs(call, reinterpret_cast<unsigned*>(call.signs), group, feature, at);
  const unsigned mask = at.valid ? bits_of_features(call, feature) : 0;
  unsigned* words = signs.data;
  forward_positions<V, false, kAbs, kSave>(x, a, warps, parameters, 0, call.layers, words,
                                           call.abs_layers > 0 ? mask : 0);
  for (int layer = 1; layer < call.layers; ++layer) {
    words += signs.plane;
    forward_positions<V, kAbs, kAbs, kSave>(x, a, warps, parameters, layer, call.layers, words,
                                            layer < call.abs_layers ? mask : 0);
  }
  if (kAbs && call.abs_layers == call.layers) {
#pragma unroll
    for (int e = 0; e < kFeatures; ++e) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[e][v] = fabs(x[e][v]);
    }
  }
  write_elements<V>(call.y, x, call, group, at, feature);
  if ((kSave || !kAbs) && call.rest) write_rest<V>(x, call, at, signs);
}

}  // namespace hanops::cuda
