// What the units of one instruction set share: the functions of its table, and how a call finds its kernel.
//
// No unit may leave an inline function of the standard library or of torch behind: the linker would keep one copy,
// perhaps the one with instructions that the machine lacks. tests/test_instruction_sets.py looks at the objects.
#pragma once

#include "han_stack_lanes.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

// Of Kernels, which says what they do.
int64_t layer_bytes(const Stack& stack);
int64_t task_rows(const Stack& stack);
void pack(const Stack& stack, const Parameters& parameters, int64_t layer);
void forward(const Stack& stack, const Forward& call, int64_t begin, int64_t end, Scratch& scratch);
void backward(const Stack& stack, const Backward& call, int64_t begin, int64_t end, void* partial, Scratch& scratch);
void reduce(const Stack& stack, const Gradients& gradients, int64_t layer, void* partials, int64_t parts);

// Rows of a tile, for every width but the narrow: each needs two registers forward (a coefficient, a sum) and four
// backward. Measured against 2, 3 and 4 rows at widths 256 to 8192 in docs/performance-log.md.
constexpr int kForwardRows = kManyRegisters ? 8 : 4;
constexpr int kBackwardRows = kManyRegisters ? 4 : 2;

template <class Body>
HANOPS_INLINE auto with_storage(Storage storage, Body&& body) {
  switch (storage) {
    case Storage::kFloat:
      return body(float{});
    case Storage::kDouble:
      return body(double{});
    case Storage::kBFloat16:
      return body(c10::BFloat16{});
    case Storage::kHalf:
      return body(c10::Half{});
  }
  __builtin_unreachable();
}

// Stacks up to this width run with rows in the lanes. Against the tiles of whole rows, N=128, L=20, AVX-512 takes 0.83
// of the time forward with bits and 0.98 backward at 64. AVX2 takes 0.74 and 0.75 at 30, 1.04 and 0.93 at 40.
constexpr int64_t kNarrow = kManyRegisters ? 64 : 32;
static_assert(kNarrow <= kMostLaneFeatures);

HANOPS_INLINE bool rows_in_lanes(const Stack& stack) {
  return stack.storage != Storage::kDouble && (stack.inner > 0 || stack.features <= kNarrow);
}

// Bytes of a tile of positions, beyond which it has fewer lane groups: half of L2. A backward takes 15.5, 11.8 and 9.6
// clocks for a vector and layer with 1, 2 and 4 groups, in L1 and in L2 alike (196 to 512 features, AVX-512).
constexpr int64_t kLaneTileBytes = 512 << 10;

// Takes lane groups of [row, end), in tiles of about the same height and of so many planes: body(groups, row, end of
// the tile's rows). Returns the first row left over: groups of rows are whole, the last one of positions may not be.
template <class Body>
HANOPS_INLINE int64_t for_lane_tiles(const Stack& stack, int planes, int64_t row, int64_t end, Body&& body) {
  const bool positions = stack.inner > 0;
  const int64_t group_bytes = stack.features * planes * kGroupRows * static_cast<int64_t>(sizeof(float));
  const int64_t most =
      positions ? std::clamp<int64_t>(kLaneTileBytes / group_bytes, 1, kMostLaneGroups) : kMostLaneGroups;
  for (int64_t groups = (end - row + (positions ? kGroupRows - 1 : 0)) / kGroupRows; groups > 0;) {
    const int64_t tiles = (groups + most - 1) / most, height = (groups + tiles - 1) / tiles;
    const int64_t tile_end = std::min(end, row + height * kGroupRows);
    body(height, row, tile_end);
    groups -= height;
    row = tile_end;
  }
  return row;
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
