// The extension module hanops._C: what Python asks of the native build beside the ops.
#include <ATen/Version.h>
#include <c10/core/ScalarType.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <list>

#include "backend.h"
#include "cpu/kernels.h"
#ifdef HANOPS_CUDA
#include "cuda/plan.h"
#endif

namespace py = pybind11;

namespace {

// What the module fits, as hanops/backends/native.py reads it from the file before it is loaded: torch, and the CUDA of
// kernels.
#ifdef HANOPS_CUDA
#define HANOPS_KERNELS HANOPS_TORCH_CUDA
#else
#define HANOPS_KERNELS "none"
#endif
constexpr char kBuiltFor[] = "hanops._C was built for: torch=" HANOPS_TORCH_VERSION " cuda=" HANOPS_KERNELS;

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

hanops::Backend backend(const std::string& name) {
  const auto& names = hanops::kBackendNames;
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw py::value_error("no such backend: " + name);
  return static_cast<hanops::Backend>(found - names.begin());
}

at::ScalarType scalar_type(const std::string& name) {
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    if (c10::getDtypeNames(type).first == name) return type;
  }
  throw py::value_error("no such dtype: " + name);
}

using RuleTuple = std::tuple<std::string, std::vector<std::string>, int64_t, int64_t, int64_t>;
using RulesTuple = std::pair<std::vector<RuleTuple>, std::string>;

hanops::Rules rules(const RulesTuple& given) {
  hanops::Rules result{{}, given.second};
  for (const auto& [name, dtypes, features, layers, rows] : given.first) {
    hanops::Rule rule{backend(name), 0, features, layers, rows};
    for (const auto& dtype : dtypes) rule.dtypes |= uint64_t{1} << static_cast<int>(scalar_type(dtype));
    result.rules.push_back(rule);
  }
  return result;
}

void set_choice(const std::string& name, const RulesTuple& cpu, const RulesTuple& cuda, const RulesTuple& other) {
  static std::list<hanops::Choice> choices;
  const hanops::Choice wanted{name, rules(cpu), rules(cuda), rules(other)};
  auto found = std::find(choices.begin(), choices.end(), wanted);
  if (found == choices.end()) found = choices.insert(found, wanted);
  hanops::choice.store(&*found, std::memory_order_release);
}

py::dict build_info() {
  const auto& kernels = hanops::cpu::kernels();
  py::dict info;
  info["torch"] = HANOPS_TORCH_VERSION;
  info["built_for"] = kBuiltFor;
  info["compiler"] = HANOPS_COMPILER;
  info["instruction_sets"] = py::str(HANOPS_INSTRUCTION_SETS).attr("split")(",");
  info["instruction_set"] = kernels.name;
  info["float32_lanes"] = kernels.lanes;
#ifdef HANOPS_CUDA
  info["cuda_architectures"] = py::str(HANOPS_CUDA).attr("split")(",");
#endif
  return info;
}

#ifdef HANOPS_CUDA
// What the CUDA kernel of a direction takes of the current GPU: "forward", "forward with bits" or "backward".
py::dict cuda_residence(const std::string& kernel, const std::string& dtype, int64_t groups, int64_t rows, int features,
                        int layers) {
  using namespace hanops::cuda;
  const auto type = scalar_type(dtype);
  Stack stack;
  stack.groups = groups;
  stack.rows = rows;
  stack.features = features;
  stack.layers = stack.abs_layers = layers;
  stack.type = stack.parameter_type = type == at::kDouble  ? Type::kFloat64
                                      : type == at::kFloat ? Type::kFloat32
                                      : type == at::kHalf  ? Type::kFloat16
                                                           : Type::kBFloat16;
  const auto plan = make_plan(stack, kernel == "backward", kernel != "forward", Device::current());
  const Residence taken = plan->residence();
  py::dict result;
  result["tile"] = plan->describe();
  result["registers"] = taken.registers;
  result["warps"] = taken.warps;
  result["most_warps"] = taken.most_warps;
  return result;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native part of hanops; importing it registers the ops under torch.ops.hanops.";
  m.def("build_info", &build_info, "What this module was built with and which instruction set it runs.");
  m.def("fma_vectors_per_second", &fma_vectors_per_second, py::arg("seconds") = 0.2,
        py::call_guard<py::gil_scoped_release>(),
        "Independent float32 multiply-adds of whole vectors per second on one core, the best of many short runs.");
#ifdef HANOPS_CUDA
  m.def("cuda_residence", &cuda_residence, py::arg("kernel"), py::arg("dtype"), py::arg("groups"), py::arg("rows"),
        py::arg("features"), py::arg("layers"), "The tile of a call on the current GPU, and what it takes of it.");
#endif
  m.def("set_choice", &set_choice, py::arg("name"), py::arg("cpu"), py::arg("cuda"), py::arg("other"),
        "What was asked for, and what it means on three kinds of devices: rules of backend, dtypes of x, and the most "
        "features, layers and rows, and how the error ends where no rule fits a call.");
  m.def(
      "select_backend",
      [](const std::string& device, const std::string& dtype, int64_t features, int64_t layers, int64_t rows) {
        const auto chosen = hanops::select_backend(at::Device(device), scalar_type(dtype), features, layers, rows);
        return std::string(hanops::kBackendNames[static_cast<size_t>(chosen)]);
      },
      py::arg("device"), py::arg("dtype"), py::arg("features"), py::arg("layers"), py::arg("rows"),
      "The backend of a call on x of so many rows.");
}
