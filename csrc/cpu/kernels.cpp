// The table of CPU kernels of one instruction set: compiled once for each CPU_CAPABILITY, from the same headers.
//
// Nothing here may leave an inline function of the standard library or of torch behind: the linker would keep one
// copy, perhaps the one with instructions that the machine lacks. tests/test_instruction_sets.py looks at the objects.
#include "han_stack_backward.h"
#include "han_stack_forward.h"
#include "han_stack_lanes_backward.h"
#include "han_stack_lanes_forward.h"
#include "han_stack_parameters.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// Rows of a tile, for every width but the narrow: each needs two registers forward (a coefficient, a sum) and four
// backward. Measured against 2, 3 and 4 rows at widths 256 to 8192 in docs/performance-log.md.
constexpr int kForwardRows = kManyRegisters ? 8 : 4;
constexpr int kBackwardRows = kManyRegisters ? 4 : 2;

template <class Body>
auto with_storage(Storage storage, Body&& body) {
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

int64_t layer_bytes(const Stack& stack) {
  return with_storage(stack.storage, [&](auto s) -> int64_t {
    using A = Arithmetic<decltype(s)>;
    return layer_size<A>(stack.features) * sizeof(A);
  });
}

// Around width 1024 a tile of 4 rows and its layer's w, b, dw and db just overflow 48 KiB of L1, and one of 3 rows just
// does not: 55 to 58 % of the ceiling against 51 to 54 % (N=255, L=64). At 768 and 2048 four rows are 10 % faster.
bool three_rows_fit_better(const Stack& stack) {
  const int64_t row = layer_bytes(stack);  // p and gz, as wide as w and b
  return kManyRegisters && 4 * row >= 32 << 10 && 3 * row <= 26 << 10;
}

// Stacks up to this width run with rows in the lanes. Against the tiles of whole rows, N=128, L=20, AVX-512 takes 0.83
// of the time forward with bits and 0.98 backward at 64. AVX2 takes 0.74 and 0.75 at 30, 1.04 and 0.93 at 40.
constexpr int64_t kNarrow = kManyRegisters ? 64 : 32;
static_assert(kNarrow <= kMostLaneFeatures);

// Lane groups of such a tile, at most: three registers each forward, five backward.
constexpr int kMostLaneGroups = kManyRegisters ? 4 : 2;

bool rows_in_lanes(const Stack& stack) { return stack.storage != Storage::kDouble && stack.features <= kNarrow; }

// Takes whole lane groups from [row, end), in tiles of about the same height: body(constant groups, row). Returns
// the first row left over.
template <class Body>
int64_t for_lane_tiles(int64_t row, int64_t end, Body&& body) {
  for (int64_t groups = (end - row) / kGroupRows; groups > 0;) {
    const int64_t tiles = (groups + kMostLaneGroups - 1) / kMostLaneGroups, height = (groups + tiles - 1) / tiles;
    with_constant<kMostLaneGroups>(height, [&](auto lane_groups) { body(lane_groups, row); });
    groups -= height;
    row += height * kGroupRows;
  }
  return row;
}

int64_t task_rows(const Stack& stack) {
  return rows_in_lanes(stack) ? kGroupRows : kBackwardRows;  // the smaller: threads share few rows evenly
}

void pack(const Stack& stack, const Parameters& parameters, int64_t layer) {
  with_storage(stack.storage, [&](auto s) {
    with_storage(parameters.storage,
                 [&](auto p) { pack_layer<Arithmetic<decltype(s)>, decltype(p)>(stack, parameters, layer); });
  });
}

void reduce(const Stack& stack, const Gradients& gradients, int64_t layer, void* partials, int64_t parts) {
  with_storage(stack.storage, [&](auto s) {
    with_storage(gradients.storage, [&](auto p) {
      using A = Arithmetic<decltype(s)>;
      reduce_layer<A, decltype(p)>(stack, gradients, layer, static_cast<A*>(partials), parts);
    });
  });
}

void forward(const Stack& stack, const Forward& call, int64_t begin, int64_t end, Scratch& scratch) {
  with_storage(stack.storage, [&](auto s) {
    with_flag(call.signs != nullptr, [&](auto save) {
      if constexpr (!std::is_same_v<decltype(s), double>) {
        if (rows_in_lanes(stack)) {
          begin = for_lane_tiles(begin, end, [&](auto groups, int64_t row) {
            forward_lanes<decltype(s), groups, save>(stack, call, row, scratch);
          });
        }
      }
      for_tiles<kForwardRows>(begin, end, [&](auto rows, int64_t row, int64_t tiles) {
        forward_tiles<decltype(s), rows, save>(stack, call, row, tiles, scratch);
      });
    });
  });
}

void backward(const Stack& stack, const Backward& call, int64_t begin, int64_t end, void* partial, Scratch& scratch) {
  if (partial) std::memset(partial, 0, stack.layers * layer_bytes(stack));
  with_storage(stack.storage, [&](auto s) {
    with_flag(call.y.data != nullptr, [&](auto du) {
      with_flag(call.needs_db, [&](auto db) {
        if constexpr (!std::is_same_v<decltype(s), double>) {
          if (rows_in_lanes(stack)) {
            begin = for_lane_tiles(begin, end, [&](auto groups, int64_t row) {
              backward_lanes<decltype(s), groups, du, db>(stack, call, row, static_cast<float*>(partial), scratch);
            });
          }
        }
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

void fma_loop(int64_t iterations) {
  volatile float source = 0.5f;
  float starts[kFmasPerIteration];  // read one by one, so that no two chains are known to be equal
  for (float& start : starts) start = source;
  Registers<float, kFmasPerIteration> chains(starts);
  const Vec<float> factor(source), term(source);
  for (int64_t i = 0; i < iterations; ++i) {
    unroll<kFmasPerIteration>([&](auto k) HANOPS_LAMBDA { chains[k] = vec::fmadd(chains[k], factor, term); });
  }
  unroll<kFmasPerIteration>([&](auto k) HANOPS_LAMBDA { source = sum<float>(chains[k]); });
}

}  // namespace

extern const Kernels kTable = {
    C10_STRINGIZE(CPU_CAPABILITY), kLanes<float>, layer_bytes, task_rows, pack, forward, backward, reduce, fma_loop};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
