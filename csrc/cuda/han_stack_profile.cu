// Runs and times the kernels on their own, without Python or torch: what Nsight Compute is pointed at.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan.h"
#include "values.cuh"

namespace {

using namespace hanops::cuda;

constexpr const char* kUsage = R"(usage: han_stack_profile [options]
  --features D   width of a row (1024)          --rows N     rows of a group (65536)
  --depth L      layers (16)                    --groups G   independent stacks (1)
  --dtype T      float32, bfloat16, float16 or float64 (bfloat16)
  --direction W  forward, inference (no sign bits), backward or all (all)
  --repeats K    timed launches, of which the median counts (20)
)";

struct Options {
  int64_t features = 1024, rows = 65536, depth = 16, groups = 1, repeats = 20;
  std::string dtype = "bfloat16", direction = "all";
};

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
    const char* value = arguments[i + 1];
    const auto number = [&](int64_t& out) {
      out = std::atoll(value);
      if (out < 1) throw std::invalid_argument(name + " must be a whole number from 1, got " + value);
    };
    if (name == "--features")
      number(options.features);
    else if (name == "--rows")
      number(options.rows);
    else if (name == "--depth")
      number(options.depth);
    else if (name == "--groups")
      number(options.groups);
    else if (name == "--repeats")
      number(options.repeats);
    else if (name == "--dtype")
      options.dtype = value;
    else if (name == "--direction")
      options.direction = value;
    else
      throw std::invalid_argument("unknown option " + name);
  }
  return options;
}

Type type_of(const std::string& name) {
  if (name == "float64") return Type::kFloat64;
  if (name == "float32") return Type::kFloat32;
  if (name == "bfloat16") return Type::kBFloat16;
  if (name == "float16") return Type::kFloat16;
  throw std::invalid_argument("--dtype must be float64, float32, bfloat16 or float16, got " + name);
}

