#include "thread_team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace lstmvid {

struct ThreadTeam::State {
  std::atomic<int> arrived{0};
  std::atomic<unsigned> generation{0};
  std::atomic<bool> started{false};
  std::atomic<int> sleepers{0};
  std::mutex mutex;
  std::condition_variable changed;

  // A step lasts microseconds to milliseconds: spin first, for less than a sleep costs. Who still waits then waits for a
  // thread that doesn't run, on processors that others use as well: give way, and after that sleep.
  template <class Condition>
  void wait_until(Condition ready) {
    constexpr int kSpins = 2000, kYields = 20;
    for (int spin = 0; spin < kSpins; ++spin) {
      if (ready()) return;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
    for (int yield = 0; yield < kYields; ++yield) {
      if (ready()) return;
      std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(mutex);
    sleepers.fetch_add(1);  // before it looks once more, while wake_all() looks for sleepers after its change
    changed.wait(lock, ready);
    sleepers.fetch_sub(1);
  }

  // After a change (sequentially consistent, as the loads in `ready`) of what others wait for.
  void wake_all() {
    if (sleepers.load() == 0) return;
    {
      const std::lock_guard<std::mutex> lock(mutex);
    }  // a sleeper has either seen the change or sleeps by now
    changed.notify_all();
  }
};

void ThreadTeam::barrier() {
  if (size_ == 1) return;
  const unsigned generation = state_->generation.load();
  if (state_->arrived.fetch_add(1) + 1 == size_) {
    state_->arrived.store(0, std::memory_order_relaxed);
    state_->generation.fetch_add(1);
    state_->wake_all();
    return;
  }
  state_->wait_until([&] { return state_->generation.load() != generation; });
}

void ThreadTeam::run_started(int threads, Body body, const void* context) {
  State state;
  ThreadTeam team;
  team.state_ = &state;
  std::vector<std::thread> workers;
  try {
    for (int rank = 1; rank < threads; ++rank) {
      workers.emplace_back([&, rank] {
        state.wait_until([&] { return state.started.load(); });
        body(context, team, rank);
      });
    }
  } catch (const std::system_error&) {
    // As many as the system grants: the size below counts those that run.
  }
  team.size_ = static_cast<int>(workers.size()) + 1;
  state.started.store(true);
  state.wake_all();
  body(context, team, 0);
  for (std::thread& worker : workers) worker.join();
}

#if defined(_OPENMP) && !defined(__SANITIZE_THREAD__)

namespace {

// Of OpenMP's threads only the one that forks lives on in the child, and GCC's library waits for the others forever.
std::atomic<bool> is_forked_child{false};
#if defined(__unix__) || defined(__APPLE__)
const int watches_forks = pthread_atfork(nullptr, nullptr, [] { is_forked_child.store(true); });
#endif

}  // namespace

void ThreadTeam::run(int threads, Body body, const void* context) {
  if (threads > 1 && is_forked_child.load()) return run_started(threads, body, context);
  State state;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    ThreadTeam team;  // each thread's own: its size is known without a barrier of OpenMP's, which spins for long
    team.state_ = &state;
    team.size_ = omp_get_num_threads();
    body(context, team, omp_get_thread_num());
  }
}

#else

void ThreadTeam::run(int threads, Body body, const void* context) { run_started(threads, body, context); }

#endif

}  // namespace lstmvid
