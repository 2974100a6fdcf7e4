#include "thread_team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace lstmvid {

struct ThreadTeam::State {
  std::atomic<int> arrived{0};
  std::atomic<unsigned> generation{0};
  std::atomic<bool> started{false};
};

namespace {

// A step lasts microseconds to milliseconds: spin first, but give way when the processors are oversubscribed.
template <class Condition>
void wait_until(Condition ready) {
  constexpr int kSpins = 4000;
  for (int spin = 0; !ready(); ++spin) {
    if (spin < kSpins) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void ThreadTeam::barrier() {
  if (size_ == 1) return;
  const unsigned generation = state_->generation.load(std::memory_order_acquire);
  if (state_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    state_->arrived.store(0, std::memory_order_relaxed);
    state_->generation.fetch_add(1, std::memory_order_release);
    return;
  }
  wait_until([&] { return state_->generation.load(std::memory_order_acquire) != generation; });
}

#if defined(_OPENMP) && !defined(__SANITIZE_THREAD__)

void ThreadTeam::run(int threads, Body body, const void* context) {
  State state;
  ThreadTeam team;
  team.state_ = &state;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp single
    team.size_ = omp_get_num_threads();  // implies a barrier: all see the size before they begin
    body(context, team, omp_get_thread_num());
  }
}

#else

void ThreadTeam::run(int threads, Body body, const void* context) {
  State state;
  ThreadTeam team;
  team.state_ = &state;
  std::vector<std::thread> workers;
  try {
    for (int rank = 1; rank < threads; ++rank) {
      workers.emplace_back([&, rank] {
        wait_until([&] { return state.started.load(std::memory_order_acquire); });
        body(context, team, rank);
      });
    }
  } catch (const std::system_error&) {
    // As many as the system grants: the size below counts those that run.
  }
  team.size_ = static_cast<int>(workers.size()) + 1;
  state.started.store(true, std::memory_order_release);
  body(context, team, 0);
  for (std::thread& worker : workers) worker.join();
}

#endif

}  // namespace lstmvid
