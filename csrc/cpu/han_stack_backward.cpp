// The backward kernels of one instruction set: compiled once for each CPU_CAPABILITY.
#include "han_stack_backward.h"

#include "dispatch.h"
#include "han_stack_lanes_backward.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {
namespace {

// Around width 1024 a tile of 4 rows and its layer's w, b, dw and db just overflow 48 KiB of L1, and one of 3 rows just
// does not: 55 to 58 % of the ceiling against 51 to 54 % (N=255, L=64). At 768 and 2048 four rows are 10 % faster.
bool three_rows_fit_better(const Stack& stack) {
  const int64_t row = layer_bytes(stack);  // p and gz, as wide as w and b
  return kManyRegisters && 4 * row >= 32 << 10 && 3 * row <= 26 << 10;
}

}  // namespace

void backward(const Stack& stack, const Backward& call, int64_t begin, int64_t end, void* partial, Scratch& scratch) {
  if (partial) std::memset(partial, 0, stack.layers * layer_bytes(stack));
  with_storage(stack.storage, [&](auto s) {
    if constexpr (!std::is_same_v<decltype(s), double>) {
      if (rows_in_lanes(stack)) {
        const int planes = call.y.data ? 2 : 1;
        begin = for_lane_tiles(stack, planes, begin, end, [&](int64_t groups, int64_t row, int64_t tile_end) {
          backward_lanes<decltype(s)>(stack, call, groups, row, tile_end, static_cast<float*>(partial), scratch);
        });
      }
    }
    with_flag(call.y.data != nullptr, [&](auto du) {
      with_flag(call.needs_db, [&](auto db) {
        const auto run = [&](auto rows, int64_t row, int64_t tiles) {
          using S = decltype(s);
          backward_tiles<S, rows, du, db>(stack, call, row, tiles, static_cast<Arithmetic<S>*>(partial), scratch);
        };
        if constexpr (kManyRegisters && du) {
          if (three_rows_fit_better(stack)) return for_tiles<3>(begin, end, run);
        }
        for_tiles<kBackwardRows>(begin, end, run);
      });
    });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
