// The process-wide choice of implementation, read inside the ops: it is no part of any graph.
#pragma once

#include <atomic>

namespace hanops {

enum class Backend { kAuto, kCpu, kReference };

inline std::atomic<Backend> chosen_backend{Backend::kAuto};

}  // namespace hanops
