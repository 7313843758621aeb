// A call to the CUDA kernels and how it will run, free of torch: tiles, launches, the memory that they need.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace hanops::cuda {

enum class Type { kFloat64, kFloat32, kBFloat16, kFloat16 };

// A tensor seen as (groups, rows, features), its columns contiguous. Strides are in elements.
struct Rows {
  void* data = nullptr;
  int64_t group_stride = 0, row_stride = 0;
  int vector = 1;  // 1, 2 or 4: how many columns may be read at once, by the address, the strides and the features
};

// One call, as every kernel receives it. Those of a forward have no dy, dx, du and db.
struct Call {
  // The caller's part.
  int64_t groups = 1, rows = 0;  // rows of a group
  int features = 0, layers = 0, abs_layers = 0;
  Type type = Type::kFloat32, parameter_type = Type::kFloat32;  // of x, y, dy and dx; of u, b, du and db
  Rows x, y, dy;       // forward: x, and y, which is packed; backward: dy, and y, or no data where du is not needed
  void* dx = nullptr;  // packed, like y; null where it is not needed, as du and db
  uint8_t* signs = nullptr;
  const void *u = nullptr, *b = nullptr;  // (groups, layers, features), packed; b may be null
  void *du = nullptr, *db = nullptr;

  // The plan's part; the memory is of the arithmetic type, float64 or float32.
  int columns = 0;                              // features, padded to a power of two from 32
  int sign_bytes = 0;                           // of a row and layer: columns / 8
  unsigned sign_stride = 0;                     // of a row of a tile: abs_layers * sign_bytes
  int lanes = 0, warps = 0;                     // of a team, where the tile leaves it open
  int blocks = 1;                               // of a group
  int64_t ahead = 0;                            // forward: tiles until a resident block makes room for another
  int parts = 1;                                // partial sums of du and db of each group
  bool folds = false;                           // the second half of them are sums of the first
  int block_layers = 0;                         // the first layers, whose partial sums are in a block's memory
  bool pack_here = false, finish_here = false;  // in the main kernel's blocks, without a launch of their own
  void *packed = nullptr, *norms = nullptr;     // (groups, layers, 2, columns), (groups, layers, 2)
  void *partials = nullptr, *totals = nullptr;  // (groups, parts, layers, 2, columns), (groups, 1, layers, 2, columns)
  void* coefficients = nullptr;                 // (groups, rows, layers, 2)
  uint8_t* live = nullptr;                      // (groups, rows): whether dy has an element that is not 0
  void* scratch = nullptr;                      // (blocks, columns or 2 columns)
};

enum class Direction { kForward, kBackward };

// A device's part in the plan.
struct Device {
  int processors;
  int shared = 0, shared_of_block = 0;  // bytes of shared memory of a multiprocessor, and what a block may have of it
  static Device current();
};

// What a plan's main kernel takes of the current device.
struct Residence {
  int registers = 0;              // of a thread
  int warps = 0, most_warps = 0;  // resident on a multiprocessor, and the most that it could hold
};

struct Rung;
using Kernel = void (*)(Call);

// Which kernels run a call, in how many blocks, and what they need. A call has at least one layer and one element.
class Plan {
 public:
  Plan(Direction direction, const Call& call, Device device);

  // Bytes of device memory that the launches use, aligned to 256 bytes.
  size_t workspace() const { return workspace_; }
  // The kernels and tiles that will run, for people.
  std::string describe() const;
  Residence residence() const;
  // Launches the kernels on a stream of the current device. Throws std::runtime_error where a launch fails.
  void launch(void* workspace, cudaStream_t stream) const;

 private:
  static constexpr size_t kNone = ~size_t{0};

  void plan_forward();
  void plan_backward();
  void choose_tile(const Rung* tall, size_t count, const Rung& loose);
  int blocks_with_sums(int rows, int teams_of_a_block, int64_t resident) const;
  int resident_blocks(int threads, int warps_per_processor) const;
  int team() const;
  size_t exchange() const;
  void set_threads(int threads);
  size_t shared_memory() const;
  Kernel main_kernel() const;
  int main_threads() const;
  bool fits_a_block() const;
  void reserve_packed();
  size_t reserve(size_t elements);

  Direction direction_;
  Call call_;
  Device device_;
  const Rung* rung_ = nullptr;  // null where rows are streamed
  int threads_ = 0, slice_blocks_ = 0;
  int64_t stream_blocks_ = 0;
  size_t item_;  // bytes of an element of the arithmetic type
  size_t workspace_ = 0;
  size_t packed_ = kNone, norms_ = kNone, partials_ = kNone, totals_ = kNone, coefficients_ = kNone, live_ = kNone,
         scratch_ = kNone;
};

}  // namespace hanops::cuda
