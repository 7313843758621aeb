// Chooses tiles, blocks and memory of a call by the device, and launches its kernels.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <sstream>

#include "launch.h"

namespace hanops::cuda {
namespace {

constexpr size_t kWorkspace = 64 << 20;  // bytes of partial sums, or as many as the sign bits, whichever is more
constexpr size_t kPackHere = 40 << 10;   // bytes of packed parameters that each block may pack for itself
constexpr int kRowsAtOnce = 1024;
constexpr int kFillingThreads =
    128;                           // of an SM; with fewer in tiles of many rows, a call is better off in one-row ones
constexpr int kAxisThreads = 256;  // of an SM; with fewer in tiles of many positions, a call is better off with few
constexpr int kFewParts = 16;      // that `finish` adds up itself
constexpr double kSharedSums = 0.85;  // of an SM's shared memory, for partial sums

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the current device's code waits for earlier kernels, and its driver captures early launches in graphs.
bool launches_early(int device) {
  constexpr int kPtx = 90, kDriver = 12030;
  static std::array<std::atomic<int>, 64> known{};  // asking takes longer than a launch: 1 is no, 2 is yes
  if (device >= static_cast<int>(known.size())) return false;
  if (known[device] == 0) {
    int driver = 0;
    cudaFuncAttributes attributes;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaFuncGetAttributes(&attributes, parameter_kernels<float>().prepare), "cudaFuncGetAttributes");
    known[device] = driver >= kDriver && attributes.ptxVersion >= kPtx ? 2 : 1;
  }
  return known[device] == 2;
}

}  // namespace

