// The machine: fibers, the scheduler of a block, and the checks of memory.
#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

// The shared memory of the running block.
alignas(256) double hanops_shared[emulator::kSharedBytes / sizeof(double)];

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;

enum class State { kReady, kAtBarrier, kAtShuffle, kFinished };

struct Fiber {
  State state;
  Place place;     // where it waits
  uint64_t value;  // in a shuffle: given, then received
  int lane_mask;
  bool started, waited;  // waited: for the grids before
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<char[]> stack;
};

// The last accesses to a word of shared memory: thread + 1, and in which epoch, the number of barriers before it.
struct Shadow {
  unsigned writer = 0, reader = 0;  // reader kMany: several
  uint64_t written = 0, read = 0;
};
constexpr unsigned kMany = ~0u;

// Device memory. written: of each 4 bytes, the last grid that wrote there, counted from 1.
struct Buffer {
  size_t bytes;
  std::vector<int> written{};
};

struct Machine {
  std::vector<Fiber> fibers;
  unsigned threads = 0, current = 0;
  jmp_buf scheduler;
  ucontext_t scheduler_start;
  std::exception_ptr failure;

  Entry entry = nullptr;
  const void* kernel = nullptr;
  void** arguments = nullptr;

  bool early = false;
  int first_of_call = 0;  // the last grid that was not launched early

  std::map<uintptr_t, Buffer> buffers;
  uintptr_t last_begin = 0;  // the buffer of the last access
  Buffer* last = nullptr;
  size_t shared_bytes = 0;
  std::vector<Shadow> shadows;
  uint64_t epoch = 1;  // grows from block to block, so that shadows need no reset
};

Machine machine;
std::mutex one_launch;

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && std::string_view(a.file_name()) == b.file_name();
}

[[noreturn]] void fail(const std::string& what, Place place) {
  std::ostringstream text;
  text << "CUDA emulator: " << what << ", " << place.file_name() << ":" << place.line() << ", thread "
       << machine.current << " of block " << blockIdx.x;
  throw Fault(text.str());
}

void yield() {
  if (_setjmp(machine.fibers[machine.current].resume) == 0) _longjmp(machine.scheduler, 1);
}

void wait(State state, Place place) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  fiber.place = place;
  yield();
}

void run_fiber() {
  try {
    machine.entry(machine.kernel, machine.arguments);
    if (machine.early && !machine.fibers[machine.current].waited) fail("an early grid never waits", Place::current());
  } catch (...) {
    machine.failure = std::current_exception();
  }
  machine.fibers[machine.current].state = State::kFinished;
  _longjmp(machine.scheduler, 1);
}

void resume(unsigned thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  threadIdx = {thread};
  if (_setjmp(machine.scheduler) != 0) return;  // the fiber waits or has finished
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_fiber, 0);
  setcontext(&fiber.start);
}

// Lets a warp's shuffle happen once all its lanes are there.
bool complete_shuffle(unsigned first) {
  Fiber* lanes = &machine.fibers[first];
  unsigned waiting = 0;
  for (unsigned i = 0; i < kWarp; ++i) waiting += lanes[i].state == State::kAtShuffle;
  if (waiting == 0) return false;
  uint64_t given[kWarp];
  for (unsigned i = 0; i < kWarp; ++i) {
    machine.current = first + i;
    if (lanes[i].state == State::kAtBarrier)
      fail("divergent warp: a lane waits at a barrier, others shuffle", lanes[i].place);
    if (lanes[i].state == State::kFinished) fail("divergent warp: a lane has finished, others shuffle", lanes[i].place);
    if (!same(lanes[i].place, lanes[0].place) || lanes[i].lane_mask != lanes[0].lane_mask) {
      fail("divergent warp: lanes are in different shuffles", lanes[i].place);
    }
    given[i] = lanes[i].value;
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    lanes[i].value = given[i ^ unsigned(lanes[i].lane_mask)];
    lanes[i].state = State::kReady;
  }
  return true;
}

// Lets a block pass a barrier once all its threads are there; false where they all have finished.
bool complete_barrier() {
  unsigned finished = 0;
  for (unsigned i = 0; i < machine.threads; ++i) finished += machine.fibers[i].state == State::kFinished;
  if (finished == machine.threads) return false;
  for (unsigned i = 0; i < machine.threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    machine.current = i;
    if (fiber.state == State::kFinished) fail("divergent barrier: a thread has finished, others wait", fiber.place);
    if (!same(fiber.place, machine.fibers[0].place))
      fail("divergent barrier: threads wait at different ones", fiber.place);
    fiber.state = State::kReady;
  }
  ++machine.epoch;
  return true;
}

void run_block() {
  std::memset(hanops_shared, 0xff, machine.shared_bytes);  // NaN
  for (unsigned i = 0; i < machine.threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    fiber.state = State::kReady;
    fiber.started = fiber.waited = false;
  }
  do {
    bool busy = true;
    while (busy) {
      busy = false;
      for (unsigned first = 0; first < machine.threads; first += kWarp) {
        do {
          for (unsigned i = first; i < first + kWarp; ++i) {
            if (machine.fibers[i].state != State::kReady) continue;
            resume(i);
            if (machine.failure) std::rethrow_exception(std::exchange(machine.failure, nullptr));
          }
        } while (complete_shuffle(first));
      }
    }
  } while (complete_barrier());
  ++machine.epoch;
}

