// The Python module lstmvid._C: raw pointers, sizes, dtype. The only file that knows pybind11; nothing knows torch.
//
// lstmvid/backends validates tensors before their pointers come here. With LSTMVID_EMULATED=1 it is the tests' module
// lstmvid_emulated, which has the CUDA functions alone, run by csrc/emulation.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#ifndef LSTMVID_EMULATED
#define LSTMVID_EMULATED 0
#endif

#include "lstmvid/dtype.h"
#if !LSTMVID_EMULATED
#include "cpu/memory.h"
#include "lstmvid/closed_loop.h"
#include "lstmvid/lstm_sequence.h"
#include "lstmvid/matrix_product.h"
#endif
#if LSTMVID_WITH_CUDA || LSTMVID_EMULATED
#include <stdexcept>
#include <string>

#include "lstmvid/lstm_sequence_cuda.h"
#endif
#if LSTMVID_WITH_CUDA
#include <cuda_runtime_api.h>

#include "lstmvid/device_limits.h"
#endif

namespace py = pybind11;

namespace {

template <class T>
T* pointer(const py::dict& arguments, const char* name) {
  return reinterpret_cast<T*>(arguments[name].cast<uintptr_t>());  // 0 is null: an absent tensor
}

#if !LSTMVID_EMULATED
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
  p.packed = arguments["packed"].cast<bool>();
  p.weight_hh = pointer<const void>(arguments, "weight_hh");
  p.peephole = pointer<const void>(arguments, "peephole");
  p.c_0 = pointer<const void>(arguments, "c_0");
  p.lengths = pointer<const int64_t>(arguments, "lengths");
  p.workspace = pointer<void>(arguments, "workspace");
  return p;
}

