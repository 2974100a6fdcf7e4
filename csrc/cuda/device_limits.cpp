// Device limits: host code only, so that any C++ compiler can build it against the CUDA runtime's header.
#include "lstmvid/device_limits.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace lstmvid {
namespace {

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

int device_count(std::string* why_none) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;

  if (why_none != nullptr) {
    // Without any driver the runtime reports "driver version is insufficient", which sends people to update what isn't there.
    int driver_version = 0;
    const bool has_driver = cudaDriverGetVersion(&driver_version) == cudaSuccess && driver_version > 0;
    if (!has_driver) {
      *why_none = "no NVIDIA driver is installed";
    } else if (status == cudaSuccess) {
      *why_none = "the NVIDIA driver sees no GPU";
    } else {
      *why_none = cudaGetErrorString(status);
    }
  }
  cudaGetLastError();  // the runtime remembers the error and would report it from the next launch
  return 0;
}

DeviceLimits device_limits(int ordinal) {
  std::string why_none;
  const int count = device_count(&why_none);
  if (ordinal < 0 || ordinal >= count) {
    throw std::out_of_range("no CUDA device " + std::to_string(ordinal) + ": " +
                            (count == 0 ? why_none : "there are " + std::to_string(count)));
  }

  // One attribute after the other: cudaDeviceProp changes its layout and loses members between CUDA versions.
  const auto attribute = [ordinal](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
    return value;
  };
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");

  DeviceLimits limits;
  limits.name = properties.name;
  limits.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  limits.compute_capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.registers_per_multiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  limits.shared_bytes_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_bytes_per_block_opt_in = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  limits.has_cooperative_launch = attribute(cudaDevAttrCooperativeLaunch) != 0;
  limits.has_clusters = attribute(cudaDevAttrClusterLaunch) != 0;
  return limits;
}

}  // namespace lstmvid
