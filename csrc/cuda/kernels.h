// The table of kernels: one tile for each width, compiled in han_stack_forward.cu, _backward.cu, _parameters.cu and
// _axis.cu.
#pragma once

#include <span>

#include "call.h"

namespace hanops::cuda {

template <class Call>
using Kernel = void (*)(Call);

// What a thread group holds: see Tile in tile.cuh.
struct TileShape {
  int rows, chunks, vector, lanes, warps;  // no lanes: as many as a row needs
  int warps_per_sm;                        // that its registers leave room for
};

struct ForwardTile : TileShape {
  Kernel<ForwardCall> kernels[2];  // without and with sign bits
  Kernel<ForwardCall> linear;      // no layer takes the absolute value
};

struct BackwardTile : TileShape {
  bool sums;                        // of du and db are taken here; else it leaves coefficients
  bool block_sums;                  // ... and kept in the block's memory first
  Kernel<BackwardCall> kernels[2];  // without and with du
};

// The kernels of one arithmetic type. Tiles of many rows: one for each width, from 32 columns on; none for float64.
struct ForwardKernels {
  std::span<const ForwardTile> many_rows;
  ForwardTile one_row;  // up to kOneRowColumns
  Kernel<ForwardCall> streaming[2], linear_streaming;
};

struct BackwardKernels {
  std::span<const BackwardTile> many_rows, few_layers;  // few_layers: of many rows, up to kFewLayers
  BackwardTile one_row;
  Kernel<BackwardCall> streaming[2];
};

struct ParameterKernels {
  Kernel<Stack> prepare;
  Kernel<BackwardCall> sum_parts, finish, gradients[2];
  int gradients_rows;  // of a tile of `gradients`
};

// Where the features are not the last axis, for float32 arithmetic: from tiles of many positions to such of few. A
// tile's rows are positions, its chunks features of a warp; a call has as many warps as its features need, up to
// warps_per_sm.
struct AxisKernels {
  std::span<const ForwardTile> forward;
  std::span<const BackwardTile> backward;
};

template <class A>
const ForwardKernels& forward_kernels();
template <class A>
const BackwardKernels& backward_kernels();
template <class A>
const ParameterKernels& parameter_kernels();
const AxisKernels& axis_kernels();

constexpr int kOneRowColumns = 4096, kOneRowThreads = 512;
constexpr int kStreamThreads = 256, kGradientsThreads = 128, kLayerThreads = 256;
constexpr int kGradientsColumns = 128;  // of a block
constexpr int kAxisFeatures = 32;       // of a warp, where the features are not the last axis
constexpr int kAxisSlots = 4;           // for a layer's w and b of these features, in the block's memory
// Layers up to which the backward has tiles of its own. On an H100 these take 0.75 of the time for one layer, 0.98 for
// 8; at 4,096 columns 0.89 and, for 4 layers, 1.02.
constexpr int kFewLayers = 8, kFewLayersOfWideRows = 2, kWideRows = 2048;
constexpr int kFold = 16;    // tiles whose sums are added up one after another
constexpr int kSlices = 32;  // of the parts in sum_parts, each with a warp

}  // namespace hanops::cuda
