// The tile table and the launches: which kernels run a call, in how many blocks, with how much memory.
#include <algorithm>
#include <bit>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "han_stack.cuh"
#include "han_stack_streaming.cuh"

namespace hanops::cuda {

// A tile as the plan sees it.
struct Rung {
  int rows, chunks, vector, lanes, warps;  // of a team, as in Tile; no lanes: as many as a row needs
  int warps_per_processor;                 // that its registers leave room for
  bool sums, block_sums;  // backward: sums du and db, and leaves no coefficients; in block memory first
  Kernel kernels[2];      // forward: without and with sign bits; backward: without and with du
};

namespace {

constexpr size_t kWorkspace = 64 << 20;  // bytes of partial sums, or as many as the sign bits, whichever is more
constexpr size_t kPackHere = 40 << 10;   // bytes of packed parameters that each block may pack for itself
constexpr int kLooseColumns = 4096, kLooseThreads = 512, kRowsAtOnce = 1024;
constexpr int kStreamThreads = Stream<float>::kThreads, kSliceThreads = 128, kLayerThreads = 256;
constexpr size_t kSharedByDefault = 48 << 10;  // more has to be asked for
constexpr int kFillingThreads = 128;  // of a processor; with fewer in tall tiles, a call is better off in loose ones
constexpr int kFewParts = 16;         // that `finish` adds up itself
constexpr double kSharedSums = 0.85;  // of a multiprocessor's shared memory, for partial sums

template <class A, int R, int K, int V, int T, int W>
constexpr Rung forward_rung(int warps_per_processor = 8) {
  using Own = Tile<A, R, K, V, T, W>;
  return {R, K, V, T, W, warps_per_processor, false, false, {forward<Own, false>, forward<Own, true>}};
}

template <class A, int R, int K, int V, int T, int W, bool kSums = true>
constexpr Rung backward_rung(int warps_per_processor = 8) {
  using Own = Tile<A, R, K, V, T, W>;
  return {R,
          K,
          V,
          T,
          W,
          warps_per_processor,
          kSums,
          Own::kBlockSums,
          {backward<Own, false, kSums>, backward<Own, true, kSums>}};
}

// clang-format off

// Tall tiles, for float32 arithmetic and many rows: one for each width. Not measured on a GPU: chosen by what ptxas makes
// of them (`make kernels`), no spills, and as many rows as the registers hold, since w and b are read once for all rows
// of a tile.
const Rung kForward[] = {                        // columns up to
    forward_rung<float, 8, 8, 2,  2, 1>(),       //   32
    forward_rung<float, 4, 8, 4,  2, 1>(),       //   64
    forward_rung<float, 4, 8, 4,  4, 1>(),       //  128
    forward_rung<float, 4, 8, 4,  8, 1>(),       //  256
    forward_rung<float, 4, 8, 4, 16, 1>(),       //  512
    forward_rung<float, 4, 8, 4, 32, 1>(),       // 1024
    forward_rung<float, 8, 8, 2, 32, 4>(),       // 2048
    forward_rung<float, 8, 8, 2, 32, 8>(),       // 4096
    forward_rung<float, 4, 8, 4, 32, 8>(),       // 8192
};
const Rung kBackward[] = {
    backward_rung<float, 16, 1, 4,  8, 1>(),     //   32
    backward_rung<float, 16, 1, 4, 16, 1>(),     //   64
    backward_rung<float, 16, 1, 4, 32, 1>(),     //  128
    backward_rung<float, 16, 1, 4, 32, 2>(),     //  256
    backward_rung<float, 16, 1, 4, 32, 4>(),     //  512
    backward_rung<float, 16, 1, 4, 32, 8>(),     // 1024
    backward_rung<float,  8, 2, 4, 32, 8>(),     // 2048
    backward_rung<float,  4, 4, 4, 32, 8>(),     // 4096
    backward_rung<float,  2, 8, 4, 32, 8, false>(),  // 8192: too few rows to pay for their partial sums
};

// Loose tiles, one row and 8 columns a lane, up to kLooseColumns: for few rows, where latency counts, and for float64.
template <class A> const Rung kLooseForward = forward_rung<A, 1, 8, 1, 0, 0>(16);
template <class A> const Rung kLooseBackward = backward_rung<A, 1, 8, 1, 0, 0>(16);

// clang-format on

// The other kernels, by the type of the arithmetic.
struct Others {
  Kernel prepare, sum_parts, finish;
  Kernel forward_streaming[2], backward_streaming[2], parameter_gradients[2];
};

template <class A>
const Others kOthers = {prepare<A>,
                        sum_parts<A>,
                        finish<A>,
                        {forward_streaming<A, false>, forward_streaming<A, true>},
                        {backward_streaming<A, false>, backward_streaming<A, true>},
                        {parameter_gradients<A, false>, parameter_gradients<A, true>}};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int as_blocks(int64_t blocks) {
  if (blocks >= int64_t{1} << 31) throw std::runtime_error("han_stack: more than 2^31 blocks of rows");
  return static_cast<int>(blocks);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call of anyone does not find it
  throw std::runtime_error(std::string("han_stack: ") + what + ": " + cudaGetErrorString(error));
}

void launch_kernel(Kernel kernel, const char* name, int64_t blocks, int threads, size_t shared, Call call,
                   cudaStream_t stream) {
  void* arguments[] = {&call};
  if (shared > kSharedByDefault) {
    const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(kernel, most, static_cast<int>(shared)), "cudaFuncSetAttribute");
  }
  check(cudaLaunchKernel(kernel, dim3(as_blocks(blocks)), dim3(threads), arguments, shared, stream), name);
}

}  // namespace

