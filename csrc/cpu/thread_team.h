// Threads that live for one call and meet at barriers.
//
// No pool outlives the call, so a fork in between is harmless and nothing spins while torch's own threads work.
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
  struct State;
  State* state_ = nullptr;
  int size_ = 1;
};

}  // namespace lstmvid
