// Runs and times the kernels on their own, without Python or torch: what Nsight Compute is pointed at.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "han_stack_profile_options.h"
#include "launch.h"
#include "plan.h"
#include "values.cuh"

namespace {

using namespace hanops::cuda;
using namespace hanops::cuda::profile;

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

// A point in the stream's time.
class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  Event(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record() { check(cudaEventRecord(event_), "cudaEventRecord"); }
  double seconds_since(const Event& earlier) const {
    float milliseconds = 0;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

#ifdef HANOPS_CUDA_EMULATOR
constexpr int kCeilingIterations = 20, kCoverIterations = 1;
#else
constexpr int kCeilingIterations = 2000, kCoverIterations = 500;  // 1 ms and 0.3 ms on an H100
#endif
constexpr int kChains = 8, kFmas = 64, kFmaThreads = 256, kFmaBlocks = 8;  // blocks of an SM
constexpr int kWarmups = 3;

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

// The device, and its rate of multiply-adds.
class Gpu {
 public:
  Gpu() : device(Device::current()), out_(sizeof(float) * blocks() * kFmaThreads) {
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  }

  void compute(int iterations) const {
    void* data = out_.data;
    void* arguments[] = {&data, &iterations};
    check(cudaLaunchKernel(multiply_add, dim3(blocks()), dim3(kFmaThreads), arguments, 0, nullptr), "multiply_add");
  }

  void measure() {
    std::vector<double> seconds;
    for (int i = 0; i < kWarmups + 5; ++i) {
      Event start, end;
      start.record();
      compute(kCeilingIterations);
      end.record();
      if (i >= kWarmups) seconds.push_back(end.seconds_since(start));
    }
    fmas_per_second = double(blocks()) * kFmaThreads * kCeilingIterations * kFmas / median(seconds);
  }

  static int attribute(cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, 0), "cudaDeviceGetAttribute");
    return value;
  }

  std::string json() const {
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    std::ostringstream out;
    out << "\"device\": \"" << properties.name << "\", \"capability\": \"" << properties.major << "."
        << properties.minor << "\", \"multiprocessors\": " << device.sms
        << ", \"clock_khz\": " << attribute(cudaDevAttrClockRate)
        << ", \"memory_clock_khz\": " << attribute(cudaDevAttrMemoryClockRate)
        << ", \"l2_bytes\": " << attribute(cudaDevAttrL2CacheSize) << ", \"driver\": " << driver
        << ", \"runtime\": " << runtime << ", \"multiply_adds_per_s\": " << fmas_per_second;
    return out.str();
  }

  Device device;
  cudaDeviceProp properties;
  double fmas_per_second = 0;

 private:
  int blocks() const { return device.sms * kFmaBlocks; }
  Buffer out_;
};

// The tensors of one call on the device.
struct Tensors {
  Stack stack;
  Buffer x, y, dy, dx, signs, u, b, du, db;

  Tensors(const Case& c, Type type, bool rest)
      : stack(sizes(c, type, rest)),
        x(elements() * bytes_of(type)),
        y(elements() * bytes_of(type)),
        dy(elements() * bytes_of(type)),
        dx(elements() * bytes_of(type)),
        signs(c.groups * c.rows * row_bytes()),
        u(parameters() * bytes_of(type)),
        b(parameters() * bytes_of(type)),
        du(parameters() * bytes_of(type)),
        db(parameters() * bytes_of(type)) {
    fill(x.data, elements(), type, 1);
    fill(dy.data, elements(), type, 2);
    fill(u.data, parameters(), type, 3);
    fill(b.data, parameters(), type, 4);
    stack.has_bias = true;
    stack.u = u.data;
    stack.b = b.data;
  }

  static Stack sizes(const Case& c, Type type, bool rest) {
    Stack stack;
    stack.groups = c.groups;
    stack.rows = c.rows;
    stack.inner = static_cast<int>(c.inner);
    stack.outer = static_cast<int>(c.inner ? c.rows / c.inner : 0);
    stack.features = static_cast<int>(c.features);
    stack.layers = stack.abs_layers = static_cast<int>(c.layers);
    stack.type = stack.parameter_type = type;
    stack.rest = rest && bytes_of(type) == 2;
    return stack;
  }

  size_t elements() const { return stack.groups * stack.rows * stack.features; }
  size_t parameters() const { return stack.groups * stack.layers * size_t(stack.features); }
  // Of the sign bits, and the rest.
  size_t row_bytes() const {
    const size_t planes = stack.layers + (stack.rest ? hanops::kRestPlanes : 0);
    return planes * (stack.inner ? (stack.features + 31) / 32 * 4 : hanops::chunked_sign_bytes(stack.features));
  }

