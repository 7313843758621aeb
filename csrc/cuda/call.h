// What a CUDA kernel receives: the call as the caller states it, and how the plan runs it. Free of torch.
#pragma once

#include <cstdint>

#include "../signs.h"

namespace hanops::cuda {

enum class Type { kFloat64, kFloat32, kBFloat16, kFloat16 };

// A tensor seen as (groups, rows, features), its columns contiguous; or as (groups, outer, features, inner), its inner
// axis contiguous: its rows are then the outer ones. Strides are in elements.
struct Rows {
  void* data = nullptr;
  int64_t group_stride = 0, row_stride = 0;
  int vector = 1;  // 1, 2 or 4: how many columns, or inner ones, may be read at once, by address, strides and sizes
  int64_t feature_stride = 1;
};

// What both directions have. Memory of the plan's is of the arithmetic type, float64 or float32.
struct Stack {
  // The caller's part.
  int64_t groups = 1, rows = 0;  // rows of a group, or positions: outer * inner
  int outer = 0, inner = 0;      // where the features are not the last axis: outer * inner == rows, of 31 bits
  int features = 0, layers = 0, abs_layers = 0;
  Type type = Type::kFloat32, parameter_type = Type::kFloat32;  // of x, y, dy and dx; of u, b, du and db
  bool has_bias = false;
  bool rest = false;  // each row of the signs ends in the rest of y: kRestPlanes more planes, see ../signs.h
  const void *u = nullptr, *b = nullptr;  // (groups, layers, features), packed

  // The plan's part.
  int columns = 0;           // features, padded to 8 * sign_bytes: a power of two from 32, or a multiple of it
  int sign_bytes = 0;        // of a row and layer, see ../signs.h
  int planes = 0;            // of sign_bytes, in a row: abs_layers and those of the rest
  unsigned sign_stride = 0;  // of a row of a tile: planes * sign_bytes
  int lanes = 0, warps = 0;  // of a thread group, where the tile leaves them open
  int blocks = 1;            // of a group
  int64_t ahead = 0;         // tiles until a resident block's next one, or until it makes room for another
  bool pack_here = false;    // each block packs the parameters for itself; else `prepare` does
  void *packed = nullptr, *norms = nullptr;  // (groups, layers, 2, columns), (groups, layers, 2)
  void* scratch = nullptr;                   // of streamed rows: (blocks, columns), backward (blocks, 2, columns)
};

struct ForwardCall : Stack {
  bool save = false;  // the sign bits, and the rest
  Rows x;
  void* y = nullptr;         // packed
  uint8_t* signs = nullptr;  // (groups, rows, planes, sign_bytes), or (groups, outer, planes, sign_bytes / 4, inner, 4)
};

struct BackwardCall : Stack {
  bool needs_dx = false, needs_du = false, needs_db = false;
  Rows dy, y;  // y: where du is needed
  const uint8_t* signs = nullptr;
  void *dx = nullptr, *du = nullptr, *db = nullptr;  // packed

  int parts = 1;                 // partial sums of du and db of each group
  bool folds = false;            // the second half of them are sums of the first
  int block_layers = 0;          // the first layers, whose partial sums are in a block's memory
  bool sum_parts = false;        // a kernel of its own adds up the parts, to `totals`
  bool finish_here = false;      // the main kernel's block takes du and db from the sums; else `finish` does
  bool by_coefficients = false;  // parameter_gradients takes the sums, from what the main kernel keeps of each row
  void *partials = nullptr, *totals = nullptr;  // (groups, parts, layers, 2, columns), (groups, 1, layers, 2, columns)
  void* coefficients = nullptr;                 // (groups, rows, layers, 2)
  uint8_t* live = nullptr;                      // (groups, rows): whether dy has an element that is not 0; for du
};

}  // namespace hanops::cuda