Device Device::current() {
  Device found;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  get(found.processors, cudaDevAttrMultiProcessorCount);
  get(found.shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(found.shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return found;
}

Plan::Plan(Direction direction, const Call& call, Device device)
    : direction_(direction), call_(call), device_(device), item_(call.type == Type::kFloat64 ? 8 : 4) {
  call_.columns = static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(call.features, 32))));
  call_.sign_bytes = call_.columns / 8;
  if (direction == Direction::kForward)
    plan_forward();
  else
    plan_backward();
}

int Plan::resident_blocks(int threads, int warps_per_processor) const {
  return device_.processors * std::max(1, 32 * warps_per_processor / threads);
}

size_t Plan::reserve(size_t elements) {
  const size_t offset = workspace_;
  workspace_ += (elements * item_ + 255) / 256 * 256;
  return offset;
}

// The tall tile where its blocks fill the device and a group has a whole one, else the loose one; none where the rows
// are too wide for both.
void Plan::choose_tile(const Rung* tall, size_t count, const Rung& loose) {
  const size_t index = std::countr_zero(static_cast<unsigned>(call_.columns)) - 5;
  const int64_t sign_stride = int64_t{call_.abs_layers} * call_.sign_bytes;
  call_.sign_stride = static_cast<unsigned>(sign_stride);
  if (item_ == 4 && index < count) {
    rung_ = tall + index;
    const int team = rung_->lanes * rung_->warps;
    const int64_t tiles = call_.groups * ceil_div(call_.rows, rung_->rows);
    const bool fills = tiles * team >= int64_t{device_.processors} * kFillingThreads;
    const bool reachable = sign_stride * rung_->rows < int64_t{1} << 32;  // 32-bit offsets within a tile
    if (reachable && call_.rows >= rung_->rows && (fills || call_.columns > kLooseColumns)) return;
  }
  rung_ = call_.columns <= kLooseColumns ? &loose : nullptr;
  if (rung_) {
    const int lanes = call_.columns / 8;
    call_.lanes = std::min(lanes, 32);
    call_.warps = std::max(lanes / 32, 1);
  }
}

int Plan::team() const { return rung_->lanes ? rung_->lanes * rung_->warps : call_.lanes * call_.warps; }

// A block of several teams, or of one that has several warps: those share the block's barrier.
void Plan::set_threads(int threads) { threads_ = team() > 32 ? team() : threads; }

// Bytes of shared memory for sums over the warps of a team.
size_t Plan::exchange() const {
  const int values = direction_ == Direction::kForward ? 1 : 2;
  if (!rung_) return 2 * (kStreamThreads / 32) * values * item_;
  const int warps = rung_->lanes ? rung_->warps : call_.warps;
  return warps > 1 ? 2 * warps * values * rung_->rows * item_ : 0;
}

