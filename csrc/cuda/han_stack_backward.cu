// Compiles the backward's main kernels: the table of their tiles.
#include "han_stack_backward.cuh"
#include "han_stack_streaming.cuh"
#include "kernels.h"

namespace hanops::cuda {
namespace {

template <class A, int R, int K, int V, int T, int W, bool kSums = true>
constexpr BackwardTile tile() {
  using Own = Tile<A, R, K, V, T, W>;
  return {
      {R, K, V, T, W, Own::kWarps}, kSums, Own::kBlockSums, {backward<Own, false, kSums>, backward<Own, true, kSums>}};
}

// clang-format off

// For float32 arithmetic and many rows, as in the forward. x and g of a row take twice the registers.
const BackwardTile kManyRows[] = {       // columns up to
    tile<float, 16, 1, 4,  8, 1>(),      //   32
    tile<float, 16, 1, 4, 16, 1>(),      //   64
    tile<float, 16, 1, 4, 32, 1>(),      //  128
    tile<float, 16, 1, 4, 32, 2>(),      //  256
    tile<float, 16, 1, 4, 32, 4>(),      //  512
    tile<float, 16, 1, 4, 32, 8>(),      // 1024
    tile<float,  8, 2, 4, 32, 8>(),      // 2048
    tile<float,  4, 4, 4, 32, 8>(),      // 4096
    tile<float,  2, 8, 4, 32, 8, false>(),  // 8192: too few rows to pay for their partial sums
};

// For few layers, where most of the time goes into reading and writing rows: half as many elements in a lane leave room
// for twice the warps.
const BackwardTile kOfFewLayers[] = {    // columns up to
    tile<float, 16, 1, 4,  8,  1>(),     //   32
    tile<float, 16, 1, 4, 16,  1>(),     //   64
    tile<float, 16, 1, 4, 32,  1>(),     //  128
    tile<float,  8, 1, 4, 32,  2>(),     //  256
    tile<float,  8, 1, 4, 32,  4>(),     //  512
    tile<float,  8, 1, 4, 32,  8>(),     // 1024
    tile<float,  4, 2, 4, 32,  8>(),     // 2048
    tile<float,  4, 2, 4, 32, 16>(),     // 4096
    tile<float,  2, 8, 4, 32,  8, false>(),  // 8192
};

// clang-format on

template <class A>
constexpr BackwardTile kOneRow = tile<A, 1, 8, 1, 0, 0>();

}  // namespace

template <>
const BackwardKernels& backward_kernels<float>() {
  static const BackwardKernels kernels{
      kManyRows, kOfFewLayers, kOneRow<float>, {backward_streaming<float, false>, backward_streaming<float, true>}};
  return kernels;
}

template <>
const BackwardKernels& backward_kernels<double>() {
  static const BackwardKernels kernels{
      {}, {}, kOneRow<double>, {backward_streaming<double, false>, backward_streaming<double, true>}};
  return kernels;
}

}  // namespace hanops::cuda