Device Device::current() {
  Device found;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  get(found.sms, cudaDevAttrMultiProcessorCount);
  get(found.shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(found.shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  found.early = launches_early(device);
  return found;
}

Plan::Part Plan::reserve(size_t bytes) {
  const Part part{workspace_};
  workspace_ += (bytes + 255) / 256 * 256;
  return part;
}

// ---- what both directions share

template <class Call, int kValues>
PlanOf<Call, kValues>::PlanOf(const Call& call, Device device)
    : call_(call), device_(device), item_(call.type == Type::kFloat64 ? 8 : 4) {
  call_.sign_bytes = chunked_sign_bytes(call.features);
  call_.columns = 8 * call_.sign_bytes;
  call_.planes = call.abs_layers + (call.rest ? kRestPlanes : 0);
}

template <class Call, int kValues>
int64_t PlanOf<Call, kValues>::resident_blocks(int threads, int warps_per_sm) const {
  return int64_t{device_.sms} * std::max(1, 32 * warps_per_sm / threads);
}

// The tile of many rows where its blocks fill the device and a group has a whole one, else that of one row; none where
// the rows are too wide for both.
template <class Call, int kValues>
template <class Tile>
const Tile* PlanOf<Call, kValues>::choose_tile(std::span<const Tile> many_rows, const Tile& one_row) {
  const size_t index = std::countr_zero(static_cast<unsigned>(call_.columns)) - 5;
  const int64_t sign_stride = int64_t{call_.planes} * call_.sign_bytes;
  call_.sign_stride = static_cast<unsigned>(sign_stride);
  if (index < many_rows.size()) {
    const Tile& tile = many_rows[index];
    const int64_t threads = call_.groups * ceil_div(call_.rows, tile.rows) * tile.lanes * tile.warps;
    const bool fills = threads >= int64_t{device_.sms} * kFillingThreads;
    const bool reachable = sign_stride * tile.rows < int64_t{1} << 32;  // 32-bit offsets within a tile
    if (reachable && call_.rows >= tile.rows && (fills || call_.columns > kOneRowColumns)) {
      tile_ = &tile;
      return &tile;
    }
  }
  if (call_.columns > kOneRowColumns) return nullptr;
  const int lanes = call_.columns / 8;
  call_.lanes = std::min(lanes, 32);
  call_.warps = std::max(lanes / 32, 1);
  tile_ = &one_row;
  return &one_row;
}

template <class Call, int kValues>
template <class Tile>
const Tile* PlanOf<Call, kValues>::choose_axis_tile(std::span<const Tile> tiles, int vector) {
  call_.warps = static_cast<int>(ceil_div(call_.features, kAxisFeatures));
  call_.lanes = 32;
  call_.sign_bytes = 4 * call_.warps;
  call_.columns = kAxisFeatures * call_.warps;
  const auto fits = [&](const Tile& tile) {
    const int64_t threads = call_.groups * ceil_div(call_.rows, tile.rows) * 32 * call_.warps;
    return tile.vector <= vector && call_.warps <= tile.warps_per_sm && threads >= int64_t{device_.sms} * kAxisThreads;
  };
  const auto found = std::ranges::find_if(tiles, fits);
  const Tile* tile = found == tiles.end() ? &tiles.back() : &*found;
  tile_ = tile;
  return tile;
}

// A block of several thread groups, or of one that has several warps: those share the block's barrier.
template <class Call, int kValues>
void PlanOf<Call, kValues>::set_threads(int threads) {
  threads_ = group_threads() > 32 ? group_threads() : threads;
}

template <class Call, int kValues>
void PlanOf<Call, kValues>::stream_rows() {
  stream_blocks_ = std::min<int64_t>(call_.groups * call_.rows, resident_blocks(kStreamThreads, 16));
  scratch_ = reserve(kValues * stream_blocks_ * call_.columns * item_);
}

template <class Call, int kValues>
void PlanOf<Call, kValues>::reserve_packed() {
  packed_ = reserve(call_.groups * call_.layers * 2 * call_.columns * item_);
  norms_ = reserve(call_.groups * call_.layers * 2 * item_);
}

template <class Call, int kValues>
bool PlanOf<Call, kValues>::packs_in_a_block() const {
  return 2 * size_t(call_.layers) * (call_.columns + 1) * item_ <= kPackHere;
}

// Bytes of shared memory for sums over the warps of a thread group; along another axis also for parameters.
template <class Call, int kValues>
size_t PlanOf<Call, kValues>::exchange() const {
  if (!tile_) return 2 * (kStreamThreads / 32) * kValues * item_;
  if (call_.inner) return call_.warps * (2 * kValues * tile_->rows + kAxisSlots * 2 * kAxisFeatures) * item_;
  const int warps = tile_->lanes ? tile_->warps : call_.warps;
  return warps > 1 ? 2 * warps * kValues * tile_->rows * item_ : 0;
}

template <class Call, int kValues>
Call PlanOf<Call, kValues>::placed(void* workspace) const {
  Call call = call_;
  call.packed = packed_.in(workspace);
  call.norms = norms_.in(workspace);
  call.scratch = scratch_.in(workspace);
  return call;
}

// The parameters are packed before, where blocks do not pack them for themselves.
template <class Call, int kValues>
void PlanOf<Call, kValues>::launch_main(const Call& call, const char* name, cudaStream_t stream) const {
  if (!call.pack_here) {
    const auto prepare = (wide() ? parameter_kernels<double>() : parameter_kernels<float>()).prepare;
    const size_t between_warps = 2 * (kLayerThreads / 32) * item_;
    cuda::launch<Stack>(prepare, "prepare", call.groups * call.layers, kLayerThreads, between_warps, call, stream);
  }
  const int64_t blocks = tile_ ? call.groups * call.blocks : stream_blocks_;
  const bool early = device_.early && !call.pack_here;
  cuda::launch(kernel(), name, blocks, main_threads(), shared_memory(), call, stream, early);
}

template <class Call, int kValues>
Residence PlanOf<Call, kValues>::residence() const {
  return cuda::residence(kernel(), main_threads(), shared_memory());
}

template <class Call, int kValues>
std::string PlanOf<Call, kValues>::describe() const {
  std::ostringstream text;
  if (!tile_) {
    text << "rows streamed, " << stream_blocks_ << " blocks of " << kStreamThreads << " threads";
  } else if (call_.inner) {
    text << tile_->rows << " positions, " << tile_->vector << " a lane, " << call_.groups * call_.blocks
         << " blocks of " << call_.warps << " x " << tile_->chunks << " features";
  } else {
    text << tile_->rows << (tile_->rows == 1 ? " row, " : " rows, ") << tile_->chunks << " x " << tile_->vector
         << " columns a lane, " << group_threads() << " lanes a row, " << call_.groups * call_.blocks << " blocks of "
         << threads_ << " threads";
  }
  return text.str();
}

bool takes_axis(const Stack& stack) {
  const AxisKernels& kernels = axis_kernels();
  const int warps = std::min(kernels.forward.back().warps_per_sm, kernels.backward.back().warps_per_sm);
  return stack.type != Type::kFloat64 && stack.features <= kAxisFeatures * warps && stack.rows < int64_t{1} << 30;
}

// ---- forward

ForwardPlan::ForwardPlan(const ForwardCall& call, Device device) : PlanOf(call, device) {
  const ForwardKernels& kernels = wide() ? forward_kernels<double>() : forward_kernels<float>();
  if (call_.inner)
    choose_axis_tile(axis_kernels().forward, call_.x.vector);
  else
    choose_tile(kernels.many_rows, kernels.one_row);
  call_.pack_here = one_row() && packs_in_a_block();
  if (!call_.pack_here) reserve_packed();
  if (!tile_) {
    stream_rows();
    return;
  }
  set_threads(call_.pack_here ? kOneRowThreads : call_.inner ? 32 : 128);  // many warps pack fast
  call_.blocks = as_blocks(ceil_div(call_.rows, int64_t{tile_->rows} * groups_of_block()));
  call_.ahead = resident_blocks(threads_, tile_->warps_per_sm) * groups_of_block();
}

Kernel<ForwardCall> ForwardPlan::kernel() const {
  const bool linear = call_.abs_layers == 0;
  if (tile_) {
    const auto& tile = *static_cast<const ForwardTile*>(tile_);
    return linear ? tile.linear : tile.kernels[call_.save];
  }
  const ForwardKernels& kernels = wide() ? forward_kernels<double>() : forward_kernels<float>();
  return linear ? kernels.linear_streaming : kernels.streaming[call_.save];
}

void ForwardPlan::launch(void* workspace, cudaStream_t stream) const {
  launch_main(placed(workspace), "forward", stream);
}

// ---- backward

BackwardPlan::BackwardPlan(const BackwardCall& call, Device device) : PlanOf(call, device) {
  const BackwardKernels& kernels = wide() ? backward_kernels<double>() : backward_kernels<float>();
  const int vector = std::min(call_.dy.vector, call_.needs_du ? call_.y.vector : 4);
  const ParameterKernels& others = wide() ? parameter_kernels<double>() : parameter_kernels<float>();
  const int few = call_.columns > kWideRows ? kFewLayersOfWideRows : kFewLayers;
  const auto& of_layers = call.layers <= few ? kernels.few_layers : kernels.many_rows;
  backward_tile_ =
      call_.inner ? choose_axis_tile(axis_kernels().backward, vector) : choose_tile(of_layers, kernels.one_row);
  const bool needs_sums = call_.needs_du || call_.needs_db;
  call_.by_coefficients = needs_sums && !(tile_ && backward_tile_->sums);
  if (tile_)
    plan_blocks();
  else
    stream_rows();
  if (!call_.pack_here) reserve_packed();
  if (!needs_sums) return;

  int parts = call_.blocks, tile_rows = others.gradients_rows, groups_of_part = 1;
  if (call_.by_coefficients) {
    const int slices = call_.columns / kGradientsColumns, groups = kGradientsThreads / 32;
    const int64_t resident = ceil_div(resident_blocks(kGradientsThreads, 8), slices);
    gradients_blocks_ = blocks_with_sums(tile_rows, groups, resident);
    parts = gradients_blocks_ * groups;
    coefficients_ = reserve(call_.groups * call_.rows * call_.layers * 2 * item_);
    if (call_.needs_du) live_ = reserve(call_.groups * call_.rows);
  } else {
    parts = call_.blocks * groups_of_block();
    tile_rows = tile_->rows;
    if (one_row()) groups_of_part = std::max(1, 32 / group_threads());  // a warp's
    if (backward_tile_->block_sums) keep_sums_in_blocks();
  }
  call_.folds = ceil_div(ceil_div(call_.rows, tile_rows), parts) > kFold;
  call_.parts = parts / groups_of_part * (call_.folds ? 2 : 1);
  call_.sum_parts = call_.parts > kFewParts;
  const size_t part = call_.groups * size_t(call_.layers) * 2 * call_.columns * item_;
  partials_ = reserve(call_.parts * part);
  if (call_.sum_parts) totals_ = reserve(part);
}

void BackwardPlan::plan_blocks() {
  // Few rows: one block of a group does all, from packing to du.
  call_.pack_here = call_.finish_here = one_row() && call_.rows * group_threads() <= kRowsAtOnce && packs_in_a_block();
  set_threads(call_.finish_here ? kOneRowThreads : one_row() ? 128 : 32);
  if (call_.finish_here) {
    call_.blocks = 1;
  } else if (backward_tile_->sums && (call_.needs_du || call_.needs_db)) {
    const int64_t resident = resident_blocks(threads_, tile_->warps_per_sm);
    call_.blocks = blocks_with_sums(tile_->rows, groups_of_block(), resident);
    call_.ahead = call_.blocks * groups_of_block();
  } else {
    call_.blocks = as_blocks(ceil_div(call_.rows, int64_t{tile_->rows} * groups_of_block()));
  }
}

// Blocks of a group whose thread groups have partial sums: as many as are resident, but for the memory of the sums.
int BackwardPlan::blocks_with_sums(int rows, int groups_of_a_block, int64_t resident) const {
  const size_t part = 2 * size_t(call_.layers) * call_.columns * item_;
  const int64_t most = std::max<int64_t>(kWorkspace / part, call_.groups * call_.rows / 64);
  const int64_t tiles = ceil_div(call_.rows, rows);
  const int64_t groups = std::min({resident * groups_of_a_block / call_.groups, most / call_.groups, tiles});
  return static_cast<int>(std::max<int64_t>(1, ceil_div(groups, groups_of_a_block)));
}

// As many layers as fit what the blocks of an SM share, but for a part that the L1 cache needs.
void BackwardPlan::keep_sums_in_blocks() {
  const size_t share = device_.shared * kSharedSums / (32 * tile_->warps_per_sm / threads_);
  const size_t room = std::min<size_t>(share, device_.shared_of_block);
  const size_t layer = size_t(groups_of_block()) * 2 * call_.columns * item_;
  call_.block_layers = static_cast<int>(std::min<size_t>(call_.layers, (room - std::min(room, exchange())) / layer));
}

Kernel<BackwardCall> BackwardPlan::kernel() const {
  if (tile_) return backward_tile_->kernels[call_.needs_du];
  return (wide() ? backward_kernels<double>() : backward_kernels<float>()).streaming[call_.needs_du];
}

size_t BackwardPlan::shared_memory() const {
  const size_t layers = call_.block_layers;
  const size_t sums = layers ? groups_of_block() * layers * 2 * call_.columns : 0;
  return exchange() + packed_here() + sums * item_;
}

void BackwardPlan::launch(void* workspace, cudaStream_t stream) const {
  BackwardCall call = placed(workspace);
  call.partials = partials_.in(workspace);
  call.totals = totals_.in(workspace);
  call.coefficients = coefficients_.in(workspace);
  call.live = static_cast<uint8_t*>(live_.in(workspace));
  launch_main(call, "backward", stream);

  if (!(call.needs_du || call.needs_db) || call.finish_here) return;
  const ParameterKernels& kernels = wide() ? parameter_kernels<double>() : parameter_kernels<float>();
  const int64_t layers = call.groups * call.layers;
  const bool early = device_.early;
  if (call.by_coefficients) {
    call.blocks = gradients_blocks_;
    cuda::launch(kernels.gradients[call.needs_du], "parameter_gradients",
                 call.groups * call.blocks * (call.columns / kGradientsColumns), kGradientsThreads, 0, call, stream,
                 early);
  }
  if (call.sum_parts) {
    cuda::launch(kernels.sum_parts, "sum_parts", layers * 2 * call.columns / 32, 32 * kSlices, 32 * kSlices * item_,
                 call, stream, early);
  }
  cuda::launch(kernels.finish, "finish", layers, kLayerThreads, 2 * (kLayerThreads / 32) * item_, call, stream, early);
}

std::string BackwardPlan::describe() const {
  const std::string text = PlanOf::describe();
  return call_.parts > 1 ? text + ", " + std::to_string(call_.parts) + " partial sums" : text;
}

std::unique_ptr<Plan> make_plan(const Stack& stack, bool backward, bool save, Device device) {
  Rows rows;
  rows.vector = stack.inner % 2 == 0 ? 2 : 1;
  if (backward) {
    BackwardCall call{stack, true, true, true, rows, rows};
    return std::make_unique<BackwardPlan>(call, device);
  }
  ForwardCall call{stack, save, rows};
  return std::make_unique<ForwardPlan>(call, device);
}

}  // namespace hanops::cuda
