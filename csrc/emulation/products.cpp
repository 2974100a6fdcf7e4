// Products of warp groups. Each warp's rows of one are a matter of their own: done when the schedule says so, at the latest
// in that warp's wait, with what shared memory and A's registers hold at that moment.
#include "cuda/primitives/warp_group.h"

#include <algorithm>
#include <cstring>

#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {
namespace {

constexpr uint8_t kPoison = 0xff;   // every byte of D while it is the products'; NaN
constexpr uint32_t kWindow = 1024;  // of shared addresses, before the block's own: as on hardware

WarpProducts& products_of(Warp& warp) {
  if (warp.products == nullptr) {
    warp.products = std::make_unique<WarpProducts>();
    warp.products->flow = create_flow();
  }
  return *warp.products;
}

Warp* group_of(const Warp& warp) {
  return &warp.block->warps[static_cast<size_t>(warp.index / kGroupWarps * kGroupWarps)];
}

// A matrix in shared memory, as its descriptor's bits say: rows of 32 bytes of K.
struct Matrix {
  uint8_t* start;
  int64_t along_k, along_rows;  // from a core matrix to the next, bytes

  uint8_t* piece(int row, int chunk) const {
    return start + chunk * along_k + row / 8 * along_rows + row % 8 * kPieceBytes;
  }
};

Matrix decoded(const Block& block, uint64_t descriptor, int rows, const char* which) {
  const auto field = [descriptor](int bit) { return static_cast<int64_t>(descriptor >> bit & 0x3fff) << 4; };
  constexpr uint64_t kFields = uint64_t{0x3fff} | uint64_t{0x3fff} << 16 | uint64_t{0x3fff} << 32;
  if ((descriptor & ~kFields) != 0) fail("multiply_group(): the descriptor of %s has bits of other layouts", which);
  const Matrix matrix{block.shared + field(0) - kWindow, field(16), field(32)};
  const uint8_t* last = matrix.piece(rows - 1, 1);
  if (field(0) < kWindow || !is_shared(block, matrix.start, 16) || !is_shared(block, last, kPieceBytes)) {
    fail("multiply_group(): the descriptor of %s leaves the block's shared memory", which);
  }
  return matrix;
}

// One row's 16 bytes, which a copy must have brought, or a thread stored and fenced.
const uint8_t* checked_piece(const Block& block, const Matrix& matrix, int row, int chunk) {
  const uint8_t* from = matrix.piece(row, chunk);
  const OperandPiece& piece = block.pieces[static_cast<size_t>((from - block.shared) / kPieceBytes)];
  report_read(from, kPieceBytes);
  if (piece.stored == OperandPiece::kCopied) return from;
  if (piece.stored == OperandPiece::kUnknown) {
    fail("multiply_group() has read %s, which neither a copy that has landed nor store_operand() has written",
         where_in_shared(block, from).text);
  }
  if (piece.stored > block.warps[static_cast<size_t>(piece.thread / 32)].lanes[piece.thread % 32]->operands_fenced_at) {
    fail("multiply_group() has read %s, written by store_operand() of thread %d without a fence_operands() after it",
         where_in_shared(block, from).text, piece.thread);
  }
  return from;
}

float unpacked(Operands operands, uint32_t word, int half) {
  if (operands == Operands::kBFloat16) return float_of(half == 0 ? word << 16 : word & 0xffff0000u);
  return float_of_half(static_cast<uint16_t>(word >> 16 * half));
}

void read_row(const Block& block, const IssuedProduct& product, const Matrix& matrix, int row, float (&to)[16]) {
  for (int chunk = 0; chunk < 2; ++chunk) {
    uint32_t words[4];
    copy_quietly(words, checked_piece(block, matrix, row, chunk), sizeof(words));
    for (int i = 0; i < 8; ++i) to[8 * chunk + i] = unpacked(product.operands, words[i / 2], i % 2);
  }
}

// The warp's 16 rows of A, and all of B.
struct Tile {
  float a[16][16], b[16][WarpProducts::kMostColumns];
};

void read_tile(Warp& warp, const IssuedProduct& product, Tile& tile) {
  const Block& block = *warp.block;
  const int columns = 8 * warp.products->tile_blocks;
  const Matrix b = decoded(block, product.b, columns, "B");
  for (int n = 0; n < columns; ++n) {
    float column[16];
    read_row(block, product, b, n, column);
    for (int k = 0; k < 16; ++k) tile.b[k][n] = column[k];
  }
  if (product.a_in_registers) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        for (int i = 0; i < 2; ++i) {
          tile.a[lane / 4 + 8 * (r & 1)][2 * (lane % 4) + 8 * (r >> 1) + i] =
              unpacked(product.operands, product.a_registers[lane][r], i);
        }
      }
    }
  } else {
    const Matrix a = decoded(block, product.a, 16 * kGroupWarps, "A");
    for (int m = 0; m < 16; ++m) read_row(block, product, a, 16 * (warp.index % kGroupWarps) + m, tile.a[m]);
  }
}

