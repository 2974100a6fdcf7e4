// Threads that work together for one call and meet at barriers.
//
// They are OpenMP's, which torch uses too: threads of our own would share their processors with torch's, which spin for
// milliseconds after each of its products in wait for the next. Where the compiler has no OpenMP, in a process forked
// from another (whose OpenMP threads didn't come along), and under ThreadSanitizer, which doesn't see through OpenMP,
// they are started and joined in each call.
#pragma once

namespace lstmvid {

class ThreadTeam {
 public:
  using Body = void (*)(const void* context, ThreadTeam& team, int rank);

  // Runs body(context, team, rank) for every rank of a team of at most `threads` and returns when all have ended. Where
  // the system grants fewer threads, the team is smaller: bodies take their share from size().
  static void run(int threads, Body body, const void* context);

  int size() const { return size_; }
  void barrier();

 private:
  ThreadTeam() = default;
  static void run_started(int threads, Body body, const void* context);
  struct State;
  State* state_ = nullptr;
  int size_ = 1;
};

}  // namespace lstmvid
