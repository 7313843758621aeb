// A small CUDA machine on the CPU: blocks run one after another, each thread of a block is a fiber.
//
// It runs the kernels' own source, and reports what a GPU would not: accesses outside a buffer or not aligned, races
// on shared memory between two barriers, barriers and shuffles that not all threads reach, early grids that do not
// wait. The emulator's folder stands before the CUDA toolkit's on the include path: cuda_runtime.h there includes this
// file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the running fiber.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

using Place = std::source_location;  // of a call in the kernels

constexpr size_t kSharedBytes = 227 << 10;

// What a kernel did wrong, and where.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How many SMs the machine says it has.
inline int sms = 1;

// The current device. Device 0 runs code for sm_90, device 1 for sm_80.
inline int device = 0;

// Grids that it has run, and how many of them were launched early: they may start before the grid before has ended.
inline int launches = 0, early_launches = 0;

// Memory that kernels may use. Nothing else may be touched.
void add_buffer(const void* begin, size_t bytes);
void remove_buffer(const void* begin);

using Entry = void (*)(const void* kernel, void** arguments);

// Runs a grid. `entry` calls the kernel once for each thread.
void launch(Entry entry, const void* kernel, void** arguments, dim3 grid, dim3 block, size_t shared_bytes, bool early);

enum class Access { kRead, kWrite };

void check(Access access, const void* p, size_t bytes, size_t alignment, Place place);
void barrier(Place place);
uint64_t shuffle_xor(unsigned mask, uint64_t value, int lane_mask, Place place);

template <class T>
T read(const T* p, Place place = Place::current()) {
  check(Access::kRead, p, sizeof(T), alignof(T), place);
  return *p;
}

template <class T>
void write(T* p, T value, Place place = Place::current()) {
  check(Access::kWrite, p, sizeof(T), alignof(T), place);
  *p = value;
}

template <class T>
T read_once(const T* p, Place place = Place::current()) {
  return read(p, place);
}

template <class T>
void write_once(T* p, T value, Place place = Place::current()) {
  write(p, value, place);
}

// What a thread of an early grid must call before it reads what the grids before it have written, and before it writes.
void wait_for_kernels_before();

inline void let_next_kernel_start() {}
inline void prefetch_line(const void*) {}
inline unsigned pinned(unsigned v) { return v; }
inline unsigned packed_bytes(int first, int second, unsigned above) {
  const auto byte = [](int number) { return unsigned(std::clamp(number, -128, 127)) & 255; };
  return byte(first) | byte(second) << 8 | above << 16;
}
inline unsigned xor_and(unsigned x, unsigned y, unsigned z) { return x ^ (y & z); }

}  // namespace emulator
