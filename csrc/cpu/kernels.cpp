// The table of CPU kernels of one instruction set: compiled once for each CPU_CAPABILITY, as the units of its kernels.
#include "dispatch.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {
namespace {

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