// Bytes of shared memory of the main kernel: that, and parameters or partial sums that are kept there.
size_t Plan::shared_memory() const {
  const size_t packed = call_.pack_here ? 2 * call_.layers * (call_.columns + 1) : 0;
  const size_t sums = call_.block_layers ? size_t(threads_ / team()) * call_.block_layers * 2 * call_.columns : 0;
  return exchange() + (packed + sums) * item_;
}

Kernel Plan::main_kernel() const {
  const bool forward = direction_ == Direction::kForward;
  const bool more = forward ? call_.signs != nullptr : call_.y.data != nullptr;  // sign bits, or du
  if (rung_) return rung_->kernels[more];
  const Others& others = item_ == 8 ? kOthers<double> : kOthers<float>;
  return forward ? others.forward_streaming[more] : others.backward_streaming[more];
}

int Plan::main_threads() const { return rung_ ? threads_ : kStreamThreads; }

bool Plan::fits_a_block() const { return 2 * size_t(call_.layers) * (call_.columns + 1) * item_ <= kPackHere; }

void Plan::reserve_packed() {
  packed_ = reserve(call_.groups * call_.layers * 2 * call_.columns);
  norms_ = reserve(call_.groups * call_.layers * 2);
}

void Plan::plan_forward() {
  choose_tile(kForward, std::size(kForward), item_ == 8 ? kLooseForward<double> : kLooseForward<float>);
  call_.pack_here = rung_ && !rung_->lanes && fits_a_block();
  if (!call_.pack_here) reserve_packed();
  if (rung_) {
    set_threads(call_.pack_here ? kLooseThreads : 128);  // many warps pack fast
    const int teams = threads_ / team();
    call_.blocks = as_blocks(ceil_div(call_.rows, int64_t{rung_->rows} * teams));
    call_.ahead = int64_t{resident_blocks(threads_, rung_->warps_per_processor)} * teams;
  } else {
    stream_blocks_ = std::min<int64_t>(call_.groups * call_.rows, resident_blocks(kStreamThreads, 16));
    scratch_ = reserve(stream_blocks_ * call_.columns);
  }
}

// Blocks of a group whose teams have partial sums: as many as are resident, but for the memory of the sums.
int Plan::blocks_with_sums(int rows, int teams_of_a_block, int64_t resident) const {
  const size_t part = 2 * size_t(call_.layers) * call_.columns * item_;
  const int64_t most = std::max<int64_t>(kWorkspace / part, call_.groups * call_.rows / 64);
  const int64_t tiles = ceil_div(call_.rows, rows);
  const int64_t teams = std::min({resident * teams_of_a_block / call_.groups, most / call_.groups, tiles});
  return static_cast<int>(std::max<int64_t>(1, ceil_div(teams, teams_of_a_block)));
}

void Plan::plan_backward() {
  choose_tile(kBackward, std::size(kBackward), item_ == 8 ? kLooseBackward<double> : kLooseBackward<float>);
  const bool sums = call_.du || call_.db;
  const size_t part = call_.groups * size_t(call_.layers) * 2 * call_.columns;
  int parts = 0, tile_rows = rung_ ? rung_->rows : 1;
  if (rung_) {
    const bool loose = !rung_->lanes;
    // Few rows: one block of a group does all, from packing to du.
    call_.pack_here = call_.finish_here = loose && call_.rows * team() <= kRowsAtOnce && fits_a_block();
    set_threads(call_.finish_here ? kLooseThreads : loose ? 128 : 32);
    const int teams = threads_ / team();
    if (call_.finish_here) {
      call_.blocks = 1;
    } else if (rung_->sums && sums) {
      const int64_t resident = resident_blocks(threads_, rung_->warps_per_processor);
      call_.blocks = blocks_with_sums(rung_->rows, teams, resident);
    } else {
      call_.blocks = as_blocks(ceil_div(call_.rows, int64_t{rung_->rows} * teams));
    }
    if (rung_->sums && sums) parts = call_.blocks * teams;
    if (parts > 0 && rung_->block_sums) {
      // What the blocks on a multiprocessor share, but for a part that the L1 cache needs.
      const size_t share = device_.shared * kSharedSums / (32 * rung_->warps_per_processor / threads_);
      const size_t room = std::min<size_t>(share, device_.shared_of_block);
      const size_t layer = size_t(teams) * 2 * call_.columns * item_;
      call_.block_layers =
          static_cast<int>(std::min<size_t>(call_.layers, (room - std::min(room, exchange())) / layer));
    }
  } else {
    stream_blocks_ = std::min<int64_t>(call_.groups * call_.rows, resident_blocks(kStreamThreads, 16));
    scratch_ = reserve(2 * stream_blocks_ * call_.columns);
  }
  if (!call_.pack_here) reserve_packed();
  if (parts == 0 && sums) {
    const int slice_rows = item_ == 8 ? Slice<double>::R : Slice<float>::R, slices = call_.columns / 128;
    const int64_t resident = ceil_div(resident_blocks(kSliceThreads, 8), slices);
    slice_blocks_ = blocks_with_sums(slice_rows, kSliceThreads / 32, resident);
    parts = slice_blocks_ * (kSliceThreads / 32);
    tile_rows = slice_rows;
    coefficients_ = reserve(call_.groups * call_.rows * call_.layers * 2);
    if (call_.y.data) live_ = reserve(ceil_div(call_.groups * call_.rows, item_));
  }
  if (!sums) return;
  call_.folds = ceil_div(ceil_div(call_.rows, tile_rows), parts) > kFold;
  call_.parts = parts * (call_.folds ? 2 : 1);
  partials_ = reserve(call_.parts * part);
  if (call_.parts > kFewParts) totals_ = reserve(part);
}

