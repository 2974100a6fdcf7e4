"""What a launch has to know of its tensors, into device memory and out of it: a record.

Of the recurrent kernels a group's, addresses and two numbers; of a closed loop's products addresses alone. Sequences
are those of a window of n steps.
"""

import triton
import triton.language as tl

# Places in a record: the arguments of what writes it, in their order. A group's of the recurrence,
WEIGHT_HH, PROJECTION, BIAS, PEEPHOLE, LENGTHS, REVERSE, FIRST_TIME = map(tl.constexpr, range(7))
H_FROM, H_TO, C, OUTPUT, CELLS, GATES, C_START = map(tl.constexpr, range(7, 14))
GRAD_OUTPUT, GRAD_CELLS, GRAD_GATES, GRAD_H, GRAD_C, RECORD = map(tl.constexpr, range(14, 20))

# and that of a product inside a closed loop; a row of a loop's table has room for either, and 16 bytes divide it.
LOOP_SOURCE, LOOP_WEIGHT, LOOP_BIAS, LOOP_TARGET, LOOP_FRAME = map(tl.constexpr, range(5))
LOOP_TRUTH, LOOP_OWN, LOOP_Z, LOOP_GRAD_Z = map(tl.constexpr, range(5, 9))
LOOP_ROW = tl.constexpr(32)


@triton.jit
def pointer_of(record, FIELD: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at a place of a record, of values of DTYPE."""
    pointer = tl.load(record + FIELD).to(tl.pointer_type(DTYPE))
    if ALIGNED:  # else the compiler, which sees no argument to tell it, would load element by element
        pointer = tl.multiple_of(pointer, 16)
    return pointer


# No variant for an address that 16 divides: there would be one for each combination of them.
@triton.jit(do_not_specialize=list(range(1, 21)))
def lstm_record_kernel(
    table_ptr,  # [G, number of what follows `group`] int64
    group,
    weight_hh: tl.int64,  # [4H, H]
    projection: tl.int64,  # [n, B, 4H]: W_ih x + b
    bias: tl.int64,  # [4H], where there is no projection
    peephole: tl.int64,  # [3H]: i, f, o
    lengths: tl.int64,  # [B] int64
    reverse: tl.int64,  # 1 where time runs backwards
    first_time: tl.int64,  # of the window in the sequence, to compare with lengths
    h_from: tl.int64,  # [B, H]: before the first step, and after each second one
    h_to: tl.int64,  # [B, H]: after the others
    c: tl.int64,  # [B, H]: before the window, then after it
    output: tl.int64,  # [n, B, H]
    cells: tl.int64,  # [n, B, H]
    gates: tl.int64,  # [n, B, 4H] after their activations; may be the same memory as the projection
    c_start: tl.int64,  # [B, H]: the cells that the window starts from
    grad_output: tl.int64,  # [n, B, H]
    grad_cells: tl.int64,  # [n, B, H]
    grad_gates: tl.int64,  # [n, B, 4H]
    grad_h: tl.int64,  # [B, H]: with respect to the state after the window, then to that before it
    grad_c: tl.int64,  # [B, H]: likewise
):
    """Write a group's record. As arguments of a launch the numbers are copied with it, into a CUDA graph as well.

    Grid of one.
    """
    states = (weight_hh, projection, bias, peephole, lengths, reverse, first_time, h_from, h_to, c, output)
    saved = (cells, gates, c_start)
    gradients = (grad_output, grad_cells, grad_gates, grad_h, grad_c)
    record = states + saved + gradients
    for index in tl.static_range(len(record)):
        tl.store(table_ptr + group * len(record) + index, record[index])


@triton.jit(do_not_specialize=list(range(1, 10)))
def loop_record_kernel(
    record_ptr,  # [number of what follows] int64
    source: tl.int64,  # [n, B, K], or [B, K] where it is the frame seen
    weight: tl.int64,  # [N, K], backward [K, N]
    bias: tl.int64,  # [N]
    target: tl.int64,  # [n, B, N]
    frame: tl.int64,  # [B, D]: what the next step sees
    truth: tl.int64,  # [n, B, D]
    own: tl.int64,  # [n, B], a byte each
    z: tl.int64,  # [n, B, D]
    grad_z: tl.int64,  # [n, B, D]
):
    """Write the record of a product inside a closed loop. Grid of one."""
    record = (source, weight, bias, target, frame, truth, own, z, grad_z)
    for index in tl.static_range(len(record)):
        tl.store(record_ptr + index, record[index])
