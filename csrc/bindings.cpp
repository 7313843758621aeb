// The extension module hanops._C: what Python asks of the native build beside the ops.
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "backend.h"
#include "cpu/kernels.h"

namespace py = pybind11;

namespace {

// Element-wise multiply-adds per second of one core, as vectors of `lanes` float32: the ceiling of the CPU kernels.
double fma_vectors_per_second(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto& kernels = hanops::cpu::kernels();
  constexpr int64_t kIterations = 100'000;
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end) {
    const auto start = Clock::now();
    kernels.fma_loop(kIterations);
    const std::chrono::duration<double> taken = Clock::now() - start;
    best = std::max(best, kIterations * hanops::cpu::kFmasPerIteration / taken.count());
  }
  return best;
}

py::dict build_info() {
  const auto& kernels = hanops::cpu::kernels();
  py::dict info;
  info["torch"] = HANOPS_TORCH_VERSION;
  info["compiler"] = HANOPS_COMPILER;
  info["instruction_sets"] = py::str(HANOPS_INSTRUCTION_SETS).attr("split")(",");
  info["instruction_set"] = kernels.name;
  info["float32_lanes"] = kernels.lanes;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native part of hanops; importing it registers the ops under torch.ops.hanops.";
  m.def("build_info", &build_info, "What this module was built with and which instruction set it runs.");
  m.def("fma_vectors_per_second", &fma_vectors_per_second, py::arg("seconds") = 0.2,
        py::call_guard<py::gil_scoped_release>(),
        "Independent float32 multiply-adds of whole vectors per second on one core, the best of many short runs.");
  m.def("set_backend", [](const std::string& name) {
    const auto& names = hanops::kBackendNames;
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw py::value_error("no such backend: " + name);
    hanops::chosen_backend = static_cast<hanops::Backend>(found - names.begin());
  });
  m.def("set_has_triton", [](bool has_triton) { hanops::has_triton = has_triton; });
}