void Plan::launch(void* workspace, cudaStream_t stream) const {
  Call call = call_;
  const auto at = [&](size_t offset) -> void* {
    return offset == kNone ? nullptr : static_cast<char*>(workspace) + offset;
  };
  call.packed = at(packed_);
  call.norms = at(norms_);
  call.partials = at(partials_);
  call.totals = at(totals_);
  call.coefficients = at(coefficients_);
  call.live = static_cast<uint8_t*>(at(live_));
  call.scratch = at(scratch_);
  const Others& others = item_ == 8 ? kOthers<double> : kOthers<float>;
  const int64_t layers = call.groups * call.layers;
  const size_t between_warps = 2 * (kLayerThreads / 32) * item_;
  if (!call.pack_here) launch_kernel(others.prepare, "prepare", layers, kLayerThreads, between_warps, call, stream);

  const bool forward = direction_ == Direction::kForward;
  launch_kernel(main_kernel(), forward ? "forward" : "backward", rung_ ? call.groups * call.blocks : stream_blocks_,
                main_threads(), shared_memory(), call, stream);
  if (!(call.du || call.db) || call.finish_here) return;
  if (call.coefficients) {
    call.blocks = slice_blocks_;
    launch_kernel(others.parameter_gradients[call.y.data != nullptr], "parameter_gradients",
                  call.groups * call.blocks * (call.columns / 128), kSliceThreads, 0, call, stream);
  }
  if (call.totals) {
    launch_kernel(others.sum_parts, "sum_parts", layers * 2 * call.columns / 32, 32 * kSlices, 32 * kSlices * item_,
                  call, stream);
  }
  launch_kernel(others.finish, "finish", layers, kLayerThreads, between_warps, call, stream);
}

Residence Plan::residence() const {
  cudaFuncAttributes attributes;
  int device = 0, blocks = 0, most_threads = 0;
  check(cudaFuncGetAttributes(&attributes, main_kernel()), "cudaFuncGetAttributes");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, main_kernel(), main_threads(), shared_memory()),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most_threads, cudaDevAttrMaxThreadsPerMultiProcessor, device),
        "cudaDeviceGetAttribute");
  return {attributes.numRegs, blocks * main_threads() / 32, most_threads / 32};
}

std::string Plan::describe() const {
  std::ostringstream text;
  if (!rung_) {
    text << "rows streamed, " << stream_blocks_ << " blocks of " << kStreamThreads << " threads";
  } else {
    text << rung_->rows << (rung_->rows == 1 ? " row, " : " rows, ") << rung_->chunks << " x " << rung_->vector
         << " columns a lane, teams of " << team() << " lanes, " << call_.groups * call_.blocks << " blocks of "
         << threads_ << " threads";
  }
  if (call_.parts > 1) text << ", " << call_.parts << " partial sums";
  return text.str();
}

}  // namespace hanops::cuda
