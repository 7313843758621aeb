// Compiles the main kernels for features that are not the last axis: the tables of their tiles.
#include "han_stack_axis_backward.cuh"
#include "han_stack_axis_forward.cuh"
#include "kernels.h"

namespace hanops::cuda {
namespace {

// A block has a warp for every kFeatures features, and so at most axis_threads() features.
template <int V>
constexpr ForwardTile forward_tile() {
  return {{32 * V, kFeatures, V, 0, 0, axis_threads(V, 1) / 32},
          {axis_forward<V, true, false>, axis_forward<V, true, true>},
          axis_forward<V, false, false>};
}

template <int V>
constexpr BackwardTile backward_tile() {
  return {{32 * V, kFeatures, V, 0, 0, axis_threads(V, 2) / 32},
          true,
          FeatureSums::kBlockSums,
          {axis_backward<V, false>, axis_backward<V, true>}};
}

const ForwardTile kForward[] = {forward_tile<2>(), forward_tile<1>()};
const BackwardTile kBackward[] = {backward_tile<2>(), backward_tile<1>()};

}  // namespace

const AxisKernels& axis_kernels() {
  static const AxisKernels kernels{kForward, kBackward};
  return kernels;
}

}  // namespace hanops::cuda
