// Dense products around a recurrence, by the micro-kernel of its own products (panel.h): out [M, N] (+)= left [M, K] right [K, N].
//
// `left` is read by rows along k, `right` in panels of 4V columns, which are packed. Each thread has its own part of
// out: for kDepthBytes of k it packs as many panels as stay in its second-level cache, and passes over its rows,
// kPanelRows at a time, where each tile of sums stays in registers for all that depth. Rows that don't run along k are
// turned once, by all threads; the product of two such factors is taken the other way around, right^T left^T, where
// out is turned as it is stored: of a gradient of weights, sum over t of dz_t x_t^T, it is x that is turned, not dz.
//
// Each element is a chain of multiply-adds for each kDepthBytes of k, and these sums are added in order: the same bits for
// any number of threads. FLOP: 2 M N K. Floor beside them: each factor once from memory, left once for every
// kPackedBytes of right from where it lies, and sums in full precision twice for every kDepthBytes of k.
#include "lstmvid/matrix_product.h"

#include "instruction_set.h"
#include "recurrence.h"

namespace lstmvid {
namespace LSTMVID_ISA {
namespace {

constexpr int64_t kPackedBytes = 512 << 10;
constexpr int64_t kDepthBytes = 2048;

// The product as it is computed: `left` runs along k, or has to be turned.
inline MatrixProduct arranged(const MatrixProduct& p) {
  if (p.left.column_stride == 1) return p;
  MatrixProduct other = p;
  other.rows = p.columns;
  other.columns = p.rows;
  other.left = p.right.turned();
  other.right = p.left.turned();
  other.out = p.out.turned();
  return other;
}

// A thread's part of out: some panels and some rows.
struct Part {
  int64_t first_panel, end_panel, first_row, end_row;
};

// The largest part is as small as it can be; else rather by panels than by rows, for which panels are packed again.
inline Part part_of(int64_t panels, int64_t rows, int rank, int size) {
  int best = 1;
  int64_t least = -1;
  for (int across = 1; across <= size; ++across) {
    const int64_t most = ceil_div(panels, across) * ceil_div(ceil_div(rows, kTileRows), size / across);
    if (least < 0 || most <= least) {
      best = across;
      least = most;
    }
  }
  const int along = size / best, column = rank % best, row = rank / best;
  if (row >= along) return {};
  return {first_of(panels, column, best), first_of(panels, column + 1, best), first_of(rows, row, along),
          first_of(rows, row + 1, along)};
}

template <class Stored>
struct Dense {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  using Packed = Operand<Stored>;
  static constexpr int kV = kLanes<Scalar>;
  static constexpr int64_t kColumns = kAccWidth<Scalar>;
  static constexpr int64_t kDepth = kDepthBytes / sizeof(Packed);

  const MatrixProduct p;
  const int64_t depth = p.depth < kDepth ? p.depth : kDepth;
  const int64_t panels = ceil_div(p.columns, kColumns), panel = panel_size<Product<Stored>>(depth);
  const int64_t most = kPackedBytes / (panel * static_cast<int64_t>(sizeof(Packed))), chunk = most < 1 ? 1 : most;
  // Rows are read in whole packs, by a matrix unit some rows beyond the last as well.
  const bool copies = !std::is_same_v<Stored, Packed> || Product<Stored>::kRowsBeyond > 0 ||
                      packs_of<Product<Stored>>(p.depth) * Product<Stored>::kPack != p.depth
                      || p.left.column_stride != 1 || collides();
  const int64_t stride = copies ? padded<Packed>(p.depth) : p.left.row_stride;
  const int64_t copied_bytes = copies ? aligned((p.rows + Product<Stored>::kRowsBeyond) * stride * sizeof(Packed)) : 0;
  Packed* const memory = static_cast<Packed*>(p.workspace);
  const Packed* const left = copies ? memory : static_cast<const Packed*>(p.left.data);

  // Whether rows lie so that they'd share few sets of the first-level cache, and columns are enough to pay for a copy.
  bool collides() const { return p.left.row_stride * sizeof(Stored) % 2048 == 0 && p.columns >= 512; }
  // Each thread's: packed panels, and the sums of its rows if they take more than one depth.
  const int64_t packed_bytes = aligned(chunk * panel * sizeof(Packed));
  const int64_t sum_rows = p.depth > depth ? p.rows + Product<Stored>::kRowsBeyond : 0;
  const int64_t own_bytes = packed_bytes + chunk * sum_rows * kColumns * sizeof(Scalar);

  int64_t bytes() const { return copied_bytes + p.threads * own_bytes; }

