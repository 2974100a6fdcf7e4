// The Python module lstmvid._C: raw pointers, sizes, dtype. The only file that knows pybind11; nothing knows torch.
//
// lstmvid/backends validates tensors before their pointers come here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "cpu/memory.h"
#include "lstmvid/lstm_sequence.h"
#if LSTMVID_WITH_CUDA
#include "lstmvid/device_limits.h"
#endif

namespace py = pybind11;

namespace {

template <class T>
T* pointer(const py::dict& arguments, const char* name) {
  return reinterpret_cast<T*>(arguments[name].cast<uintptr_t>());  // 0 is null: an absent tensor
}

// What both directions of the recurrence have in common.
template <class Parameters>
Parameters common(const py::dict& arguments) {
  Parameters p{};
  p.steps = arguments["steps"].cast<int64_t>();
  p.batch = arguments["batch"].cast<int64_t>();
  p.hidden = arguments["hidden"].cast<int64_t>();
  p.dtype = static_cast<lstmvid::DType>(arguments["dtype"].cast<int>());
  p.reverse = arguments["reverse"].cast<bool>();
  p.threads = arguments["threads"].cast<int>();
  p.weight_hh = pointer<const void>(arguments, "weight_hh");
  p.peephole = pointer<const void>(arguments, "peephole");
  p.c_0 = pointer<const void>(arguments, "c_0");
  p.lengths = pointer<const int64_t>(arguments, "lengths");
  p.workspace = pointer<void>(arguments, "workspace");
  return p;
}

lstmvid::LstmSequenceFwd forward_parameters(const py::kwargs& arguments) {
  auto p = common<lstmvid::LstmSequenceFwd>(arguments);
  p.projection = pointer<const void>(arguments, "projection");
  p.bias = pointer<const void>(arguments, "bias");
  p.h_0 = pointer<const void>(arguments, "h_0");
  p.output = pointer<void>(arguments, "output");
  p.h_n = pointer<void>(arguments, "h_n");
  p.c_n = pointer<void>(arguments, "c_n");
  p.cells = pointer<void>(arguments, "cells");
  p.gates = pointer<void>(arguments, "gates");
  return p;
}

lstmvid::LstmSequenceBwd backward_parameters(const py::kwargs& arguments) {
  auto p = common<lstmvid::LstmSequenceBwd>(arguments);
  p.cells = pointer<const void>(arguments, "cells");
  p.gates = pointer<const void>(arguments, "gates");
  p.grad_output = pointer<const void>(arguments, "grad_output");
  p.grad_h_n = pointer<const void>(arguments, "grad_h_n");
  p.grad_c_n = pointer<const void>(arguments, "grad_c_n");
  p.grad_cells = pointer<const void>(arguments, "grad_cells");
  p.grad_gates = pointer<void>(arguments, "grad_gates");
  p.grad_h_0 = pointer<void>(arguments, "grad_h_0");
  p.grad_c_0 = pointer<void>(arguments, "grad_c_0");
  p.grad_peephole = pointer<void>(arguments, "grad_peephole");
  return p;
}

template <class Parameters>
void run_released(void (*kernel)(const Parameters&), const Parameters& p) {
  const py::gil_scoped_release release;
  kernel(p);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using lstmvid::DType;
  module.doc() = "Native kernels of lstmvid.";
  module.attr("FLOAT32") = static_cast<int>(DType::kFloat32);
  module.attr("FLOAT64") = static_cast<int>(DType::kFloat64);
  module.attr("BFLOAT16") = static_cast<int>(DType::kBFloat16);
  module.attr("WITH_CUDA") = static_cast<bool>(LSTMVID_WITH_CUDA);
  module.def("cpu_instruction_set", &lstmvid::cpu_instruction_set);
  module.def("advise_huge_pages", [](uintptr_t memory, int64_t bytes) {
    lstmvid::advise_huge_pages(reinterpret_cast<void*>(memory), bytes);
  });
  module.def("lstm_sequence_fwd_workspace", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_fwd_workspace(forward_parameters(arguments));
  });
  module.def("lstm_sequence_bwd_workspace", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_bwd_workspace(backward_parameters(arguments));
  });
  module.def("lstm_sequence_fwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::lstm_sequence_fwd_cpu, forward_parameters(arguments));
  });
  module.def("lstm_sequence_bwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::lstm_sequence_bwd_cpu, backward_parameters(arguments));
  });
#if LSTMVID_WITH_CUDA
  // (number of devices, why there is none)
  module.def("cuda_device_count", [] {
    std::string why_none;
    const int count = lstmvid::device_count(&why_none);
    return std::make_pair(count, why_none);
  });
  module.def("cuda_device_limits", [](int ordinal) {
    const lstmvid::DeviceLimits limits = lstmvid::device_limits(ordinal);
    py::dict named;
    named["name"] = limits.name;
    named["compute_capability"] = limits.compute_capability;
    named["multiprocessors"] = limits.multiprocessors;
    named["registers_per_multiprocessor"] = limits.registers_per_multiprocessor;
    named["shared_bytes_per_multiprocessor"] = limits.shared_bytes_per_multiprocessor;
    named["shared_bytes_per_block_opt_in"] = limits.shared_bytes_per_block_opt_in;
    named["l2_bytes"] = limits.l2_bytes;
    named["memory_bytes"] = limits.memory_bytes;
    named["has_clusters"] = limits.has_clusters;
    named["has_cooperative_launch"] = limits.has_cooperative_launch;
    return named;
  });
#endif
}
