// A decoder on its own output, forward and backward, on a CPU: all steps in one call.
//
// Each layer is the recurrence of lstm_forward.h and lstm_backward.h, whose input's product is taken a step at a time;
// between the top layer of a step and the bottom one of the next stands the head, a product like the others. All
// weights are packed once. Blocks of units, and of a frame's values, belong to a thread for the whole sequence, and
// L + 1 barriers a step publish what each phase made.
//
// FLOP a step, either direction: 8 B H (D + H) + 16 B H^2 for each further layer + 2 B D H. Floor for small batches: all
// weights once a step from where they lie, (4 H (D + H) + 8 H^2 (L - 1) + D H) elements.
#include <new>

#include "instruction_set.h"
#include "lstm_backward.h"
#include "lstm_forward.h"

namespace lstmvid {
namespace LSTMVID_ISA {
namespace {

template <class Parameters>
int64_t flops_a_step(const Parameters& p) {
  const int64_t batch = p.layers->batch, hidden = p.layers->hidden;
  return 8 * batch * hidden * (p.frame + hidden) + 16 * batch * hidden * hidden * (p.num_layers - 1) +
         2 * batch * p.frame * hidden;
}

template <class Vector>
inline Vector linked(Link link, Vector z) {
  if (link == Link::kSigmoid) return VectorMath::sigmoid(z);
  return link == Link::kRectifier ? (z > 0 ? z : Vector{}) : z;
}

// Of the link's output by its input.
template <class Vector>
inline Vector link_slope(Link link, Vector z) {
  if (link == Link::kSigmoid) {
    const Vector y = VectorMath::sigmoid(z);
    return y * (1 - y);
  }
  return link == Link::kRectifier ? (z > 0 ? Vector{} + 1 : Vector{}) : Vector{} + 1;
}

// A frame's values in blocks of 4V, and rows of them as an operand.
template <class Stored>
struct Frames {
  using Scalar = Compute<Stored>;
  static constexpr int kV = kLanes<Scalar>;

  int64_t width;
  int64_t blocks = ceil_div(width, 4 * kV);
  int64_t stride = padded<Operand<Stored>>(width);

  int64_t operands(int64_t batch) const { return (batch + Product<Stored>::kRowsBeyond) * stride; }
  int lanes(int64_t column) const {
    const int64_t left = width - column;
    return static_cast<int>(left < 0 ? 0 : (left < kV ? left : kV));
  }
  void clear(Operand<Stored>* rows, int64_t count) const {
    clear_padding(rows, count, ceil_div(width, kV) * kV, stride);
  }
  // call(column, lanes, j) for each register's width of a block.
  template <class Call>
  void each(int64_t block, const Call& call) const {
    for (int j = 0; j < 4; ++j) {
      const int64_t column = (block * 4 + j) * kV;
      if (const int count = lanes(column); count > 0) call(column, count, j);
    }
  }
  // A block's panel of a product over `depth`, whose weight's element (k, column) is weight[k * k_stride + column * v_stride].
  void pack(const void* weight, int64_t k_stride, int64_t v_stride, int64_t depth, int64_t block,
            Operand<Stored>* panels) const {
    const Stored* from[4] = {};
    int counts[4] = {};
    each(block, [&](int64_t column, int count, int j) {
      from[j] = static_cast<const Stored*>(weight) + column * v_stride;
      counts[j] = count;
    });
    pack_panel<Product<Stored>>(from, counts, k_stride, v_stride, depth,
                                panels + block * panel_size<Product<Stored>>(depth));
  }
};

// Takes a workspace apart; with a null one it only counts. (Standard containers are functions that the linker could
// share with code for other processors: none here.)
struct Memory {
  char* base;
  int64_t bytes = 0;
  template <class T>
  T* take(int64_t count) {
    T* const here = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += aligned(count * static_cast<int64_t>(sizeof(T)));
    return here;
  }
};

// Makes room for the layers' kernels, each with a workspace of its own, and for a packed weight of each besides W_hh, over
// depth_of(layer).
template <class Product, class Kernel, class Parameters, class Operand, class Depth>
void place_layers(Memory& memory, const Parameters* given, int64_t count, const Depth& depth_of, Kernel*& kernels,
                  Operand**& packed) {
  Parameters* const own = memory.take<Parameters>(count);
  kernels = memory.take<Kernel>(count);
  packed = memory.take<Operand*>(count);
  for (int64_t l = 0; l < count; ++l) {
    const Kernel sizes{given[l]};
    char* const workspace = memory.take<char>(sizes.bytes());
    Operand* const panels = memory.take<Operand>(sizes.blocks * panel_size<Product>(depth_of(l)));
    if (memory.base == nullptr) continue;
    own[l] = given[l];
    own[l].workspace = workspace;
    new (&kernels[l]) Kernel{own[l]};
    packed[l] = panels;
  }
}

template <class Stored>
struct LoopForward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  using Rows = Factor<Operand<Stored>>;
  static constexpr int kV = kLanes<Scalar>;