// The oldest of a warp's.
void perform(Warp& warp) {
  WarpProducts& products = *warp.products;
  IssuedProduct& product = products.of(products.done);
  Fiber* self = running;
  running = warp.lanes[0];  // for reports
  switch_flow(products.flow);
  acquire(&product.order);
  Tile tile;
  read_tile(warp, product, tile);
  const int columns = 8 * products.tile_blocks;
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < columns; ++n) products.sums[m][n] += tile.a[m][k] * tile.b[k][n];
    }
  }
  ++products.done;
  ++statistics().products;
  release(&products.order);
  release_to_host();
  running = self;
  switch_flow(self->context.flow);
}

void unlist_if_idle(Warp& warp) {
  if (warp.products->done < warp.products->issued) return;
  auto& busy = machine.multiplying;
  *std::find(busy.begin(), busy.end(), &warp) = busy.back();
  busy.pop_back();
}

bool is_poison(const float* d, int tile_blocks) {
  return std::all_of(d, d + 4 * tile_blocks, [](float x) { return bits_of(x) == 0x01010101u * kPoison; });
}

// D goes from the lanes' registers to the products, or is theirs already.
void take_registers(Warp& warp, int tile_blocks) {
  WarpProducts& products = *warp.products;
  if (products.is_running && tile_blocks != products.tile_blocks) {
    fail("multiply_group() of another width while products are running");
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<float*>(warp.operands[lane].out);
    if (products.is_running) {
      if (d != products.d[lane]) fail("multiply_group() into another D while products are running");
      if (!is_poison(d, tile_blocks)) fail("D of lane %d was written to while products were running", lane);
      continue;
    }
    products.d[lane] = d;
    for (int i = 0; i < 4 * tile_blocks; ++i) {
      products.sums[lane / 4 + 8 * (i >> 1 & 1)][i / 4 * 8 + 2 * (lane % 4) + (i & 1)] = d[i];
    }
    fill_quietly(reinterpret_cast<uint8_t*>(d), kPoison, 16 * static_cast<size_t>(tile_blocks));
  }
  products.is_running = true;
  products.tile_blocks = tile_blocks;
}

// Whether the other warps of the group issue the same, number by number.
void compare_with_group(Warp& warp, const IssuedProduct& product) {
  const uint64_t number = warp.products->issued;
  for (int i = 0; i < kGroupWarps; ++i) {
    const Warp& other = group_of(warp)[i];
    if (&other == &warp || other.products == nullptr || other.products->issued <= number) continue;
    if (other.products->issued - number > WarpProducts::kMost) {
      fail("warp %d is more than %d products behind warp %d of its group", warp.index, WarpProducts::kMost,
           other.index);
    }
    const IssuedProduct& its = other.products->of(number);
    if (its.a_in_registers != product.a_in_registers || its.a != product.a || its.b != product.b ||
        its.operands != product.operands || its.tile_blocks != product.tile_blocks) {
      fail("multiply_group(): warp %d of the group has issued another product as its number %llu", other.index,
           static_cast<unsigned long long>(number));
    }
  }
}

void issue(Warp& warp) {
  WarpProducts& products = *warp.products;
  const IssuedProduct& product = products.asked[0];
  if (warp.index / kGroupWarps * kGroupWarps + kGroupWarps > static_cast<int>(warp.block->warps.size())) {
    fail("multiply_group() of a warp that isn't one of four");
  }
  if (!products.is_fenced) fail("multiply_group() without a fence_products() since D could be touched");
  if (products.issued - products.done == WarpProducts::kMost) perform(warp);
  IssuedProduct& issued = products.of(products.issued);
  issued.operands = product.operands;
  issued.tile_blocks = product.tile_blocks;
  issued.a_in_registers = product.a_in_registers;
  issued.a = product.a;
  issued.b = product.b;
  for (int lane = 0; lane < 32; ++lane) {
    const IssuedProduct& of_lane = products.asked[lane];
    if (of_lane.a != product.a || of_lane.b != product.b || of_lane.a_in_registers != product.a_in_registers) {
      fail("multiply_group(): lanes with different descriptors");
    }
    issued.a_registers[lane] = static_cast<const uint32_t*>(warp.operands[lane].in);
  }
  decoded(*warp.block, product.b, 8 * product.tile_blocks, "B");
  if (!product.a_in_registers) decoded(*warp.block, product.a, 16 * kGroupWarps, "A");
  compare_with_group(warp, product);
  take_registers(warp, product.tile_blocks);
  if (products.done == products.issued) machine.multiplying.push_back(&warp);
  ++products.issued;
  ++machine.progress;
  for (int i = 0; i < kGroupWarps; ++i) {
    Warp& other = group_of(warp)[i];
    if (other.at_products != 0) make_ready(&other, other.at_products);
    other.at_products = 0;
  }
}

}  // namespace