size_t bytes_of(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

// Device memory that lives as long as this.
class Buffer {
 public:
  explicit Buffer(size_t bytes) { check(cudaMalloc(&data, std::max<size_t>(bytes, 256)), "cudaMalloc"); }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
  void* data = nullptr;
};

// Fills n elements of a type with normal numbers, a block of them again and again.
void fill(void* target, size_t n, Type type, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<char> host(std::min<size_t>(n, 1 << 20) * bytes_of(type));
  for (size_t i = 0; i < host.size() / bytes_of(type); ++i) {
    const float value = normal(generator);
    char* place = host.data() + i * bytes_of(type);
    if (type == Type::kFloat64)
      *reinterpret_cast<double*>(place) = value;
    else if (type == Type::kFloat32)
      *reinterpret_cast<float*>(place) = value;
    else if (type == Type::kBFloat16)
      *reinterpret_cast<__nv_bfloat16*>(place) = __float2bfloat16_rn(value);
    else
      *reinterpret_cast<__half*>(place) = __float2half_rn(value);
  }
  for (size_t done = 0, all = n * bytes_of(type); done < all; done += host.size()) {
    check(cudaMemcpy(static_cast<char*>(target) + done, host.data(), std::min(host.size(), all - done),
                     cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
}

// Median seconds of a launch.
template <class F>
double seconds(int64_t repeats, F launch) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int64_t i = -3; i < repeats; ++i) {  // the first three warm up
    check(cudaEventRecord(start), "cudaEventRecord");
    launch();
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    if (i >= 0) times.push_back(milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2] * 1e-3;
}

constexpr int kChains = 8, kFmas = 64, kFmaThreads = 256;

// Independent chains of float32 multiply-adds: the ceiling of issue slots.
__global__ void multiply_add(float* out, int iterations) {
  float x[kChains];
  for (int c = 0; c < kChains; ++c) x[c] = static_cast<float>(threadIdx.x + c);
  for (int i = 0; i < iterations; ++i) {
#pragma unroll
    for (int k = 0; k < kFmas; ++k) x[k % kChains] = x[k % kChains] * 0.999f + 1e-3f;
  }
  float sum = 0;
  for (int c = 0; c < kChains; ++c) sum += x[c];
  write(out + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

struct Ceilings {
  double bytes_per_second;  // of a copy, read and written
  double fmas_per_second;
};

Ceilings measure_ceilings(int processors, int64_t repeats) {
  const size_t bytes = size_t{256} << 20;
  Ceilings ceilings;
  {
    const Buffer from(bytes), to(bytes);
    ceilings.bytes_per_second =
        2.0 * bytes / seconds(repeats, [&] {
          check(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, nullptr), "copy");
        });
  }
  const int blocks = processors * 8, iterations = 2000;
  const Buffer out(sizeof(float) * blocks * kFmaThreads);
  void* data = out.data;
  struct Arguments {
    float* out;
    int iterations;
  };
  void* arguments[] = {&data, const_cast<int*>(&iterations)};
  const double time = seconds(std::min<int64_t>(repeats, 5), [&] {
    check(cudaLaunchKernel(multiply_add, dim3(blocks), dim3(kFmaThreads), arguments, 0, nullptr), "multiply_add");
  });
  ceilings.fmas_per_second = double(blocks) * kFmaThreads * iterations * kFmas / time;
  return ceilings;
}

// The call's tensors on the device.
struct Tensors {
  Call call;
  Buffer x, y, dy, dx, signs, u, b, du, db;

  Tensors(const Options& o, Type type)
      : call(sizes(o, type)),
        x(elements() * bytes_of(type)),
        y(elements() * bytes_of(type)),
        dy(elements() * bytes_of(type)),
        dx(elements() * bytes_of(type)),
        signs(o.groups * o.rows * o.depth * sign_bytes()),
        u(parameters() * bytes_of(type)),
        b(parameters() * bytes_of(type)),
        du(parameters() * bytes_of(type)),
        db(parameters() * bytes_of(type)) {
    fill(x.data, elements(), type, 1);
    fill(dy.data, elements(), type, 2);
    fill(u.data, parameters(), type, 3);
    fill(b.data, parameters(), type, 4);
    call.u = u.data;
    call.b = b.data;
  }

  static Call sizes(const Options& o, Type type) {
    Call call;
    call.groups = o.groups;
    call.rows = o.rows;
    call.features = static_cast<int>(o.features);
    call.layers = call.abs_layers = static_cast<int>(o.depth);
    call.type = call.parameter_type = type;
    return call;
  }

  size_t elements() const { return call.groups * call.rows * call.features; }
  size_t parameters() const { return call.groups * call.layers * size_t(call.features); }
  size_t sign_bytes() const {
    size_t bytes = 4;
    while (8 * bytes < size_t(call.features)) bytes *= 2;
    return bytes;
  }

  Rows rows(const Buffer& buffer) const {
    const int vector = call.features % 4 == 0 ? 4 : call.features % 2 == 0 ? 2 : 1;
    return {buffer.data, call.rows * call.features, call.features, vector};
  }

  Call forward(bool save) const {
    Call call = this->call;
    call.x = rows(x);
    call.y = rows(y);
    call.signs = save ? static_cast<uint8_t*>(signs.data) : nullptr;
    return call;
  }

  Call backward() const {
    Call call = forward(true);
    call.x = {};
    call.dy = rows(dy);
    call.dx = dx.data;
    call.du = du.data;
    call.db = db.data;
    return call;
  }
};

void report(const char* name, const Plan& plan, double bytes, double slots, const Tensors& tensors, int64_t repeats,
            const Ceilings& ceilings) {
  const Buffer workspace(plan.workspace());
  const double time = seconds(repeats, [&] { plan.launch(workspace.data, nullptr); });
  const double element_layers = double(tensors.elements()) * tensors.call.layers;
  const double by_bytes = bytes / ceilings.bytes_per_second,
               by_slots = slots * element_layers / ceilings.fmas_per_second;
  std::printf("%-10s %9.1f us %8.1f GB/s (%5.1f %% of a copy) %8.1f G element-layers/s (%5.1f %% of the issue slots)\n",
              name, time * 1e6, bytes / time * 1e-9, 100 * by_bytes / time, element_layers / time * 1e-9,
              100 * by_slots / time);
  const Residence taken = plan.residence();
  std::printf("           %s; %d registers, %d of %d warps resident\n", plan.describe().c_str(), taken.registers,
              taken.warps, taken.most_warps);
}

void run(const Options& options) {
  const Type type = type_of(options.dtype);
  const std::string& way = options.direction;
  if (way != "forward" && way != "inference" && way != "backward" && way != "all") {
    throw std::invalid_argument("--direction must be forward, inference, backward or all, got " + way);
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  const Device device = Device::current();
  const Ceilings ceilings = measure_ceilings(device.processors, options.repeats);
  std::printf("%s, %d multiprocessors: a copy moves %.0f GB/s, %.1f T float32 multiply-adds/s\n", properties.name,
              device.processors, ceilings.bytes_per_second * 1e-9, ceilings.fmas_per_second * 1e-12);
  std::printf("N=%lld, d=%lld, L=%lld, G=%lld, %s\n", static_cast<long long>(options.rows),
              static_cast<long long>(options.features), static_cast<long long>(options.depth),
              static_cast<long long>(options.groups), options.dtype.c_str());

  const Tensors tensors(options, type);
  const double tensor = double(tensors.elements()) * bytes_of(type);
  const double bits = double(options.groups) * options.rows * options.depth * tensors.sign_bytes();
  const Plan inference(Direction::kForward, tensors.forward(false), device);
  const Plan forward(Direction::kForward, tensors.forward(true), device);
  const Plan backward(Direction::kBackward, tensors.backward(), device);
  if (way == "inference" || way == "all") {
    report("inference", inference, 2 * tensor, 3, tensors, options.repeats, ceilings);
  }
  if (way == "forward" || way == "all") {
    report("forward", forward, 2 * tensor + bits, 4, tensors, options.repeats, ceilings);
  } else {  // what the backward reads
    const Buffer workspace(forward.workspace());
    forward.launch(workspace.data, nullptr);
  }
  if (way == "backward" || way == "all") {
    report("backward", backward, 3 * tensor + bits, 12, tensors, options.repeats, ceilings);
  }
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

}  // namespace

int main(int count, char** arguments) {
  try {
    for (int i = 1; i < count; ++i) {
      if (std::strcmp(arguments[i], "--help") == 0) return std::fputs(kUsage, stdout), 0;
    }
    run(parse(count, arguments));
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "han_stack_profile: %s\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "han_stack_profile: %s\n", error.what());
    return 1;
  }
}
