// The table of CPU kernels of one instruction set: compiled once for each CPU_CAPABILITY, from the same headers.
//
// Nothing here may leave an inline function of the standard library or of torch behind: the linker would keep one
// copy, perhaps the one with instructions that the machine lacks.
#include "han_stack_backward.h"
#include "han_stack_forward.h"
#include "han_stack_parameters.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// Rows of a tile, for every width: each needs two registers forward (a coefficient, a sum) and four backward. Measured
// against 2, 3 and 4 rows at widths 256 to 8192 in docs/performance-log.md.
constexpr int kForwardRows = kManyRegisters ? 8 : 4;
constexpr int kBackwardRows = kManyRegisters ? 4 : 2;

template <class F>
auto with_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kFloat:
      return f(float{});
    case Storage::kDouble:
      return f(double{});
    case Storage::kBFloat16:
      return f(c10::BFloat16{});
    case Storage::kHalf:
      return f(c10::Half{});
  }
  __builtin_unreachable();
}

int64_t layer_bytes(const Stack& stack) {
  return with_storage(stack.storage, [&](auto t) -> int64_t {
    using A = Accumulate<decltype(t)>;
    return layer_size<A>(stack.features) * sizeof(A);
  });
}

// Around width 1024 a tile of 4 rows and its layer's w, b, dw and db just overflow 48 KiB of L1, and one of 3 rows just
// does not: 55 to 58 % of the ceiling against 51 to 54 % (N=255, L=64). At 768 and 2048 four rows are 10 % faster.
bool three_rows_fit_better(const Stack& stack) {
  const int64_t row = layer_bytes(stack);  // p and gz, as wide as w and b
  return kManyRegisters && 4 * row >= 32 << 10 && 3 * row <= 26 << 10;
}

int64_t scratch_bytes(const Stack& stack) {
  const int64_t row = layer_bytes(stack) / 2;  // padded
  const auto tiles = [&](int64_t bytes) { return bytes * tiles_in_cache(bytes); };
  return std::max(tiles(kForwardRows * row), tiles(2 * kBackwardRows * row)) + 64;
}

int64_t task_rows(const Stack&) { return kBackwardRows; }  // the smaller: threads share few rows evenly

void pack(const Stack& stack, const Parameters& parameters, int64_t layer) {
  with_storage(stack.storage, [&](auto t) {
    with_storage(parameters.storage,
                 [&](auto p) { pack_layer<Accumulate<decltype(t)>, decltype(p)>(stack, parameters, layer); });
  });
}

void reduce(const Stack& stack, const Gradients& gradients, int64_t layer, void* partials, int64_t parts) {
  with_storage(stack.storage, [&](auto t) {
    with_storage(gradients.storage, [&](auto p) {
      using A = Accumulate<decltype(t)>;
      reduce_layer<A, decltype(p)>(stack, gradients, layer, static_cast<A*>(partials), parts);
    });
  });
}

void forward(const Stack& stack, const Forward& call, int64_t begin, int64_t end, void* scratch) {
  with_storage(stack.storage, [&](auto t) {
    with_flag(call.signs != nullptr, [&](auto save) {
      for_row_groups<kForwardRows>(begin, end, [&](auto rows, int64_t row, int64_t tiles) {
        using T = decltype(t);
        forward_tiles<T, rows, save>(stack, call, row, tiles, static_cast<Accumulate<T>*>(scratch));
      });
    });
  });
}

void backward(const Stack& stack, const Backward& call, int64_t begin, int64_t end, void* partial, void* scratch) {
  if (partial) std::memset(partial, 0, stack.layers * layer_bytes(stack));
  with_storage(stack.storage, [&](auto t) {
    with_flag(call.y.data != nullptr, [&](auto du) {
      with_flag(call.needs_db, [&](auto db) {
        const auto run = [&](auto rows, int64_t row, int64_t tiles) {
          using T = decltype(t);
          using A = Accumulate<T>;
          backward_tiles<T, rows, du, db>(stack, call, row, tiles, static_cast<A*>(partial), static_cast<A*>(scratch));
        };
        if constexpr (kManyRegisters && du) {
          if (three_rows_fit_better(stack)) return for_row_groups<3>(begin, end, run);
        }
        for_row_groups<kBackwardRows>(begin, end, run);
      });
    });
  });
}

void fma_loop(int64_t iterations) {
  using V = vec::Vectorized<float>;
  volatile float source = 0.5f;
  float starts[kFmasPerIteration];  // read one by one, so that no two chains are known to be equal
  for (float& start : starts) start = source;
  Registers<float, kFmasPerIteration> chains(starts);
  const V factor(source), term(source);
  for (int64_t i = 0; i < iterations; ++i) {
    unroll<kFmasPerIteration>([&](auto k) HANOPS_LAMBDA { chains[k] = vec::fmadd(chains[k], factor, term); });
  }
  unroll<kFmasPerIteration>([&](auto k) HANOPS_LAMBDA { source = sum<float>(chains[k]); });
}

}  // namespace

extern const Kernels kTable = {C10_STRINGIZE(CPU_CAPABILITY),
                               kLanes<float>,
                               layer_bytes,
                               scratch_bytes,
                               task_rows,
                               pack,
                               forward,
                               backward,
                               reduce,
                               fma_loop};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
