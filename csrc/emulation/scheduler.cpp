// Who runs next.
#include "emulation/machine.h"

namespace lstmvid::emulation {

Fiber* running = nullptr;
Place* place = nullptr;
Fiber host;

namespace {

std::vector<Warp*> ready_warps, polling_warps;
uint64_t random_state = 1, next_seed = 1;
uint32_t stay_chance, land_chance, yield_chance;  // of 1024; each schedule draws its own
uint64_t progress_at_round = 0;
int64_t rounds = 0;

// Rounds in which every fiber that waits looks again, nobody finding anything, until it counts as a deadlock. More than
// one: a wait may look at several flags in turn.
int64_t most_rounds() { return 200 + 4 * static_cast<int64_t>(machine.blocks.size()); }

void list(std::vector<Warp*>& warps, int64_t Warp::* at, Warp* warp) {
  if (warp->*at >= 0) return;
  warp->*at = static_cast<int64_t>(warps.size());
  warps.push_back(warp);
}

void unlist(std::vector<Warp*>& warps, int64_t Warp::* at, Warp* warp) {
  if (warp->*at < 0) return;
  warps[warp->*at] = warps.back();
  warps[warp->*at]->*at = warp->*at;
  warps.pop_back();
  warp->*at = -1;
}

Warp* pick_warp() {
  Warp* here = running == &host ? nullptr : running->warp;
  if (here != nullptr && here->ready != 0 && chance(stay_chance)) return here;
  Warp* warp = nullptr;
  for (int tries = 0; tries < 3; ++tries) {
    warp = ready_warps[random_below(ready_warps.size())];
    if (!warp->block->lazy) break;
  }
  return warp;
}

// Nobody is ready: those that poll look again. At barriers only if nothing has happened since the last round: a completed
// phase wakes who looked at that barrier last, and this is for who looks at several.
void begin_round() {
  const bool progressed = machine.progress != progress_at_round;
  progress_at_round = machine.progress;
  if (progressed) {
    rounds = 0;
  } else if (machine.in_flight.empty() && ++rounds > most_rounds()) {
    fail_deadlocked();
  }
  for (size_t i = polling_warps.size(); i-- > 0;) {  // make_ready() may put the last in place of this one
    Warp* warp = polling_warps[i];
    uint32_t lanes = warp->polling;
    for (uint32_t left = progressed ? lanes : 0; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      if (warp->lanes[lane]->waits != Waits::kFlag) lanes &= ~(1u << lane);
    }
    if (lanes != 0) make_ready(warp, lanes);
  }
}

// Removes one of the ready fibers and returns it, or the host when none is left; lands copies and ends rounds on the way.
Fiber* pick() {
  for (;;) {
    const bool idle = ready_warps.empty();
    if (!machine.in_flight.empty() && (idle ? polling_warps.empty() || chance(960) : chance(land_chance))) {
      land(random_below(machine.in_flight.size()));
      continue;
    }
    if (!machine.multiplying.empty() && chance(land_chance)) {
      perform_one();
      continue;
    }
    if (!idle) {
      Warp* warp = pick_warp();
      const unsigned turn = static_cast<unsigned>(random_below(32));
      const uint32_t turned = warp->ready >> turn | (turn == 0 ? 0 : warp->ready << (32 - turn));
      const unsigned lane = (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32;
      warp->ready &= ~(1u << lane);
      if (warp->ready == 0) unlist(ready_warps, &Warp::at_ready, warp);
      return warp->lanes[lane];
    }
    if (machine.fibers_left == 0) return &host;
    if (polling_warps.empty() && machine.in_flight.empty()) fail_deadlocked();
    begin_round();
  }
}

}  // namespace

uint64_t random_below(uint64_t n) {
  random_state += 0x9e3779b97f4a7c15u;  // splitmix64 (Steele et al., 2014)
  uint64_t x = random_state;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return ((x ^ x >> 31) >> 32) * n >> 32;
}

bool chance(uint32_t of_1024) { return random_below(1024) < of_1024; }

void make_ready(Warp* warp, uint32_t lanes) {
  warp->polling &= ~lanes;
  if (warp->polling == 0) unlist(polling_warps, &Warp::at_polling, warp);
  warp->ready |= lanes;
  list(ready_warps, &Warp::at_ready, warp);
}

void run_others() {
  Fiber* next = pick();
  if (next == running) return;
  Fiber* self = running;
  running = next;
  place = next;
  ++statistics().switches;
  change(&self->context, &next->context);
}

void suspend(Waits waits, const void* waits_for, uint32_t seen) {
  running->waits = waits;
  running->waits_for = waits_for;
  running->seen = seen;
  run_others();
  running->waits = Waits::kNothing;
}

void poll(Waits waits, const void* waits_for, uint32_t seen) {
  ++statistics().polls;
  const uint32_t bit = 1u << running->lane;
  if (chance(256)) {
    make_ready(running->warp, bit);
  } else {
    running->warp->polling |= bit;
    list(polling_warps, &Warp::at_polling, running->warp);
  }
  suspend(waits, waits_for, seen);
}

void maybe_yield() {
  if (!chance(yield_chance)) return;
  make_ready(running->warp, 1u << running->lane);
  suspend(Waits::kNothing);
}

void set_seed(uint64_t seed) { next_seed = seed; }

void draw_schedule() {
  random_state = next_seed;
  next_seed = random_below(~uint32_t{0}) << 32 | random_below(~uint32_t{0});  // the next launch's schedule differs
  const uint32_t stays[] = {1000, 1000, 512, 0};
  stay_chance = stays[random_below(4)];
  land_chance = 1u << random_below(10);
  yield_chance = random_below(3) == 0 ? 0 : 1u << random_below(9);
}

void clear_schedule(size_t warps) {
  ready_warps.clear();
  polling_warps.clear();
  ready_warps.reserve(warps);
  polling_warps.reserve(warps);
  rounds = 0;
}

}  // namespace lstmvid::emulation
