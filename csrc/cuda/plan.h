// How a call runs: its tile, its launches, and the memory that they need. Free of torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>

#include "kernels.h"

namespace hanops::cuda {

// A device's part in the plan.
struct Device {
  int sms;
  int shared = 0, shared_of_block = 0;  // bytes of shared memory of an SM, and what a block may have of it
  bool early = false;                   // a call's kernels but the first are launched early: see launch()
  static Device current();
};

// What a kernel takes of the current device.
struct Residence {
  int registers = 0;              // of a thread
  int warps = 0, most_warps = 0;  // resident on an SM, and the most that it could hold
};

// A call has at least one layer and one element.
class Plan {
 public:
  virtual ~Plan() = default;

  // Bytes of device memory that the launches use, aligned to 256 bytes.
  size_t workspace() const { return workspace_; }
  // The kernels and tiles that will run, for people.
  virtual std::string describe() const = 0;
  // What the main kernel takes of the current device.
  virtual Residence residence() const = 0;
  // Launches the kernels on a stream of the current device. Throws std::runtime_error where a launch fails.
  virtual void launch(void* workspace, cudaStream_t stream) const = 0;

 protected:
  // A part of the workspace.
  struct Part {
    static constexpr size_t kNone = ~size_t{0};
    size_t offset = kNone;
    void* in(void* workspace) const { return offset == kNone ? nullptr : static_cast<char*>(workspace) + offset; }
  };

  Part reserve(size_t bytes);

 private:
  size_t workspace_ = 0;
};

// Whether there are kernels for a call whose features are not the last axis, forward and back.
bool takes_axis(const Stack& stack);

// What both directions share. kValues: of a row, in a sum over the warps of a thread group.
template <class Call, int kValues>
class PlanOf : public Plan {
 public:
  std::string describe() const override;
  Residence residence() const override;

 protected:
  PlanOf(const Call& call, Device device);

  virtual Kernel<Call> kernel() const = 0;
  virtual size_t shared_memory() const = 0;  // bytes, of a block of the main kernel

  template <class Tile>
  const Tile* choose_tile(std::span<const Tile> many_rows, const Tile& one_row);
  void set_threads(int threads);
  template <class Tile>
  const Tile* choose_axis_tile(std::span<const Tile> tiles, int vector);
  void stream_rows();
  void reserve_packed();

  bool wide() const { return item_ == 8; }
  bool one_row() const { return tile_ && tile_->rows == 1; }
  int64_t resident_blocks(int threads, int warps_per_sm) const;
  int group_threads() const { return tile_->lanes ? tile_->lanes * tile_->warps : call_.lanes * call_.warps; }
  int groups_of_block() const { return threads_ / group_threads(); }
  int main_threads() const { return tile_ ? threads_ : kStreamThreads; }
  bool packs_in_a_block() const;
  size_t exchange() const;
  size_t packed_here() const { return call_.pack_here ? 2 * call_.layers * (call_.columns + 1) * item_ : 0; }

  Call placed(void* workspace) const;
  void launch_main(const Call& call, const char* name, cudaStream_t stream) const;

  Call call_;
  const Device device_;
  const size_t item_;                // bytes of an element of the arithmetic type
  const TileShape* tile_ = nullptr;  // null where rows are streamed
  int threads_ = 0;
  int64_t stream_blocks_ = 0;

 private:
  Part packed_, norms_, scratch_;
};

class ForwardPlan final : public PlanOf<ForwardCall, 1> {
 public:
  ForwardPlan(const ForwardCall& call, Device device);
  void launch(void* workspace, cudaStream_t stream) const override;

 private:
  Kernel<ForwardCall> kernel() const override;
  size_t shared_memory() const override { return exchange() + packed_here(); }
};

class BackwardPlan final : public PlanOf<BackwardCall, 2> {
 public:
  BackwardPlan(const BackwardCall& call, Device device);
  std::string describe() const override;
  void launch(void* workspace, cudaStream_t stream) const override;

 private:
  Kernel<BackwardCall> kernel() const override;
  size_t shared_memory() const override;
  void plan_blocks();
  void keep_sums_in_blocks();
  int blocks_with_sums(int rows, int groups_of_a_block, int64_t resident) const;

  const BackwardTile* backward_tile_ = nullptr;  // tile_
  int gradients_blocks_ = 0;                     // of a group, in parameter_gradients
  Part partials_, totals_, coefficients_, live_;
};

// The plan of a call without tensors: a forward, which saves sign bits or not, or a backward with all gradients.
std::unique_ptr<Plan> make_plan(const Stack& stack, bool backward, bool save, Device device);

}  // namespace hanops::cuda
