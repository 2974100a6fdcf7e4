// What the planner has to know of an NVIDIA GPU, read through the CUDA runtime.
//
// Compiled only where LSTMVID_WITH_CUDA is 1. The runtime is linked statically, so these functions exist and answer on a
// machine without a driver too: `device_count` is 0 there and says why.
#pragma once

#include <cstdint>
#include <string>

namespace lstmvid {

struct DeviceLimits {
  std::string name;                         // as the driver calls it, e.g. "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;               // 10 * major + minor: 90 for 9.0
  int multiprocessors = 0;                  // SMs, as this process sees them (fewer under MIG)
  int registers_per_multiprocessor = 0;     // 32-bit registers
  int shared_bytes_per_multiprocessor = 0;  // bytes
  int shared_bytes_per_block_opt_in = 0;    // bytes; the most that a kernel may ask for by attribute
  int l2_bytes = 0;                         // bytes
  std::int64_t memory_bytes = 0;            // bytes of device memory in all, not what is free
  bool has_clusters = false;                // thread block clusters and distributed shared memory (9.0 and up)
  bool has_cooperative_launch = false;      // a grid may be launched that is resident as a whole
};

// Number of GPUs that this process can use. Never throws: where it is 0 and `why_none` isn't null, `*why_none` says why.
int device_count(std::string* why_none);

// Limits of the GPU `ordinal`, as CUDA numbers them for this process. Creates no context and allocates nothing.
// Throws std::out_of_range if there is no such GPU, std::runtime_error if the driver refuses an answer.
DeviceLimits device_limits(int ordinal);

}  // namespace lstmvid
