// Launching kernels from the host. A cooperative launch is one whose blocks wait for each other: all must be resident.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lstmvid {

struct Launch {
  int64_t blocks;        // a multiple of `cluster`
  int threads;           // a block; whole warps
  int cluster;           // blocks a cluster; 1 without
  int64_t shared_bytes;  // dynamic shared memory a block
  bool cooperative;
  void* stream;  // cudaStream_t
};

// What a launch must stay within, of the device in the context it is launched in.
struct LaunchLimits {
  int arch;                 // 10 * major + minor
  int threads_per_block;    // for this kernel: its registers bound it
  int64_t shared_bytes;     // a block may ask for
  int64_t active_clusters;  // of the launch's size, resident at once
};

// One check for the driver and the emulator. Throws std::invalid_argument, naming what is exceeded.
inline void validate_launch(const Launch& launch, const LaunchLimits& limits) {
  const auto fail = [](const std::string& what, int64_t asked, int64_t limit) {
    throw std::invalid_argument("kernel launch: " + what + ": " + std::to_string(asked) + ", limit " +
                                std::to_string(limit));
  };
  if (launch.blocks < 1 || launch.blocks > 0x7fffffff) fail("blocks", launch.blocks, 0x7fffffff);
  if (launch.threads < 32 || launch.threads % 32 != 0 || launch.threads > limits.threads_per_block) {
    fail("threads a block (whole warps)", launch.threads, limits.threads_per_block);
  }
  if (launch.shared_bytes > limits.shared_bytes) fail("shared bytes a block", launch.shared_bytes, limits.shared_bytes);
  const int largest_cluster = limits.arch >= 90 ? 8 : 1;
  if (launch.cluster < 1 || launch.cluster > largest_cluster) fail("blocks a cluster", launch.cluster, largest_cluster);
  if (launch.blocks % launch.cluster != 0) {
    fail("blocks that fill no cluster", launch.blocks % launch.cluster, 0);
  }
  if (launch.cooperative && launch.blocks / launch.cluster > limits.active_clusters) {
    fail("clusters that must be resident at once", launch.blocks / launch.cluster, limits.active_clusters);
  }
}

// Defined for both below:
//
//   int64_t active_clusters(kernel, const Launch&)  how many of the launch's clusters are resident at once
//   void check_launch(kernel, const Launch&)        throws what launching it would throw
//   void launch_kernel(kernel, const Launch&, const Parameters&)  what check_launch() has passed, or needs no check: no
//                                                                 shared memory, no clusters, nobody waits for anybody
//
// of `void (*kernel)(Parameters)`. They throw std::invalid_argument or std::runtime_error. Emulated, a launch has ended when
// launch_kernel returns.

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/launch.h"
#else

#include <cuda_runtime.h>

namespace lstmvid {

inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the runtime remembers the error and would report it from the next call
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// A launch as the runtime wants it; its attributes must stay where they are.
struct LaunchConfig {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  explicit LaunchConfig(const Launch& launch) {
    config.gridDim = dim3(static_cast<unsigned>(launch.blocks));
    config.blockDim = dim3(static_cast<unsigned>(launch.threads));
    config.dynamicSmemBytes = static_cast<size_t>(launch.shared_bytes);
    config.stream = static_cast<cudaStream_t>(launch.stream);
    config.attrs = attributes;
    if (launch.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(launch.cluster);
      attributes[config.numAttrs].val.clusterDim.y = attributes[config.numAttrs].val.clusterDim.z = 1;
      ++config.numAttrs;
    }
    if (launch.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs].val.cooperative = 1;
      ++config.numAttrs;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <class Parameters>
int64_t active_clusters(void (*kernel)(Parameters), const Launch& launch) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (launch.shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(launch.shared_bytes)),
               "cudaFuncSetAttribute");
  }
  int active = 0;
  if (launch.cluster > 1) {
    Launch alone = launch;  // the question is about clusters, whatever else the launch asks for
    alone.cooperative = false;
    const LaunchConfig of(alone);
    const cudaError_t status = cudaOccupancyMaxActiveClusters(&active, function, &of.config);
    if (status == cudaErrorInvalidClusterSize) {  // a slice of a chip (MIG) may have no place for one
      cudaGetLastError();
      return 0;
    }
    check_cuda(status, "cudaOccupancyMaxActiveClusters");
    return active;
  }
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&active, function, launch.threads,
                                                           static_cast<size_t>(launch.shared_bytes)),
             "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return static_cast<int64_t>(active) * device_attribute(cudaDevAttrMultiProcessorCount);
}

template <class Parameters>
void check_launch(void (*kernel)(Parameters), const Launch& launch) {
  cudaFuncAttributes of_kernel{};
  check_cuda(cudaFuncGetAttributes(&of_kernel, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  const int arch =
      10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
  LaunchLimits limits{arch, of_kernel.maxThreadsPerBlock, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), 0};
  Launch alone = launch;  // how many fit can be asked only for a launch that is otherwise right
  alone.cooperative = false;
  validate_launch(alone, limits);
  if (!launch.cooperative) return;
  limits.active_clusters = active_clusters(kernel, launch);
  validate_launch(launch, limits);
}

template <class Parameters>
void launch_kernel(void (*kernel)(Parameters), const Launch& launch, const Parameters& parameters) {
  const LaunchConfig as(launch);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check_cuda(cudaLaunchKernelExC(&as.config, reinterpret_cast<const void*>(kernel), arguments), "cudaLaunchKernelEx");
}

}  // namespace lstmvid
#endif