  // Rows [first, first + kV) of left along k.
  void copy_rows(int64_t first) const {
    const Stored* const from = static_cast<const Stored*>(p.left.data) + first * p.left.row_stride;
    Packed* const to = memory + first * stride;
    const int count = static_cast<int>(p.rows - first < kV ? p.rows - first : kV);
    for (int64_t k = 0; k < p.depth; k += kV) {
      const int some = static_cast<int>(p.depth - k < kV ? p.depth - k : kV);
      if (p.left.column_stride == 1) {
        for (int i = 0; i < count; ++i) store(to + i * stride + k, load(from + i * p.left.row_stride + k, some), kV);
        continue;
      }
      Vector block[kV];
      for (int i = 0; i < kV; ++i)
        block[i] = load(from + (k + (i < some ? i : 0)) * p.left.column_stride, i < some ? count : 0);
      turn<1>(block);
      for (int i = 0; i < count; ++i) store(to + i * stride + k, block[i], kV);
    }
    clear_padding(to, count, ceil_div(p.depth, kV) * kV, stride);
  }

  void pack(int64_t block, int64_t k, int64_t count, Packed* to) const {
    const Stored* from[4];
    int lanes[4];
    for (int j = 0; j < 4; ++j) {
      const int64_t column = block * kColumns + j * kV, rest = p.columns - column;
      lanes[j] = static_cast<int>(rest < 0 ? 0 : (rest < kV ? rest : kV));
      from[j] = static_cast<const Stored*>(p.right.data) + column * p.right.column_stride + k * p.right.row_stride;
    }
    pack_panel<Product<Stored>>(from, lanes, p.right.row_stride, p.right.column_stride, count, to);
  }

  // `sums` [rows, 4V] into out, from row `row` and column `column` on.
  void put(int64_t row, int64_t rows, int64_t column, const Scalar* sums) const {
    const auto place = [&](Stored* to, const Vector& value, int count) {
      store(to, p.add ? value + load(to, count) : value, count);
    };
    for (int j = 0; j < 4 && column < p.columns; ++j, column += kV, sums += kV) {
      const int columns = static_cast<int>(p.columns - column < kV ? p.columns - column : kV);
      Stored* const out = static_cast<Stored*>(p.out.data) + row * p.out.row_stride + column * p.out.column_stride;
      if (p.out.column_stride == 1) {
        for (int64_t r = 0; r < rows; ++r) place(out + r * p.out.row_stride, load(sums + r * kColumns, kV), columns);
        continue;
      }
      for (int64_t r = 0; r < rows; r += kV) {
        const int some = static_cast<int>(rows - r < kV ? rows - r : kV);
        Vector block[kV];
        for (int i = 0; i < kV; ++i) block[i] = i < some ? load(sums + (r + i) * kColumns, kV) : Vector{};
        turn<1>(block);
        for (int i = 0; i < columns; ++i) place(out + r + i * p.out.column_stride, block[i], some);
      }
    }
  }

  void multiply(const Part& part, int64_t first, int64_t end, int64_t k, char* own) const {
    alignas(64) Scalar few[kPanelRows * kColumns];
    Packed* const packed = reinterpret_cast<Packed*>(own);
    const int64_t count = p.depth - k < depth ? p.depth - k : depth;
    for (int64_t block = first; block < end; ++block) pack(block, k, count, packed + (block - first) * panel);
    for (int64_t row = part.first_row; row < part.end_row; row += kPanelRows) {
      const int64_t rows = part.end_row - row < kPanelRows ? part.end_row - row : kPanelRows;
      for (int64_t block = first; block < end; ++block) {
        const int64_t at = (block - first) * sum_rows + row - part.first_row;
        Scalar* const sums = sum_rows > 0 ? reinterpret_cast<Scalar*>(own + packed_bytes) + at * kColumns : few;
        multiply_panel<Product<Stored>, Packed, Scalar>(left + row * stride + k, stride, rows,
                                                        packed + (block - first) * panel, count, sums, k > 0, nullptr);
        if (k + count == p.depth) put(row, rows, block * kColumns, sums);
      }
    }
  }

  void body(ThreadTeam& team, int rank) const {
    if (copies) {
      Share(ceil_div(p.rows, kV), rank, team.size()).each([&](int64_t block) { copy_rows(block * kV); });
      team.barrier();
    }
    const Part part = part_of(panels, p.rows, rank, team.size());
    char* const own = static_cast<char*>(p.workspace) + copied_bytes + rank * own_bytes;
    for (int64_t first = part.first_panel; first < part.end_panel; first += chunk) {
      const int64_t end = part.end_panel - first < chunk ? part.end_panel : first + chunk;
      for (int64_t k = 0; k < p.depth; k += depth) multiply(part, first, end, k, own);
    }
  }
};

void run(const MatrixProduct& p) {
  with_stored(p.dtype, [&](auto stored) {
    using Type = Dense<decltype(stored)>;
    const Type kernel{arranged(p)};
    const int64_t tiles = kernel.panels * ceil_div(kernel.p.rows, kTileRows);
    ThreadTeam::run(team_size(p.threads, 2 * p.rows * p.depth * p.columns, tiles), &work<Type>, &kernel);
  });
}

int64_t workspace(const MatrixProduct& p) {
  int64_t bytes = 0;
  with_stored(p.dtype, [&](auto stored) { bytes = Dense<decltype(stored)>{arranged(p)}.bytes(); });
  return bytes;
}

}  // namespace

extern const MatrixProductKernels kMatrixProduct = {&run, &workspace};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