  const ClosedLoopFwd& p;
  const Frames<Stored> frames{p.frame};
  const int64_t batch = p.layers->batch, hidden = p.layers->hidden, steps = p.layers->steps;
  const int64_t unit_blocks = Forward<Stored>{p.layers[0]}.blocks;
  Forward<Stored>* layers;
  Operand<Stored>** packed_ih;
  Operand<Stored>* packed_head;
  Operand<Stored>* x;  // [B, D], rows padded: what the next step sees
  int64_t bytes;

  explicit LoopForward(const ClosedLoopFwd& call) : p(call) {
    Memory memory{static_cast<char*>(p.workspace)};
    place_layers<Product<Stored>>(
        memory, p.layers, p.num_layers, [this](int64_t l) { return depth_of(l); }, layers, packed_ih);
    packed_head = memory.take<Operand<Stored>>(frames.blocks * panel_size<Product<Stored>>(hidden));
    x = memory.take<Operand<Stored>>(frames.operands(batch));
    bytes = memory.bytes;
  }

  int64_t depth_of(int64_t layer) const { return layer == 0 ? p.frame : hidden; }
  int64_t blocks() const { return unit_blocks > frames.blocks ? unit_blocks : frames.blocks; }

  Rows input(int64_t layer, int64_t step) const {
    const int64_t depth = depth_of(layer), panel = panel_size<Product<Stored>>(depth);
    if (layer > 0) {
      const Forward<Stored>& below = layers[layer - 1];
      return {below.slot(step + 1), below.stride, packed_ih[layer], panel, depth};
    }
    if (step == 0 && p.first == nullptr) return {};
    return {x, frames.stride, packed_ih[0], panel, depth};
  }

  void prepare(int64_t block) const {
    if (block == 0) frames.clear(x, batch);
    frames.pack(p.head_weight, 1, hidden, hidden, block, packed_head);
    if (p.first == nullptr) return;
    frames.each(block, [&](int64_t column, int count, int) {
      for (int64_t b = 0; b < batch; ++b) {
        store(x + b * frames.stride + column, load(static_cast<const Stored*>(p.first) + b * p.frame + column, count),
              kV);
      }
    });
  }

  // One row of one register's width: z from `sum`, and the next step's frame unless this is the last one.
  void frame(int64_t step, int64_t b, int64_t column, int count, Vector bias, const Scalar* sum) const {
    const int64_t row = step * batch + b;
    Stored* z = static_cast<Stored*>(p.z) + row * p.frame + column;
    store(z, load(sum, kV) + bias, count);
    if (step == steps - 1) return;
    Stored link[kV];  // rounded to the operand's dtype like any frame
    if (p.own == nullptr || p.own[row]) {
      store(link, linked(p.link, load(z, count)), kV);
    } else {
      store(link, load(static_cast<const Stored*>(p.truth) + row * p.frame + column, count), kV);
    }
    store(x + b * frames.stride + column, load(link, count), kV);
  }

  void head(int64_t step, Block block) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    const Forward<Stored>& top = layers[p.num_layers - 1];
    const Rows product = {top.slot(step + 1), top.stride, packed_head, panel_size<Product<Stored>>(hidden), hidden};
    for (int64_t b = 0; b < batch; b += kPanelRows) {
      const int64_t rows = batch - b < kPanelRows ? batch - b : kPanelRows;
      multiply_factors<Stored>(product, {}, block, b, rows, sums);
      frames.each(block.at, [&](int64_t column, int count, int j) {
        const Vector bias = load(static_cast<const Stored*>(p.head_bias) + column, count);
        for (int64_t r = 0; r < rows; ++r) {
          frame(step, b + r, column, count, bias, sums + r * kAccWidth<Scalar> + j * kV);
        }
      });
    }
  }

  void body(ThreadTeam& team, int rank) const {
    const int64_t count = p.num_layers;
    const Share units(unit_blocks, rank, team.size()), values(frames.blocks, rank, team.size());
    for (int64_t l = 0; l < count; ++l) {
      units.each([&](int64_t block) {
        layers[l].prepare(block);
        layers[l].pack_rows(p.weight_ih[l], depth_of(l), block, packed_ih[l]);
      });
    }
    values.each([&](int64_t block) { prepare(block); });
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t l = 0; l < count; ++l) {
        team.barrier();
        const Rows seen = input(l, step);
        units.each_of_step(step, [&](Block block) { layers[l].step(step, block, seen); });
      }
      team.barrier();
      values.each_of_step(step, [&](Block block) { head(step, block); });
    }
    for (int64_t l = 0; l < count; ++l) {
      units.each([&](int64_t block) { layers[l].finish(block); });
    }
  }
};

