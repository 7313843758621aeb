// The forward kernels of one instruction set: compiled once for each CPU_CAPABILITY.
#include "han_stack_forward.h"

#include "dispatch.h"
#include "han_stack_lanes_forward.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

void forward(const Stack& stack, const Forward& call, int64_t begin, int64_t end, Scratch& scratch) {
  with_storage(stack.storage, [&](auto s) {
    if constexpr (!std::is_same_v<decltype(s), double>) {
      if (rows_in_lanes(stack)) {
        begin = for_lane_tiles(stack, 1, begin, end, [&](int64_t groups, int64_t row, int64_t tile_end) {
          forward_lanes<decltype(s)>(stack, call, groups, row, tile_end, scratch);
        });
      }
    }
    with_flag(call.signs.data != nullptr, [&](auto save) {
      for_tiles<kForwardRows>(begin, end, [&](auto rows, int64_t row, int64_t tiles) {
        forward_tiles<decltype(s), rows, save>(stack, call, row, tiles, scratch);
      });
    });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
