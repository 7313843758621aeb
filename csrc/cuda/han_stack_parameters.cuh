// The parameters' kernels: what packs them before the main kernel, and what takes du and db from its sums after it.
#pragma once

#include "han_stack_layer.cuh"
#include "han_stack_rows.cuh"

namespace hanops::cuda {

// A team of no tile: lanes that share a layer's parameters.
template <class A>
using Crew = Team<Tile<A, 1, 1, 1, 0, 0>>;

// Packs w and b of one layer, padded with zeros, and |u| as two factors, the first of which is its largest element.
template <class A>
__device__ void pack_layer(Crew<A>& crew, const Call& call, int64_t layer, A* packed, A* norms) {
  with_type<A>(call.parameter_type, [&](auto type) {
    using S = decltype(type);
    const S* u = static_cast<const S*>(call.u) + layer * call.features;
    const S* b = call.b ? static_cast<const S*>(call.b) + layer * call.features : nullptr;
    A largest[1] = {}, squares[1] = {};
    for (int i = crew.lane(); i < call.features; i += crew.size()) {
      largest[0] = fmax(largest[0], fabs(to<A>(read(u + i))));
    }
    crew.reduce(largest, Largest());
    const A scale = largest[0] == 0 ? A(1) : largest[0];
    for (int i = crew.lane(); i < call.features; i += crew.size()) {
      const A part = to<A>(read(u + i)) / scale;
      squares[0] += part * part;
    }
    crew.sum(squares);
    const A norm = sqrt(squares[0]);
    const A factor = norm == 0 ? A(0) : A(1) / norm;
    for (int i = crew.lane(); i < call.columns; i += crew.size()) {
      const bool inside = i < call.features;
      // + 0: a reflector of zeros is +0 everywhere, and a missing bias -0, so that neither changes the sign of a 0.
      write(packed + i, inside ? to<A>(read(u + i)) / scale * factor + A(0) : A(0));
      write(packed + call.columns + i, !b ? -A(0) : inside ? to<A>(read(b + i)) : A(0));
    }
    if (crew.lane() == 0) {
      write(norms, scale);
      write(norms + 1, norm);
    }
  });
}

// Adds up the partial sums of one layer and takes du and db from them.
template <class A>
__device__ void finish_layer(Crew<A>& crew, const Call& call, int64_t group, int layer, const A* partials, int parts,
                             const A* packed, const A* norms) {
  const int64_t part_length = int64_t(call.layers) * 2 * call.columns;
  const A* sums = partials + group * parts * part_length + int64_t(layer) * 2 * call.columns;
  const auto sum = [&](int column) {
    A total = 0;
    for (int part = 0; part < parts; ++part) total += read(sums + part * part_length + column);
    return total;
  };
  with_type<A>(call.parameter_type, [&](auto type) {
    using S = decltype(type);
    const int64_t offset = (group * call.layers + layer) * call.features;
    if (call.du) {
      A along[1] = {};
      for (int i = crew.lane(); i < call.features; i += crew.size()) along[0] += sum(i) * read(packed + i);
      crew.sum(along);
      const A scale = read(norms), norm = read(norms + 1);
      for (int i = crew.lane(); i < call.features; i += crew.size()) {
        const A across = sum(i) - along[0] * read(packed + i);
        write(static_cast<S*>(call.du) + offset + i, rounded<S>(norm == 0 ? A(0) : across / norm / scale));
      }
    }
    if (call.db) {
      for (int i = crew.lane(); i < call.features; i += crew.size()) {
        write(static_cast<S*>(call.db) + offset + i, rounded<S>(sum(call.columns + i)));
      }
    }
  });
}

// One block for each layer of each group.
template <class A>
__global__ void prepare(const Call call) {
  Crew<A> crew(32, blockDim.x / 32, shared_memory<A>(), 1);
  const int64_t layer = blockIdx.x;
  pack_layer<A>(crew, call, layer, static_cast<A*>(call.packed) + layer * 2 * call.columns,
                static_cast<A*>(call.norms) + layer * 2);
}

// One block for each layer of each group.
template <class A>
__global__ void finish(const Call call) {
  Crew<A> crew(32, blockDim.x / 32, shared_memory<A>(), 1);
  const int64_t layer = blockIdx.x;
  const A* sums = static_cast<const A*>(call.totals ? call.totals : call.partials);
  finish_layer<A>(crew, call, layer / call.layers, layer % call.layers, sums, call.totals ? 1 : call.parts,
                  static_cast<const A*>(call.packed) + layer * 2 * call.columns,
                  static_cast<const A*>(call.norms) + layer * 2);
}

constexpr int kSlices = 32;  // of the parts, each with a warp

// A block adds up 32 columns of the partial sums of a group: each warp a slice of the parts, then the first all slices.
template <class A>
__global__ void __launch_bounds__(32 * kSlices) sum_parts(const Call call) {
  A* slices = shared_memory<A>();
  const int64_t length = int64_t(call.layers) * 2 * call.columns;
  const int64_t blocks = length / 32;
  const int64_t group = blockIdx.x / blocks, column = blockIdx.x % blocks * 32 + threadIdx.x % 32;
  const int slice = threadIdx.x / 32;
  const A* partials = static_cast<const A*>(call.partials) + group * call.parts * length + column;
  A total = 0;
#pragma unroll 4
  for (int part = slice; part < call.parts; part += kSlices) total += read(partials + part * length);
  write(slices + threadIdx.x, total);
  __syncthreads();
  if (slice > 0) return;
  for (int other = 1; other < kSlices; ++other) total += read(slices + other * 32 + threadIdx.x);
  write(static_cast<A*>(call.totals) + group * length + column, total);
}

// The packed parameters of a group: from `prepare`, or packed by this block into its own memory at `place`.
template <class Tile>
struct Packed {
  using A = typename Tile::A;
  const A *layers, *norms;

