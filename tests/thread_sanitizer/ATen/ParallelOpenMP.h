// Stands before torch's header of this name in a build for ThreadSanitizer: at::parallel_for with a std::thread for
// each part, which the sanitizer sees starting and ending. It knows nothing of the barriers of OpenMP's run-time
// library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#define INTRA_OP_PARALLEL

namespace at::internal {

template <class F>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  int64_t threads = get_num_threads();
  if (grain_size > 0) threads = std::min(threads, divup(end - begin, grain_size));
  const int64_t share = divup(end - begin, threads);
  std::vector<std::thread> running;
  for (int64_t first = begin; first < end; first += share) {
    running.emplace_back([&f, first, last = std::min(end, first + share)] { f(first, last); });
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace at::internal