uint32_t shared_address(const void* shared) {
  const Block& block = *running->warp->block;
  if (!is_shared(block, shared, 0)) fail("an address outside of the block's shared memory");
  return kWindow + static_cast<uint32_t>(static_cast<const uint8_t*>(shared) - block.shared);
}

void before_operand_store(const void* shared) {
  Block& block = *running->warp->block;
  if (reinterpret_cast<uintptr_t>(shared) % kPieceBytes != 0 || !is_shared(block, shared, kPieceBytes)) {
    fail("store_operand() to an address that isn't aligned to 16 bytes or not in the block's shared memory");
  }
  const auto at = static_cast<size_t>(static_cast<const uint8_t*>(shared) - block.shared) / kPieceBytes;
  block.pieces[at] = {++machine.operand_stores, running->thread};
}

void fence_operands() { running->operands_fenced_at = machine.operand_stores; }

void set_pieces(Block& block, const void* shared, size_t bytes, uint64_t stored) {
  const auto first = static_cast<size_t>(static_cast<const uint8_t*>(shared) - block.shared) / kPieceBytes;
  for (size_t i = 0; i < bytes / kPieceBytes; ++i) block.pieces[first + i] = {stored, 0};
}

void fence_products() {
  meet(Meeting::kFenceProducts, [](Warp& warp) { products_of(warp).is_fenced = true; });
}

void commit_products() {
  meet(Meeting::kCommitProducts, [](Warp& warp) {
    WarpProducts& products = products_of(warp);
    products.batch_end[++products.batches % WarpProducts::kMostBatches] = products.issued;
  });
}

void multiply_group(Operands operands, float* d, int tile_blocks, const uint32_t* a_registers, uint64_t a, uint64_t b) {
  if (!kHasWarpGroups) fail("multiply_group() on a chip that has no warp groups");
  Warp& warp = *running->warp;
  WarpProducts& products = products_of(warp);
  IssuedProduct& asked = products.asked[running->lane];
  asked.operands = operands;
  asked.tile_blocks = tile_blocks;
  asked.a_in_registers = a_registers != nullptr;
  asked.a = a;
  asked.b = b;
  warp.operands[running->lane] = {d, a_registers, 0, 0};
  release(&products.of(products.issued).order);
  meet(Meeting::kMultiplyGroup, issue);
}

void wait_products(int pending) {
  Warp& warp = *running->warp;
  warp.operands[running->lane].b0 = static_cast<uint32_t>(pending);
  meet(Meeting::kWaitProducts, [](Warp& of) {
    for (const Operand& operand : of.operands) {
      if (operand.b0 != of.operands[0].b0) fail("wait_products() of different numbers");
    }
  });
  WarpProducts& products = products_of(warp);
  const auto left = static_cast<uint64_t>(pending);
  if (left >= products.batches) return;
  const uint64_t needed = products.batch_end[(products.batches - left) % WarpProducts::kMostBatches];
  const auto others_have_issued = [&warp, needed] {
    for (int i = 0; i < kGroupWarps; ++i) {
      const WarpProducts* of = group_of(warp)[i].products.get();
      if (of == nullptr || of->issued < needed) return false;
    }
    return true;
  };
  while (!others_have_issued()) {
    warp.at_products |= 1u << running->lane;
    suspend(Waits::kProducts);
  }
  if (products.done < needed) {
    while (products.done < needed) perform(warp);
    unlist_if_idle(warp);
  }
  acquire(&products.order);
}

void take_sums(float* d, int tile_blocks) {
  const int lane = running->lane;
  WarpProducts& products = products_of(*running->warp);
  const uint64_t committed = products.batch_end[products.batches % WarpProducts::kMostBatches];
  if (committed < products.issued) fail("products that no commit_products() followed, when D is waited for");
  if (products.d[lane] != d || products.tile_blocks != tile_blocks) return;  // no product was issued into it
  if (!is_poison(d, tile_blocks)) fail("D was written to while products were running");
  for (int i = 0; i < 4 * tile_blocks; ++i) {
    d[i] = products.sums[lane / 4 + 8 * (i >> 1 & 1)][i / 4 * 8 + 2 * (lane % 4) + (i & 1)];
  }
  products.d[lane] = nullptr;
  products.is_running = products.is_fenced = false;
}

void perform_one() {
  Warp& warp = *machine.multiplying[random_below(machine.multiplying.size())];
  perform(warp);
  unlist_if_idle(warp);
}

void end_products(Warp& warp) {
  if (warp.products != nullptr) destroy_flow(warp.products->flow);
}

}  // namespace lstmvid::emulation
