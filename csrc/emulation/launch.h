// Emulated: a launch is checked against the emulated device and has ended when launch_kernel returns.
#pragma once

#include <typeinfo>

#include "emulation/runtime.h"

namespace lstmvid {

inline emulation::Grid emulated_grid(const Launch& launch) {
  emulation::Grid grid{};
  grid.arch = LSTMVID_EMULATED_ARCH;
  grid.blocks = launch.blocks;
  grid.threads = launch.threads;
  grid.cluster = launch.cluster;
  grid.shared_bytes = launch.shared_bytes;
  grid.cooperative = launch.cooperative;
  return grid;
}

template <class Parameters>
int64_t active_clusters(void (*)(Parameters), const Launch& launch) {
  return emulation::active_clusters(emulated_grid(launch));
}

template <class Parameters>
void check_launch(void (*kernel)(Parameters), const Launch& launch) {
  const emulation::Device& device = emulation::device();
  Launch alone = launch;  // how many fit can be asked only for a launch that is otherwise right
  alone.cooperative = false;
  LaunchLimits limits{LSTMVID_EMULATED_ARCH, device.threads_per_block, device.shared_bytes_per_block, 0};
  validate_launch(alone, limits);
  limits.active_clusters = active_clusters(kernel, launch);
  validate_launch(launch, limits);
}

template <class Parameters>
void launch_kernel(void (*kernel)(Parameters), const Launch& launch, const Parameters& parameters) {
  check_launch(kernel, launch);  // as a driver would
  struct Call {
    void (*kernel)(Parameters);
    const Parameters* parameters;
  } call{kernel, &parameters};
  emulation::Grid grid = emulated_grid(launch);
  grid.kernel = reinterpret_cast<const void*>(kernel);
  grid.parameters = typeid(Parameters).name();
  grid.call = &call;
  grid.run_thread = [](const void* of) {
    const auto* call = static_cast<const Call*>(of);
    call->kernel(*call->parameters);
  };
  emulation::run(grid);
}

}  // namespace lstmvid