lstmvid::LstmSequenceFwd forward_parameters(const py::dict& arguments) {
  auto p = common<lstmvid::LstmSequenceFwd>(arguments);
  p.blind = arguments["blind"].cast<bool>();
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

lstmvid::LstmSequenceBwd backward_parameters(const py::dict& arguments) {
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

// A closed loop's call, and what its parameters point to.
template <class Parameters, class Layer>
struct ClosedLoopCall {
  std::vector<Layer> layers;
  std::vector<const void*> weight_ih;
  Parameters p{};

  template <class Take>
  ClosedLoopCall(const py::dict& arguments, const Take& take) {
    for (const py::handle& layer : arguments["layers"]) layers.push_back(take(layer.cast<py::dict>()));
    for (const py::handle& weight : arguments["weight_ih"]) {
      weight_ih.push_back(reinterpret_cast<const void*>(weight.cast<uintptr_t>()));
    }
    p.layers = layers.data();
    p.weight_ih = weight_ih.data();
    p.num_layers = static_cast<int64_t>(layers.size());
    p.frame = arguments["frame"].cast<int64_t>();
    p.link = static_cast<lstmvid::Link>(arguments["link"].cast<int>());
    p.head_weight = pointer<const void>(arguments, "head_weight");
    p.own = pointer<const uint8_t>(arguments, "own");
    p.workspace = pointer<void>(arguments, "workspace");
  }
};

struct ClosedLoopForward : ClosedLoopCall<lstmvid::ClosedLoopFwd, lstmvid::LstmSequenceFwd> {
  explicit ClosedLoopForward(const py::dict& arguments) : ClosedLoopCall(arguments, &forward_parameters) {
    p.head_bias = pointer<const void>(arguments, "head_bias");
    p.first = pointer<const void>(arguments, "first");
    p.truth = pointer<const void>(arguments, "truth");
    p.z = pointer<void>(arguments, "z");
  }
};

struct ClosedLoopBackward : ClosedLoopCall<lstmvid::ClosedLoopBwd, lstmvid::LstmSequenceBwd> {
  explicit ClosedLoopBackward(const py::dict& arguments) : ClosedLoopCall(arguments, &backward_parameters) {
    p.z = pointer<const void>(arguments, "z");
    p.grad_z = pointer<const void>(arguments, "grad_z");
    p.grad_frames = pointer<void>(arguments, "grad_frames");
  }
};

// (sizes, dtype, threads, add, then address and strides of left, right and out)
lstmvid::MatrixProduct matrix_product(const py::tuple& arguments, uintptr_t workspace) {
  const auto number = [&](size_t place) { return arguments[place].cast<int64_t>(); };
  const auto matrix = [&](size_t place) {
    return lstmvid::Strided<void>{reinterpret_cast<void*>(arguments[place].cast<uintptr_t>()), number(place + 1),
                                  number(place + 2)};
  };
  const auto constant = [](const lstmvid::Strided<void>& m) {
    return lstmvid::Strided<const void>{m.data, m.row_stride, m.column_stride};
  };
  return {number(0),
          number(1),
          number(2),
          static_cast<lstmvid::DType>(arguments[3].cast<int>()),
          arguments[4].cast<int>(),
          arguments[5].cast<bool>(),
          constant(matrix(6)),
          constant(matrix(9)),
          matrix(12),
          reinterpret_cast<void*>(workspace)};
}

template <class Parameters>
Parameters sized(int64_t hidden, int64_t batch, int dtype, bool has_weight) {
  static const char any_weight = 0;
  Parameters p{};
  p.hidden = hidden;
  p.batch = batch;
  p.dtype = static_cast<lstmvid::DType>(dtype);
  p.weight_hh = has_weight ? &any_weight : nullptr;
  return p;
}

template <class Parameters>
void run_released(void (*kernel)(const Parameters&), const Parameters& p) {
  const py::gil_scoped_release release;
  kernel(p);
}

void define_cpu(py::module_& module) {
  module.def("cpu_instruction_set", &lstmvid::cpu_instruction_set);
  module.def("advise_huge_pages", [](uintptr_t memory, int64_t bytes) {
    lstmvid::advise_huge_pages(reinterpret_cast<void*>(memory), bytes);
  });
  // (hidden, batch, dtype, whether there is a weight_hh): what the bytes of a workspace depend on
  module.def("lstm_sequence_fwd_workspace", [](int64_t hidden, int64_t batch, int dtype, bool has_weight) {
    return lstmvid::lstm_sequence_fwd_workspace(sized<lstmvid::LstmSequenceFwd>(hidden, batch, dtype, has_weight));
  });
  module.def("lstm_sequence_bwd_workspace", [](int64_t hidden, int64_t batch, int dtype, bool has_weight) {
    return lstmvid::lstm_sequence_bwd_workspace(sized<lstmvid::LstmSequenceBwd>(hidden, batch, dtype, has_weight));
  });
  module.def("lstm_sequence_fwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::lstm_sequence_fwd_cpu, forward_parameters(arguments));
  });
  module.def("lstm_sequence_bwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::lstm_sequence_bwd_cpu, backward_parameters(arguments));
  });
  module.def("closed_loop_fwd_workspace", [](const py::kwargs& arguments) {
    return lstmvid::closed_loop_fwd_workspace(ClosedLoopForward(arguments).p);
  });
  module.def("closed_loop_bwd_workspace", [](const py::kwargs& arguments) {
    return lstmvid::closed_loop_bwd_workspace(ClosedLoopBackward(arguments).p);
  });
  module.def("closed_loop_fwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::closed_loop_fwd_cpu, ClosedLoopForward(arguments).p);
  });
  module.def("closed_loop_bwd_cpu", [](const py::kwargs& arguments) {
    run_released(&lstmvid::closed_loop_bwd_cpu, ClosedLoopBackward(arguments).p);
  });
  module.def("matrix_product_workspace", [](const py::tuple& arguments) {
    return lstmvid::matrix_product_workspace(matrix_product(arguments, 0));
  });
  module.def("matrix_product_cpu", [](const py::tuple& arguments, uintptr_t workspace) {
    run_released(&lstmvid::matrix_product_cpu, matrix_product(arguments, workspace));
  });
}
#endif  // !LSTMVID_EMULATED

#if LSTMVID_WITH_CUDA || LSTMVID_EMULATED
// A pointer of each group; 0 is null.
template <class T>
void take_pointers(T* (&pointers)[lstmvid::kMaxGroups], const py::dict& arguments, const char* name) {
  const auto given = arguments[name].cast<std::vector<uintptr_t>>();
  if (given.size() != arguments["groups"].cast<size_t>() || given.size() > lstmvid::kMaxGroups) {
    throw std::invalid_argument(std::string(name) + ": one for each of at most " + std::to_string(lstmvid::kMaxGroups) +
                                " groups, got " + std::to_string(given.size()));
  }
  for (size_t group = 0; group < given.size(); ++group) pointers[group] = reinterpret_cast<T*>(given[group]);
}