bool in_shared(const void* p) {
  const char* begin = reinterpret_cast<const char*>(hanops_shared);
  return p >= begin && p < begin + kSharedBytes;
}

// Checks that an access is aligned, and within one buffer.
void check_bounds(const void* p, size_t bytes, size_t alignment, Place place) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address % alignment) fail("misaligned access", place);
  if (in_shared(p)) {
    if (address + bytes > reinterpret_cast<uintptr_t>(hanops_shared) + machine.shared_bytes) {
      fail("access outside of shared memory", place);
    }
    return;
  }
  const uintptr_t offset = address - machine.last_begin;
  if (machine.last && offset < machine.last->bytes && bytes <= machine.last->bytes - offset) return;
  const auto next = machine.buffers.upper_bound(address);
  if (next == machine.buffers.begin()) fail("access outside of a buffer", place);
  auto& [begin, buffer] = *std::prev(next);
  if (address - begin + bytes > buffer.bytes) fail("access outside of a buffer", place);
  machine.last_begin = begin;
  machine.last = &buffer;
}

// Checks that a thread of an early grid waits before it writes, and before it reads what the call's grids have written.
void check_order(Access access, const void* p, size_t bytes, Place place) {
  const bool waited = !machine.early || machine.fibers[machine.current].waited;
  if (access == Access::kRead && waited) return;
  if (!waited && access == Access::kWrite) fail("an early grid writes before it waits", place);
  std::vector<int>& written = machine.last->written;
  if (written.empty() && access == Access::kWrite) written.resize((machine.last->bytes + 3) / 4);
  const size_t offset = reinterpret_cast<uintptr_t>(p) - machine.last_begin;
  for (size_t i = offset / 4; i < (offset + bytes + 3) / 4 && i < written.size(); ++i) {
    if (access == Access::kWrite)
      written[i] = launches;
    else if (written[i] >= machine.first_of_call)
      fail("an early grid reads what another writes before it waits", place);
  }
}

}  // namespace

void add_buffer(const void* begin, size_t bytes) {
  remove_buffer(begin);
  machine.buffers[reinterpret_cast<uintptr_t>(begin)] = {bytes};
}

void remove_buffer(const void* begin) {
  machine.buffers.erase(reinterpret_cast<uintptr_t>(begin));
  machine.last = nullptr;
}

void launch(Entry entry, const void* kernel, void** arguments, dim3 grid, dim3 block, size_t shared_bytes, bool early) {
  const std::lock_guard lock(one_launch);
  if (block.x % kWarp) throw Fault("CUDA emulator: blocks of whole warps only");
  machine.entry = entry;
  machine.kernel = kernel;
  machine.arguments = arguments;
  machine.threads = block.x;
  machine.shared_bytes = shared_bytes;
  if (machine.fibers.size() < block.x) machine.fibers.resize(block.x);
  if (machine.shadows.empty()) machine.shadows.resize(kSharedBytes / 4);
  ++launches;
  early_launches += early;
  machine.early = early;
  if (!early) machine.first_of_call = launches;
  gridDim = grid;
  blockDim = block;
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx = {i};
    run_block();
  }
}

void wait_for_kernels_before() { machine.fibers[machine.current].waited = true; }

void barrier(Place place) { wait(State::kAtBarrier, place); }

uint64_t shuffle_xor(unsigned mask, uint64_t value, int lane_mask, Place place) {
  if (mask != ~0u) fail("a shuffle among less than a warp", place);
  Fiber& fiber = machine.fibers[machine.current];
  fiber.value = value;
  fiber.lane_mask = lane_mask;
  wait(State::kAtShuffle, place);
  return machine.fibers[machine.current].value;
}

void check(Access access, const void* p, size_t bytes, size_t alignment, Place place) {
  check_bounds(p, bytes, alignment, place);
  if (!in_shared(p)) return check_order(access, p, bytes, place);
  const unsigned thread = machine.current + 1;
  const size_t first = (static_cast<const char*>(p) - reinterpret_cast<const char*>(hanops_shared)) / 4;
  for (size_t i = first; i < first + (bytes + 3) / 4; ++i) {
    Shadow& word = machine.shadows[i];
    const bool written = word.written == machine.epoch && word.writer != thread;  // by another thread
    const bool read = word.read == machine.epoch && word.reader != thread;
    if (access == Access::kRead) {
      if (written) fail("race on shared memory: read after write", place);
      word.reader = read ? kMany : thread;
      word.read = machine.epoch;
    } else {
      if (written) fail("race on shared memory: two writes", place);
      if (read) fail("race on shared memory: write after read", place);
      word.writer = thread;
      word.written = machine.epoch;
    }
  }
}

}  // namespace emulator
