// Emulated: what the compiler of CUDA provides, and a thread's place in the grid.
#pragma once

#include "emulation/runtime.h"

#if !defined(LSTMVID_EMULATED_ARCH)
#error "LSTMVID_EMULATED_ARCH names the chip to emulate: 80 or 90"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define LSTMVID_DEVICE inline

struct alignas(16) float4 {
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace lstmvid {

constexpr int kArch = LSTMVID_EMULATED_ARCH;

LSTMVID_DEVICE int thread_idx() { return emulation::place->thread; }
LSTMVID_DEVICE int64_t block_idx() { return emulation::place->block; }
LSTMVID_DEVICE int64_t grid_blocks() { return emulation::place->blocks; }

LSTMVID_DEVICE uint8_t* shared_memory() { return emulation::place->shared; }

LSTMVID_DEVICE void sync_block() { emulation::sync_block(); }
LSTMVID_DEVICE void sync_warps(int barrier, int threads) { emulation::sync_warps(barrier, threads); }
LSTMVID_DEVICE void sync_lanes() { emulation::sync_lanes(); }
LSTMVID_DEVICE bool all_lanes(bool predicate) { return emulation::all_lanes(predicate); }

LSTMVID_DEVICE void trap() { emulation::trap(); }

constexpr bool kCanMoveRegisters = kArch == 90, kHasWarpGroups = kArch == 90;
template <int registers>
LSTMVID_DEVICE void raise_registers() {}
template <int registers>
LSTMVID_DEVICE void lower_registers() {}

}  // namespace lstmvid
