// The kernels for parameters of one instruction set: compiled once for each CPU_CAPABILITY.
#include "han_stack_parameters.h"

#include "dispatch.h"

namespace hanops::cpu {
namespace CPU_CAPABILITY {

int64_t layer_bytes(const Stack& stack) {
  return with_storage(stack.storage, [&](auto s) -> int64_t {
    using A = Arithmetic<decltype(s)>;
    return layer_size<A>(stack.features) * sizeof(A);
  });
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

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
