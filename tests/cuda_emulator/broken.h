// Faults that a test puts into the kernels, to see the emulator find each: HANOPS_BREAK in the environment names one.
#pragma once

#include <cstdlib>
#include <cstring>

namespace emulator {

inline bool is_broken(const char* fault) {
  static const char* const chosen = std::getenv("HANOPS_BREAK");
  return chosen && std::strcmp(chosen, fault) == 0;
}

}  // namespace emulator

#define HANOPS_BROKEN(fault) emulator::is_broken(fault)
