// The parameters' kernels: what packs them before the main kernel, and what takes du and db from its sums after it.
#pragma once

#include "kernels.h"
#include "tile.cuh"

namespace hanops::cuda {

// The threads that share a layer's parameters.
template <class A>
using LayerThreads = ThreadGroup<Tile<A, 1, 1, 1, 0, 0>>;

// Packs w and b of one layer, padded with zeros, and |u| as two factors, the first of which is its largest element.
template <class A>
__device__ void pack_layer(LayerThreads<A>& threads, const Stack& call, int64_t layer, A* packed, A* norms) {
  with_type<A>(call.parameter_type, [&](auto type) {
    using S = decltype(type);
    const S* u = static_cast<const S*>(call.u) + layer * call.features;
    const S* b = call.has_bias ? static_cast<const S*>(call.b) + layer * call.features : nullptr;
    A largest[1] = {}, squares[1] = {};
    for (int i = threads.lane(); i < call.features; i += threads.size()) {
      largest[0] = fmax(largest[0], fabs(to<A>(read(u + i))));
    }
    threads.reduce(largest, Largest());
    const A scale = largest[0] == 0 ? A(1) : largest[0];
    for (int i = threads.lane(); i < call.features; i += threads.size()) {
      const A part = to<A>(read(u + i)) / scale;
      squares[0] += part * part;
    }
    threads.sum(squares);
    const A norm = sqrt(squares[0]);
    const A factor = norm == 0 ? A(0) : A(1) / norm;
    for (int i = threads.lane(); i < call.columns; i += threads.size()) {
      const bool inside = i < call.features;
      // + 0: a reflector of zeros is +0 everywhere, and a missing bias -0, so that neither changes the sign of a 0.
      write(packed + i, inside ? to<A>(read(u + i)) / scale * factor + A(0) : A(0));
      write(packed + call.columns + i, !call.has_bias ? -A(0) : inside ? to<A>(read(b + i)) : A(0));
    }
    if (threads.lane() == 0) {
      write(norms, scale);
      write(norms + 1, norm);
    }
  });
}

// Adds up the partial sums of one layer and takes du and db from them.
template <class A>
__device__ void finish_layer(LayerThreads<A>& threads, const BackwardCall& call, int64_t group, int layer,
                             const A* partials, int parts, const A* packed, const A* norms) {
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
    if (call.needs_du) {
      A along[1] = {};
      for (int i = threads.lane(); i < call.features; i += threads.size()) along[0] += sum(i) * read(packed + i);
      threads.sum(along);
      const A scale = read(norms), norm = read(norms + 1);
      for (int i = threads.lane(); i < call.features; i += threads.size()) {
        const A across = sum(i) - along[0] * read(packed + i);
        write(static_cast<S*>(call.du) + offset + i, rounded<S>(norm == 0 ? A(0) : across / norm / scale));
      }
    }
    if (call.needs_db) {
      for (int i = threads.lane(); i < call.features; i += threads.size()) {
        write(static_cast<S*>(call.db) + offset + i, rounded<S>(sum(call.columns + i)));
      }
    }
  });
}

// One block for each layer of each group.
template <class A>
__global__ void prepare(const Stack call) {
  let_next_kernel_start();
  LayerThreads<A> threads(32, blockDim.x / 32, shared_memory<A>(), 1);
  const int64_t layer = blockIdx.x;
  pack_layer<A>(threads, call, layer, static_cast<A*>(call.packed) + layer * 2 * call.columns,
                static_cast<A*>(call.norms) + layer * 2);
}

// One block for each layer of each group.
template <class A>
__global__ void finish(const BackwardCall call) {
  if (!HANOPS_BROKEN("early read")) wait_for_kernels_before();
  LayerThreads<A> threads(32, blockDim.x / 32, shared_memory<A>(), 1);
  const int64_t layer = blockIdx.x;
  const A* sums = static_cast<const A*>(call.sum_parts ? call.totals : call.partials);
  finish_layer<A>(threads, call, layer / call.layers, layer % call.layers, sums, call.sum_parts ? 1 : call.parts,
                  static_cast<const A*>(call.packed) + layer * 2 * call.columns,
                  static_cast<const A*>(call.norms) + layer * 2);
}

// A block adds up 32 columns of the partial sums of a group: each warp a slice of the parts, then the first all slices.
template <class A>
__global__ void __launch_bounds__(32 * kSlices) sum_parts(const BackwardCall call) {
  let_next_kernel_start();
  wait_for_kernels_before();
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

  __device__ Packed(const Stack& call, int64_t group, A* place) {
    const int64_t first = group * call.layers, stride = 2 * call.columns;
    layers = static_cast<const A*>(call.packed) + first * stride;
    norms = static_cast<const A*>(call.norms) + first * 2;
    if constexpr (Tile::T == 0) {
      if (!call.pack_here) return;
      A* own_norms = place + call.layers * stride;
      LayerThreads<A> warp(32, 1, nullptr, 0);
      for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
        pack_layer<A>(warp, call, first + layer, place + layer * stride, own_norms + 2 * layer);
      }
      __syncthreads();
      layers = place;
      norms = own_norms;
    }
  }
};

}  // namespace hanops::cuda
