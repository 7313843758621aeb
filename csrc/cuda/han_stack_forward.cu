// Compiles the forward's kernels: the table of their tiles.
#include "han_stack_forward.cuh"
#include "han_stack_streaming.cuh"
#include "kernels.h"

namespace hanops::cuda {
namespace {

template <class A, int R, int K, int V, int T, int W>
constexpr ForwardTile tile() {
  using Own = Tile<A, R, K, V, T, W>;
  return {
      {R, K, V, T, W, Own::kWarps}, {forward<Own, true, false>, forward<Own, true, true>}, forward<Own, false, false>};
}

// clang-format off

// For float32 arithmetic and many rows: as many as the registers hold without a spill (`make kernels`), since w and b
// are read once for all rows of a tile.
const ForwardTile kManyRows[] = {        // columns up to
    tile<float, 8, 8, 2,  2, 1>(),       //   32
    tile<float, 4, 8, 4,  2, 1>(),       //   64
    tile<float, 4, 8, 4,  4, 1>(),       //  128
    tile<float, 4, 8, 4,  8, 1>(),       //  256
    tile<float, 4, 8, 4, 16, 1>(),       //  512
    tile<float, 4, 8, 4, 32, 1>(),       // 1024
    tile<float, 8, 8, 2, 32, 4>(),       // 2048
    tile<float, 4, 8, 4, 32, 4>(),       // 4096
    tile<float, 4, 8, 4, 32, 8>(),       // 8192
};

// clang-format on

// One row and 8 columns a lane: for few rows, where latency counts, and for float64.
template <class A>
constexpr ForwardTile kOneRow = tile<A, 1, 8, 1, 0, 0>();

}  // namespace

template <>
const ForwardKernels& forward_kernels<float>() {
  static const ForwardKernels kernels{kManyRows,
                                      kOneRow<float>,
                                      {forward_streaming<float, true, false>, forward_streaming<float, true, true>},
                                      forward_streaming<float, false, false>};
  return kernels;
}

template <>
const ForwardKernels& forward_kernels<double>() {
  static const ForwardKernels kernels{{},
                                      kOneRow<double>,
                                      {forward_streaming<double, true, false>, forward_streaming<double, true, true>},
                                      forward_streaming<double, false, false>};
  return kernels;
}

}  // namespace hanops::cuda
