// The CPU kernels' interface, free of torch: what they read and write, and the table that each instruction set fills.
#pragma once

#include <cstdint>

#include "../signs.h"

namespace hanops::cpu {

// Arithmetic is in double for double, and in float for every other storage type.
enum class Storage { kFloat, kDouble, kBFloat16, kHalf };

// One stack of layers. `packed` and `norms` are filled by Kernels::pack.
struct Stack {
  Storage storage;
  int64_t features;
  int64_t layers;
  int64_t abs_layers;  // the first so many end in an absolute value, and have bits: all, all but the last, or none
  int64_t inner;       // 0: of rows; else of positions, so many beside each other: see Matrix
  void* packed;        // (layers, column vectors, {w, b}, lanes): w = u / |u|, zero beyond `features`
  double* norms;       // (layers, 2): |u| as a product of two factors, neither of which overflows
};

// Reflectors and biases as the user gives them: (layers, features), contiguous. `b` may be null.
struct Parameters {
  Storage storage;
  const void* u;
  const void* b;
};

// A (rows, features) matrix in the stack's storage type; strides count elements and may be 0. Where the features are
// not the last axis it is (outer, features, inner), and its rows are positions: row r is (r / inner, :, r % inner), the
// inner stride is 1, and `row_stride` is that of outer.
// Not for double.
struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

// Bytes beside a matrix, so many for each of its rows; data is null where there are none. Of positions they are words,
// (outer, planes, words, inner), and `row_stride` is the bytes of an outer.
template <class Byte>
struct Planes {
  Byte* data;
  int64_t row_stride;
};

struct Forward {
  Matrix x;
  void* y;                // as x, contiguous
  Planes<uint8_t> signs;  // (abs_layers, sign_bytes) of a row
  Planes<int8_t> rest;    // (kRestPlanes, sign_bytes): see rest.h
};

struct Backward {
  Matrix dy;
  Matrix y;                     // data is null where du is not wanted
  Planes<const uint8_t> signs;  // as Forward wrote them; of a stack without bits, one row and layer of zeros, stride 0
  Planes<const int8_t> rest;
  void* dx;  // as dy, contiguous, or null
  bool needs_db;
};

// du and db of the parameters, (layers, features), contiguous; null where not wanted.
struct Gradients {
  Storage storage;
  void* du;
  void* db;
};

// One thread's memory for tiles. A kernel asks for it where it lays its tiles out: nobody else knows their size.
class Scratch {
 public:
  // At least `bytes`, aligned to 64. What the memory held is lost.
  virtual void* reserve(int64_t bytes) = 0;

 protected:
  ~Scratch() = default;
};

// One instruction set's functions. The caller owns the memory and the threads.
struct Kernels {
  const char* name;
  int64_t lanes;  // float32 elements in a vector

  int64_t (*layer_bytes)(const Stack& stack);  // of `packed`, and of a partial sum of dw and db, for one layer
  int64_t (*task_rows)(const Stack& stack);    // a task is this many rows or a multiple

  void (*pack)(const Stack& stack, const Parameters& parameters, int64_t layer);

  // Rows [begin, end) through all layers.
  void (*forward)(const Stack& stack, const Forward& call, int64_t begin, int64_t end, Scratch& scratch);

  // Rows [begin, end) back through all layers; their dw and db replace what `partial` holds (null: none wanted).
  void (*backward)(const Stack& stack, const Backward& call, int64_t begin, int64_t end, void* partial,
                   Scratch& scratch);

  // du and db of one layer from `parts` partial sums, added in order into the first.
  void (*reduce)(const Stack& stack, const Gradients& gradients, int64_t layer, void* partials, int64_t parts);

  // kFmasPerIteration independent fused multiply-adds of whole float32 vectors, `iterations` times.
  void (*fma_loop)(int64_t iterations);
};

constexpr int64_t kFmasPerIteration = 12;

namespace DEFAULT {
extern const Kernels kTable;
}
namespace AVX2 {
extern const Kernels kTable;
}
namespace AVX512 {
extern const Kernels kTable;
}

// The table for this machine, the one that torch itself would choose (ATEN_CPU_CAPABILITY lowers it).
const Kernels& kernels();

}  // namespace hanops::cpu