  __device__ Packed(const Call& call, int64_t group, A* place) {
    const int64_t first = group * call.layers, stride = 2 * call.columns;
    layers = static_cast<const A*>(call.packed) + first * stride;
    norms = static_cast<const A*>(call.norms) + first * 2;
    if constexpr (Tile::T == 0) {
      if (!call.pack_here) return;
      A* own_norms = place + call.layers * stride;
      Crew<A> warp(32, 1, nullptr, 0);
      for (int layer = threadIdx.x / 32; layer < call.layers; layer += blockDim.x / 32) {
        pack_layer<A>(warp, call, first + layer, place + layer * stride, own_norms + 2 * layer);
      }
      __syncthreads();
      layers = place;
      norms = own_norms;
    }
  }
};

// ---- partial sums of dw and db

constexpr int kFold = 16;  // tiles that are added up one after another

// Where a team adds up dw and db, from its lanes' first column on: the first layers' sums in the block's memory, as
// many as it holds, the others' in the L2 cache. Sums over many tiles move on to a second set after every kFold tiles,
// so that rounding errors do not grow with the number of rows.
template <class Tile>
class PartialSums {
  using A = typename Tile::A;

 public:
  // block: memory of the team for call.block_layers layers.
  __device__ PartialSums(const Call& call, int64_t group, int64_t part, int column, int stride, A* block)
      : call_(call), stride_(stride), block_(block + column) {
    A* partials = static_cast<A*>(call.partials);
    sums_ = partials ? partials + (group * call.parts + part) * length() + column : nullptr;
  }

  // Before a team's tiles, counted from 0.
  template <bool kX>
  __device__ void begin(int64_t tile) {
    starts_ = call_.folds ? tile % kFold == 0 : tile == 0;
    if (call_.folds && starts_ && tile > 0) fold<kX>(tile > kFold);
  }

  // After all of them.
  template <bool kX>
  __device__ void end(int64_t tiles) {
    for (int layer = 0; Tile::kBlockSums && sums_ && layer < call_.block_layers; ++layer) {
      Sums<Tile> sums;
      sums.template read<kX, false>(at(block_, layer), columns(), stride_);
      sums.template write<kX, true>(at(sums_, layer), columns(), stride_);
    }
    for (int layer = 0; call_.folds && tiles <= kFold && layer < call_.layers; ++layer) {
      Sums<Tile>().template write<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
    }
  }

  // The sums of the tiles before, read early: `before` waits in registers where a tile has several rows.
  template <bool kX>
  __device__ __forceinline__ void read(Sums<Tile>& before, int layer) const {
    if ((!kX && !sums_) || starts_) return;
    if (Tile::kBlockSums && layer < call_.block_layers) {
      before.template read<kX, false>(at(block_, layer), columns(), stride_);
    } else {
      before.template read<kX, true>(at(sums_, layer), columns(), stride_);
    }
  }

  // A tile's own sums, which are added up by themselves, are added to those before; one row's to those in memory.
  template <bool kX>
  __device__ __forceinline__ void write(Sums<Tile>& sums, Sums<Tile>& before, int layer) const {
    if (!kX && !sums_) return;
    if (Tile::R == 1 && !starts_) {
      sums.template add_to<kX>(at(sums_, layer), columns(), stride_);
      return;
    }
    sums.add(before);
    if (Tile::kBlockSums && layer < call_.block_layers) {
      sums.template write<kX, false>(at(block_, layer), columns(), stride_);
    } else {
      sums.template write<kX, true>(at(sums_, layer), columns(), stride_);
    }
  }

 private:
  template <bool kX>
  __device__ void fold(bool more) {
    for (int layer = 0; layer < call_.layers; ++layer) {
      Sums<Tile> running, total;
      if (Tile::kBlockSums && layer < call_.block_layers) {
        running.template read<kX, false>(at(block_, layer), columns(), stride_);
      } else {
        running.template read<kX, true>(at(sums_, layer), columns(), stride_);
      }
      if (more) total.template read<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
      total.add(running);
      total.template write<kX, true>(at(sums_, layer) + folded(), columns(), stride_);
    }
  }