  Rows rows(const Buffer& buffer) const {
    const int64_t last = stack.inner ? stack.inner : stack.features;
    const int vector = last % 4 == 0 ? 4 : last % 2 == 0 ? 2 : 1;
    const int64_t row_stride = stack.inner ? last * stack.features : last;
    return {buffer.data, stack.rows * stack.features, row_stride, vector, stack.inner ? stack.inner : 1};
  }

  ForwardCall forward(bool save) const {
    ForwardCall call{stack, save, rows(x), y.data};
    call.rest = save && stack.rest;
    if (save) call.signs = static_cast<uint8_t*>(signs.data);
    return call;
  }

  BackwardCall backward() const {
    return {stack, true, true, true, rows(dy), rows(y), static_cast<uint8_t*>(signs.data), dx.data, du.data, db.data};
  }

  void copy() const {
    check(cudaMemcpyAsync(dx.data, x.data, elements() * bytes_of(stack.type), cudaMemcpyDeviceToDevice, nullptr),
          "copy");
  }
};

// One of the directions on every set of tensors, and its samples.
class Way {
 public:
  Way(std::string name, double bytes, int slots) : name(std::move(name)), bytes(bytes), slots(slots) {}

  void add(std::unique_ptr<Plan> plan) {
    if (!workspace_) workspace_ = std::make_unique<Buffer>(plan->workspace());
    plans_.push_back(std::move(plan));
  }
  void launch(size_t set) const { plans_[set]->launch(workspace_->data, nullptr); }
  const Plan& plan() const { return *plans_.front(); }

  std::string name;
  double bytes;  // that cannot be avoided
  int slots;     // that no kernel can do without, of an element and layer
  std::vector<double> seconds;

 private:
  std::vector<std::unique_ptr<Plan>> plans_;
  std::unique_ptr<Buffer> workspace_;
};

// So many sets of tensors that what one round leaves in the L2 cache is not what the next one reads.
size_t sets_of(const Case& c, Type type, bool once) {
  if (once) return 1;
  const double all = 4.0 * Gpu::attribute(cudaDevAttrL2CacheSize);
  const double set = 2.0 * c.groups * c.rows * c.features * bytes_of(type);  // x and y
  return static_cast<size_t>(std::clamp(all / set + 1, 1.0, 16.0));
}

void report(const Way& way, const std::vector<double>& copies, double copy_bytes, double element_layers,
            const Gpu& gpu) {
  const double time = median(way.seconds);
  std::vector<double> shares;
  for (size_t i = 0; i < copies.size(); ++i) {
    shares.push_back(way.bytes / way.seconds[i] / (copy_bytes / copies[i]));
  }
  const double by_slots = way.slots * element_layers / gpu.fmas_per_second;
  std::printf("%-10s %9.1f us %8.1f GB/s (%5.1f %% of a copy) %8.1f G element-layers/s (%5.1f %% of the issue slots)\n",
              way.name.c_str(), time * 1e6, way.bytes / time * 1e-9, 100 * median(shares), element_layers / time * 1e-9,
              100 * by_slots / time);
  const Residence taken = way.plan().residence();
  std::printf("           %s; %d registers, %d of %d warps resident\n", way.plan().describe().c_str(), taken.registers,
              taken.warps, taken.most_warps);
}

std::string json_list(const std::vector<double>& values) {
  std::ostringstream out;
  out.precision(5);
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "[") << values[i];
  out << "]";
  return out.str();
}

std::string json_of(const Case& c, bool rest, size_t sets, const std::vector<double>& copies, double copy_bytes,
                    const std::vector<std::unique_ptr<Way>>& ways) {
  std::ostringstream out;
  out.precision(12);
  out << "{\"inner\": " << c.inner << ", \"rest\": " << (rest ? "true" : "false") << ", \"features\": " << c.features
      << ", \"rows\": " << c.rows << ", \"depth\": " << c.layers << ", \"groups\": " << c.groups << ", \"dtype\": \""
      << c.dtype << "\", \"sets\": " << sets << ", \"kernels\": [\n"
      << "  {\"kernel\": \"copy\", \"bytes\": " << copy_bytes << ", \"seconds\": " << json_list(copies) << "}";
  for (const auto& way : ways) {
    const Residence taken = way->plan().residence();
    out << ",\n  {\"kernel\": \"" << way->name << "\", \"bytes\": " << way->bytes << ", \"slots\": " << way->slots
        << ", \"plan\": \"" << way->plan().describe() << "\", \"registers\": " << taken.registers
        << ", \"warps\": " << taken.warps << ", \"most_warps\": " << taken.most_warps
        << ", \"seconds\": " << json_list(way->seconds) << "}";
  }
  out << "]}";
  return out.str();
}