// What every call for a GPU has.
template <class Parameters>
Parameters cuda_call(const py::dict& arguments) {
  Parameters p{};
  p.steps = arguments["steps"].cast<int64_t>();
  p.batch = arguments["batch"].cast<int64_t>();
  p.hidden = arguments["hidden"].cast<int64_t>();
  p.first_step = arguments["first_step"].cast<int64_t>();
  p.end_step = arguments["end_step"].cast<int64_t>();
  p.groups = arguments["groups"].cast<int>();
  p.dtype = static_cast<lstmvid::DType>(arguments["dtype"].cast<int>());
  p.reverse = arguments["reverse"].cast<uint32_t>();
  take_pointers(p.peephole, arguments, "peephole");
  p.lengths = pointer<const int64_t>(arguments, "lengths");
  take_pointers(p.c_0, arguments, "c_0");
  return p;
}

// What both directions of the recurrence on a GPU have in common.
template <class Parameters>
Parameters cuda_common(const py::dict& arguments) {
  auto p = cuda_call<Parameters>(arguments);
  p.allow_tf32 = arguments["allow_tf32"].cast<bool>();
  p.max_polls = arguments["max_polls"].cast<uint64_t>();
  take_pointers(p.weight_hh, arguments, "weight_hh");
  p.workspace = pointer<void>(arguments, "workspace");
  return p;
}

lstmvid::LstmSequenceFwdCuda cuda_forward_parameters(const py::dict& arguments) {
  auto p = cuda_common<lstmvid::LstmSequenceFwdCuda>(arguments);
  take_pointers(p.bias, arguments, "bias");
  take_pointers(p.projection, arguments, "projection");
  take_pointers(p.h_0, arguments, "h_0");
  take_pointers(p.output, arguments, "output");
  take_pointers(p.h_n, arguments, "h_n");
  take_pointers(p.c_n, arguments, "c_n");
  take_pointers(p.cells, arguments, "cells");
  take_pointers(p.gates, arguments, "gates");
  return p;
}

lstmvid::LstmSequenceBwdCuda cuda_backward_parameters(const py::dict& arguments) {
  auto p = cuda_common<lstmvid::LstmSequenceBwdCuda>(arguments);
  take_pointers(p.cells, arguments, "cells");
  take_pointers(p.gates, arguments, "gates");
  take_pointers(p.grad_output, arguments, "grad_output");
  take_pointers(p.grad_h_n, arguments, "grad_h_n");
  take_pointers(p.grad_c_n, arguments, "grad_c_n");
  take_pointers(p.grad_cells, arguments, "grad_cells");
  take_pointers(p.grad_gates, arguments, "grad_gates");
  take_pointers(p.grad_h_0, arguments, "grad_h_0");
  take_pointers(p.grad_c_0, arguments, "grad_c_0");
  return p;
}

lstmvid::LstmGatesCuda cuda_gates_parameters(const py::dict& arguments) {
  auto p = cuda_call<lstmvid::LstmGatesCuda>(arguments);
  take_pointers(p.cells, arguments, "cells");
  take_pointers(p.gates, arguments, "gates");
  return p;
}

lstmvid::LstmSequencePlan plan(const py::dict& arguments) {
  lstmvid::LstmSequencePlan result{};
  result.cluster = arguments["cluster"].cast<int>();
  result.clusters = arguments["clusters"].cast<int>();
  result.replicas = arguments["replicas"].cast<int>();
  result.unit_blocks = arguments["unit_blocks"].cast<int>();
  result.tile_columns = arguments["tile_columns"].cast<int>();
  result.register_rounds = arguments["register_rounds"].cast<int>();
  result.resident_rounds = arguments["resident_rounds"].cast<int>();
  result.hidden_stage_rounds = arguments["hidden_stage_rounds"].cast<int>();
  result.hidden_stages = arguments["hidden_stages"].cast<int>();
  result.weight_stages = arguments["weight_stages"].cast<int>();
  result.cells_in_shared = arguments["cells_in_shared"].cast<bool>();
  result.warp_groups = arguments["warp_groups"].cast<bool>();
  return result;
}