template <class Stored>
struct LoopBackward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  using Rows = Factor<Operand<Stored>>;
  static constexpr int kV = kLanes<Scalar>;

  const ClosedLoopBwd& p;
  const Frames<Stored> frames{p.frame};
  const int64_t batch = p.layers->batch, hidden = p.layers->hidden, steps = p.layers->steps;
  const int64_t unit_blocks = Backward<Stored>{p.layers[0]}.blocks;
  Backward<Stored>* layers;
  Operand<Stored>** packed_above;  // by which each layer's dh comes from above: W_ih there, at last W_out
  Operand<Stored>* packed_frame;   // the bottom layer's W_ih, for the frame's gradient
  Operand<Stored>* dz;             // [B, D], rows padded: of this step's z
  int64_t bytes;

  explicit LoopBackward(const ClosedLoopBwd& call) : p(call) {
    Memory memory{static_cast<char*>(p.workspace)};
    place_layers<Product<Stored>>(
        memory, p.layers, p.num_layers, [this](int64_t l) { return depth_above(l); }, layers, packed_above);
    packed_frame = memory.take<Operand<Stored>>(frames.blocks * panel_size<Product<Stored>>(4 * hidden));
    dz = memory.take<Operand<Stored>>(frames.operands(batch));
    bytes = memory.bytes;
  }

  int64_t blocks() const { return unit_blocks > frames.blocks ? unit_blocks : frames.blocks; }
  int64_t depth_above(int64_t layer) const { return layer == p.num_layers - 1 ? p.frame : 4 * hidden; }
  const void* weight_above(int64_t layer) const {
    return layer == p.num_layers - 1 ? p.head_weight : p.weight_ih[layer + 1];
  }

  Rows above(int64_t layer, int64_t step) const {
    const int64_t depth = depth_above(layer), panel = panel_size<Product<Stored>>(depth);
    if (layer == p.num_layers - 1) return {dz, frames.stride, packed_above[layer], panel, depth};
    const Backward<Stored>& upper = layers[layer + 1];
    return {upper.slot(step), upper.stride, packed_above[layer], panel, depth};
  }

  // dz of a step's frame: the given one, and what the next step's bottom layer makes of a frame that was its own.
  void frame(int64_t step, Block block) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    const bool is_seen = step < steps - 1;
    const Backward<Stored>& bottom = layers[0];
    const Rows product = {is_seen ? bottom.slot(step + 1) : nullptr, bottom.stride, packed_frame,
                          panel_size<Product<Stored>>(4 * hidden), 4 * hidden};
    for (int64_t b = 0; b < batch; b += kPanelRows) {
      const int64_t rows = batch - b < kPanelRows ? batch - b : kPanelRows;
      multiply_factors<Stored>(product, {}, block, b, rows, sums);
      frames.each(block.at, [&](int64_t column, int count, int j) {
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = step * batch + b + r, at = row * p.frame + column;
          Vector grad = p.grad_z != nullptr ? load(static_cast<const Stored*>(p.grad_z) + at, count) : Vector{};
          if (is_seen && (p.own == nullptr || p.own[row])) {
            grad += load(sums + r * kAccWidth<Scalar> + j * kV, kV) *
                    link_slope(p.link, load(static_cast<const Stored*>(p.z) + at, count));
          }
          Stored* to = static_cast<Stored*>(p.grad_frames) + at;
          store(to, grad, count);
          store(dz + (b + r) * frames.stride + column, load(to, count), kV);
        }
      });
    }
  }

  void body(ThreadTeam& team, int rank) const {
    const int64_t count = p.num_layers;
    const Share units(unit_blocks, rank, team.size()), values(frames.blocks, rank, team.size());
    for (int64_t l = 0; l < count; ++l) {
      units.each([&](int64_t block) {
        layers[l].prepare(block);
        layers[l].pack_columns(weight_above(l), depth_above(l), block, packed_above[l]);
      });
    }
    values.each([&](int64_t block) {
      if (block == 0) frames.clear(dz, batch);
      frames.pack(p.weight_ih[0], p.frame, 1, 4 * hidden, block, packed_frame);
    });
    for (int64_t step = steps - 1; step >= 0; --step) {
      team.barrier();
      values.each_of_step(step, [&](Block block) { frame(step, block); });
      for (int64_t l = count - 1; l >= 0; --l) {
        team.barrier();
        const Rows from = above(l, step);
        units.each_of_step(step, [&](Block block) { layers[l].step(step, block, from); });
      }
    }
    team.barrier();
    for (int64_t l = 0; l < count; ++l) {
      units.each([&](int64_t block) {
        layers[l].step(-1, {block, block});
        layers[l].finish(block);
      });
    }
  }
};

template <template <class> class Kernel, class Parameters>
void run(const Parameters& p) {
  with_stored(p.layers->dtype, [&](auto stored) {
    const Kernel<decltype(stored)> kernel(p);
    ThreadTeam::run(team_size(p.layers->threads, flops_a_step(p), kernel.blocks()), &work<Kernel<decltype(stored)>>,
                    &kernel);
  });
}

template <template <class> class Kernel, class Parameters>
int64_t workspace(const Parameters& p) {
  int64_t bytes = 0;
  with_stored(p.layers->dtype, [&](auto stored) { bytes = Kernel<decltype(stored)>(p).bytes; });
  return bytes;
}

}  // namespace

extern const ClosedLoopKernels kClosedLoop = {&run<LoopForward, ClosedLoopFwd>, &run<LoopBackward, ClosedLoopBwd>,
                                              &workspace<LoopForward, ClosedLoopFwd>,
                                              &workspace<LoopBackward, ClosedLoopBwd>};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