// Runs a case and returns its samples as JSON.
std::string run(const Case& c, const Options& options, const Gpu& gpu) {
  const Type type = type_of(c.dtype);
  std::printf("N=%lld, d=%lld, L=%lld, G=%lld, %s\n", static_cast<long long>(c.rows),
              static_cast<long long>(c.features), static_cast<long long>(c.layers), static_cast<long long>(c.groups),
              c.dtype.c_str());
  if (c.inner) std::printf("positions of an outer axis and an inner one of %lld\n", static_cast<long long>(c.inner));
  std::vector<std::unique_ptr<Tensors>> sets;
  for (size_t i = sets_of(c, type, options.once); i > 0; --i) {
    sets.push_back(std::make_unique<Tensors>(c, type, options.rest));
  }
  const Tensors& first = *sets.front();
  const double tensor = double(first.elements()) * bytes_of(type);
  const double bits = double(c.groups) * c.rows * first.row_bytes();

  Way forward("forward", 2 * tensor + bits, 4);
  std::vector<std::unique_ptr<Way>> ways;
  const auto wanted = [&](const char* name) { return c.direction == name || c.direction == "all"; };
  if (wanted("inference")) ways.push_back(std::make_unique<Way>("inference", 2 * tensor, 3));
  if (wanted("forward")) ways.push_back(std::make_unique<Way>("forward", 2 * tensor + bits, 4));
  if (wanted("backward")) ways.push_back(std::make_unique<Way>("backward", 3 * tensor + bits, 12));
  for (const auto& set : sets) {
    const auto plan = [&](const std::string& name) -> std::unique_ptr<Plan> {
      if (name == "backward") return std::make_unique<BackwardPlan>(set->backward(), gpu.device);
      return std::make_unique<ForwardPlan>(set->forward(name == "forward"), gpu.device);
    };
    forward.add(plan("forward"));
    for (const auto& way : ways) way->add(plan(way->name));
  }
  if (!options.once || c.direction == "backward") {  // what the backward reads
    for (size_t i = 0; i < sets.size(); ++i) forward.launch(i);
  }
  if (options.once) {
    for (const auto& way : ways) {
      way->launch(0);
      check(cudaDeviceSynchronize(), way->name.c_str());
      std::printf("%-10s launched: %s\n", way->name.c_str(), way->plan().describe().c_str());
    }
    return "";
  }

  // A copy and each direction in turns, without a gap: while the GPU computes, the whole round is queued.
  std::vector<double> copies;
  std::vector<Event> events(ways.size() + 2);
  size_t next = 0;
  for (int64_t i = -kWarmups; i < options.repeats; ++i) {
    gpu.compute(kCoverIterations);
    events[0].record();
    sets[next++ % sets.size()]->copy();
    events[1].record();
    for (size_t k = 0; k < ways.size(); ++k) {
      ways[k]->launch(next++ % sets.size());
      events[k + 2].record();
    }
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (i < 0) continue;
    copies.push_back(events[1].seconds_since(events[0]));
    for (size_t k = 0; k < ways.size(); ++k) ways[k]->seconds.push_back(events[k + 2].seconds_since(events[k + 1]));
  }
  std::printf("%-10s %9.1f us %8.1f GB/s, in the same rounds\n", "copy", median(copies) * 1e6,
              2 * tensor / median(copies) * 1e-9);
  for (const auto& way : ways) report(*way, copies, 2 * tensor, double(first.elements()) * c.layers, gpu);
  return json_of(c, first.stack.rest, sets.size(), copies, 2 * tensor, ways);
}

void run(const Options& options) {
  Gpu gpu;
  if (!options.once) gpu.measure();
  std::printf("%s, %d SMs: %.1f T float32 multiply-adds/s\n", gpu.properties.name, gpu.device.sms,
              gpu.fmas_per_second * 1e-12);
  std::string cases;
  for (const Case& c : options.cases) {
    cases += (cases.empty() ? "" : ",\n") + run(c, options, gpu);
    std::fflush(stdout);
    if (options.json.empty() || options.once) continue;
    std::ofstream file(options.json);
    file << "{" << gpu.json() << ", \"cases\": [\n" << cases << "]}\n";
    if (!file) throw std::runtime_error("--json: cannot write " + options.json);
  }
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
