// Sums of du and db over rows: what a thread group adds up itself, and what it leaves to parameter_gradients.
#pragma once

#include "han_stack_layer.cuh"
#include "kernels.h"

namespace hanops::cuda {

// Where a thread group, or a warp of several, adds up dw and db, from its lanes' first column on: the first layers'
// sums in the block's memory, as many as it holds, the others' in the L2 cache. Sums over many tiles move on to a
// second set after every kFold tiles, so that rounding errors do not grow with the number of rows.
template <class Tile>
class PartialSums {
  using A = typename Tile::A;

 public:
  // block: memory of the thread group for call.block_layers layers.
  __device__ PartialSums(const BackwardCall& call, int64_t group, int64_t part, int column, int stride, A* block)
      : call_(call), stride_(stride), block_(block + column) {
    if constexpr (Tile::kWarpSums) part = part * call.lanes / 32;
    if (call.needs_du || call.needs_db)
      sums_ = static_cast<A*>(call.partials) + (group * call.parts + part) * length() + column;
  }

  // Before a thread group's tiles, counted from 0.
  template <bool kX>
  __device__ void begin(int64_t tile) {
    starts_ = call_.folds ? tile % kFold == 0 : tile == 0;
    if (call_.folds && starts_ && tile > 0 && keeps()) fold<kX>(tile > kFold);
  }

  // After all of them.
  template <bool kX>
  __device__ void end(int64_t tiles) {
    if (!keeps()) return;
    for (int layer = 0; Tile::kBlockSums && layer < call_.block_layers; ++layer) {
      Sums<Tile> sums;
      sums.template read<kX, false>(at(block_, layer), columns(), stride_);
      sums.template write<kX, true>(at(sums_, layer), columns(), stride_);
    }
    for (int layer = 0; call_.folds && tiles <= kFold && layer < call_.layers; ++layer) {
      Sums<Tile>().template write<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
    }
  }

  // The sums of the tiles before, read early: `before` waits in registers where a tile has several rows.
  template <bool kX>
  __device__ __forceinline__ void read(Sums<Tile>& before, int layer) const {
    if ((!kX && !call_.needs_db) || starts_ || !keeps()) return;
    if (Tile::kBlockSums && layer < call_.block_layers) {
      before.template read<kX, false>(at(block_, layer), columns(), stride_);
    } else {
      before.template read<kX, true>(at(sums_, layer), columns(), stride_);
    }
  }

  // A tile's own sums, which are added up by themselves, are added to those before; one row's to those in memory.
  template <bool kX>
  __device__ __forceinline__ void write(Sums<Tile>& sums, Sums<Tile>& before, int layer) const {
    if (!kX && !call_.needs_db) return;
    if constexpr (Tile::kWarpSums) sums.template add_groups<kX>(call_.lanes);
    if (!keeps()) return;
    if (Tile::kLateSums && !starts_) {
      if (Tile::kBlockSums && layer < call_.block_layers) {
        sums.template add_to<kX, false>(at(block_, layer), columns(), stride_);
      } else {
        sums.template add_to<kX, true>(at(sums_, layer), columns(), stride_);
      }
      return;
    }
    sums.add(before);
    if (Tile::kBlockSums && layer < call_.block_layers) {
      sums.template write<kX, false>(at(block_, layer), columns(), stride_);
    } else {
      sums.template write<kX, true>(at(sums_, layer), columns(), stride_);
    }
  }

 private:
  template <bool kX>
  __device__ void fold(bool more) {
    for (int layer = 0; layer < call_.layers; ++layer) {
      Sums<Tile> running, total;
      if (Tile::kBlockSums && layer < call_.block_layers) {
        running.template read<kX, false>(at(block_, layer), columns(), stride_);
      } else {
        running.template read<kX, true>(at(sums_, layer), columns(), stride_);
      }
      if (more) total.template read<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
      total.add(running);
      total.template write<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
    }
  }

  // Whether this lane does, for its warp.
  __device__ bool keeps() const { return !Tile::kWarpSums || threadIdx.x % 32 < static_cast<unsigned>(call_.lanes); }
  __device__ int columns() const { return Tile::columns(call_); }
  __device__ int64_t length() const { return int64_t(call_.layers) * 2 * columns(); }
  __device__ int64_t folded() const { return call_.parts / 2 * length(); }
  __device__ A* at(A* sums, int layer) const { return sums + int64_t(layer) * 2 * columns(); }

  const BackwardCall& call_;
  int stride_;
  A *block_, *sums_ = nullptr;
  bool starts_ = true;
};

// What parameter_gradients needs of a row and layer.
template <class A>
__device__ __forceinline__ void write_coefficients(const BackwardCall& call, int64_t row, int layer, A c, A a) {
  write_vector(static_cast<A*>(call.coefficients) + (row * call.layers + layer) * 2, {c, a});
}

}  // namespace hanops::cuda