// Makes a device current for as long as it lives. Emulated, there is one.
class CurrentDevice {
 public:
#if LSTMVID_WITH_CUDA
  explicit CurrentDevice(int ordinal) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changes_ = ordinal != before_;
    if (changes_) check(cudaSetDevice(ordinal), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (changes_) cudaSetDevice(before_);
  }

 private:
  static void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
  }
  int before_ = 0;
  bool changes_ = false;
#else
  explicit CurrentDevice(int) {}
#endif
};

// launch(stream), with the GIL released.
template <class Launch>
void run_on_device(int device, uintptr_t stream, const Launch& launch) {
  const py::gil_scoped_release release;
  const CurrentDevice current(device);
  launch(reinterpret_cast<void*>(stream));
}

void define_cuda(py::module_& module) {
  module.def("lstm_sequence_fwd_cuda_shared_bytes", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_fwd_cuda_shared_bytes(cuda_forward_parameters(arguments), plan(arguments));
  });
  module.def("lstm_sequence_bwd_cuda_shared_bytes", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_bwd_cuda_shared_bytes(cuda_backward_parameters(arguments), plan(arguments));
  });
  module.def("lstm_sequence_fwd_cuda_workspace", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_fwd_cuda_workspace(cuda_forward_parameters(arguments), plan(arguments));
  });
  module.def("lstm_sequence_bwd_cuda_workspace", [](const py::kwargs& arguments) {
    return lstmvid::lstm_sequence_bwd_cuda_workspace(cuda_backward_parameters(arguments), plan(arguments));
  });
  module.def("lstm_sequence_fwd_cuda_active_clusters", [](int device, int cluster, int64_t shared_bytes) {
    const CurrentDevice current(device);
    return lstmvid::lstm_sequence_fwd_cuda_active_clusters(cluster, shared_bytes);
  });
  module.def(
      "lstm_sequence_fwd_cuda",
      [](int device, uintptr_t stream, const py::kwargs& arguments) {
        run_on_device(device, stream, [p = cuda_forward_parameters(arguments), chosen = plan(arguments)](void* on) {
          lstmvid::lstm_sequence_fwd_cuda(p, chosen, on);
        });
      },
      py::arg("device"), py::arg("stream"));
  module.def(
      "lstm_sequence_bwd_cuda",
      [](int device, uintptr_t stream, const py::kwargs& arguments) {
        run_on_device(device, stream, [p = cuda_backward_parameters(arguments), chosen = plan(arguments)](void* on) {
          lstmvid::lstm_sequence_bwd_cuda(p, chosen, on);
        });
      },
      py::arg("device"), py::arg("stream"));
  module.def(
      "lstm_gates_cuda",
      [](int device, uintptr_t stream, const py::kwargs& arguments) {
        run_on_device(device, stream,
                      [p = cuda_gates_parameters(arguments)](void* on) { lstmvid::lstm_gates_cuda(p, on); });
      },
      py::arg("device"), py::arg("stream"));
}
#endif  // LSTMVID_WITH_CUDA || LSTMVID_EMULATED

#if LSTMVID_WITH_CUDA
void define_devices(py::module_& module) {
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
}
#endif

void define_dtypes(py::module_& module) {
  using lstmvid::DType;
  module.attr("FLOAT32") = static_cast<int>(DType::kFloat32);
  module.attr("FLOAT64") = static_cast<int>(DType::kFloat64);
  module.attr("BFLOAT16") = static_cast<int>(DType::kBFloat16);
  module.attr("FLOAT16") = static_cast<int>(DType::kFloat16);
}

}  // namespace

#if LSTMVID_EMULATED
PYBIND11_MODULE(lstmvid_emulated, module) {
  module.doc() = "The CUDA kernels of lstmvid, run by the emulator.";
  define_dtypes(module);
  define_cuda(module);
}
#else
PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of lstmvid.";
  define_dtypes(module);
  define_cpu(module);
  module.attr("WITH_CUDA") = static_cast<bool>(LSTMVID_WITH_CUDA);
#if LSTMVID_WITH_CUDA
  define_devices(module);
  define_cuda(module);
#endif
}
#endif