  __device__ int columns() const { return Tile::columns(call_); }
  __device__ int64_t length() const { return int64_t(call_.layers) * 2 * columns(); }
  __device__ int64_t folded() const { return call_.parts / 2 * length(); }
  __device__ A* at(A* sums, int layer) const { return sums + int64_t(layer) * 2 * columns(); }

  const Call& call_;
  int stride_;
  A *block_, *sums_;
  bool starts_ = true;
};

// ---- du and db of rows too wide for the main kernel's sums: with the coefficients at hand, columns do not meet

// What parameter_gradients needs of a row and layer.
template <class A>
__device__ __forceinline__ void write_coefficients(const Call& call, int64_t row, int layer, A c, A a) {
  write_vector(static_cast<A*>(call.coefficients) + (row * call.layers + layer) * 2, {c, a});
}

template <class A>
using Slice = Tile<A, std::is_same_v<A, double> ? 4 : 16, 1, 4, 0, 0>;

// A warp takes 128 columns of every parts-th tile of a group.
template <class A, bool kX>
__global__ void __launch_bounds__(128, 1) parameter_gradients(const Call call) {
  using Tile = Slice<A>;
  Team<Tile> team(32, 1, nullptr, 0);
  const int slices = call.columns / (32 * Tile::V), sign_bytes = call.sign_bytes;
  const int column = (blockIdx.x % slices * 32 + team.lane()) * Tile::V;
  const int64_t group = blockIdx.x / slices / call.blocks, block = blockIdx.x / slices % call.blocks;
  const int64_t part = block * team.count() + team.index(), parts = int64_t(call.blocks) * team.count();
  const A* layers = static_cast<const A*>(call.packed) + group * call.layers * 2 * call.columns + column;
  const SignPlace<Tile> place(column, sign_bytes);
  PartialSums<Tile> sums(call, group, part, column, 0, nullptr);

  int64_t round = 0;
  for (int64_t tile = part; tile == part || tile * Tile::R < call.rows; tile += parts, ++round) {
    sums.template begin<kX>(round);
    const int64_t first = tile * Tile::R, rows = max(int64_t{0}, min(call.rows - first, int64_t{Tile::R}));
    const unsigned valid = (1u << rows) - 1;
    unsigned live = 0;
    if (kX) {
      uint8_t flags[Tile::R] = {};
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        if (r < rows) flags[r] = read(call.live + group * call.rows + first + r);
      }
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) live |= unsigned(flags[r]) << r;
    }
    A g[Tile::R][Tile::E], x[kX ? Tile::R : 1][Tile::E];
    with_type<A>(call.type, [&](auto type) {
      using S = decltype(type);
      const auto read_from = [&](auto& to, const Rows& rows, unsigned there) {
        const S* data = static_cast<const S*>(rows.data) + group * rows.group_stride + first * rows.row_stride;
        const auto row = [](int r) { return unsigned(r); };
        read_elements<Tile, S, false>(to, data, rows.row_stride, row, there, column, call.features, 0,
                                      rows.vector >= Tile::V);
      };
      read_from(g, call.dy, valid);
      if constexpr (kX) read_from(x, call.y, live);
    });
    const int64_t row = group * call.rows + first;
    const uint8_t* layer_signs = call.signs + row * call.abs_layers * sign_bytes + place.byte;
    const A* coefficients = static_cast<const A*>(call.coefficients) + row * call.layers * 2;
    for (int layer = call.layers - 1; layer >= 0; --layer) {
      const A* parameters = layers + int64_t(layer) * 2 * call.columns;
      A unused[kX ? 2 * Tile::R : Tile::R] = {}, c[Tile::R], a[Tile::R];
      unsigned signs[Tile::R] = {};
      Sums<Tile> layer_sums, before;
      sums.template read<kX>(before, layer);
      // Addresses are made anew for each layer: sixteen rows' would take all registers.
      const unsigned sign_stride = pinned(call.sign_stride), pair_stride = pinned(2 * call.layers);
#pragma unroll
      for (int r = 0; r < Tile::R; ++r) {
        A pair[2] = {};
        if (valid >> r & 1) {
          if (layer < call.abs_layers) {
            signs[r] = read_signs<Tile>(layer_signs + layer * sign_bytes + size_t(r) * sign_stride);
          }
          read_vector(pair, coefficients + 2 * layer + size_t(r) * pair_stride);
        }
        c[r] = pair[0];
        a[r] = pair[1];
      }
      A w[Tile::E], b[Tile::E];
      read_parameter<Tile>(w, parameters, 0);
      if (kX) read_parameter<Tile>(b, parameters + call.columns, 0);
      undo_abs<Tile, kX>(g, x, signs, place.shift, unused, w, b);
      undo_reflection<Tile, kX, true>(g, x, c, a, w, layer_sums);
      sums.template write<kX>(layer_sums, before, layer);
    }
  }
  sums.template end<kX>(round);
}

}  // namespace hanops::cuda
