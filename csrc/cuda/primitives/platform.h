// Where a kernel runs: its place in the grid, its shared memory, its threads' meeting points.
//
// The same kernels are compiled by nvcc and, with LSTMVID_EMULATED=1, by the host's compiler for csrc/emulation. These
// headers are the only code that knows which; a kernel reaches the machine through them alone.
#pragma once

#include <cstdint>

#if LSTMVID_EMULATED
#include "emulation/platform.h"
#else

namespace lstmvid {

#define LSTMVID_DEVICE __device__ __forceinline__

// 10 * major + minor of what is being compiled for; 0 in the host's pass.
#if defined(__CUDA_ARCH__)
constexpr int kArch = __CUDA_ARCH__ / 10;
#else
constexpr int kArch = 0;
#endif

LSTMVID_DEVICE int thread_idx() { return static_cast<int>(threadIdx.x); }
LSTMVID_DEVICE int64_t block_idx() { return blockIdx.x; }
LSTMVID_DEVICE int64_t grid_blocks() { return gridDim.x; }

// The block's dynamic shared memory, aligned to 128 bytes; uninitialised.
LSTMVID_DEVICE uint8_t* shared_memory() {
  extern __shared__ __align__(128) uint8_t bytes[];
  return bytes;
}

// All threads of the block.
LSTMVID_DEVICE void sync_block() { __syncthreads(); }

// `threads` threads of the block (whole warps) that call it with the same number, 1 to 15.
LSTMVID_DEVICE void sync_warps(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

LSTMVID_DEVICE void sync_lanes() { __syncwarp(); }

// Whether `predicate` holds in all lanes of the warp: every lane gets the same answer.
LSTMVID_DEVICE bool all_lanes(bool predicate) { return __all_sync(0xffffffffu, predicate); }

// Whether warps may hand registers to others while the kernel runs (setmaxnreg).
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kCanMoveRegisters = true;
#else
constexpr bool kCanMoveRegisters = false;
#endif
// Whether warp groups multiply (warp_group.h): the same chip alone.
constexpr bool kHasWarpGroups = kCanMoveRegisters;

// Four warps in a row, the first one's index divisible by 4, take registers, up to so many a thread; or give them away.
template <int registers>
LSTMVID_DEVICE void raise_registers() {
  if constexpr (kCanMoveRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
LSTMVID_DEVICE void lower_registers() {
  if constexpr (kCanMoveRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Ends the kernel with an error that the host sees at its next synchronisation; the CUDA context is lost.
LSTMVID_DEVICE void trap() { asm volatile("trap;"); }

}  // namespace lstmvid
#endif

namespace lstmvid {

constexpr int kWarpSize = 32;

LSTMVID_DEVICE int warp_idx() { return thread_idx() / kWarpSize; }
LSTMVID_DEVICE int lane_idx() { return thread_idx() % kWarpSize; }

// Clusters, distributed shared memory and bulk copies.
constexpr bool kHasClusters = kArch >= 90;

}  // namespace lstmvid
