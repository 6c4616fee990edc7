// Threads that go through the time steps of one share of the batch together, each with columns of
// its own.
//
// The leader does what has to be done in order, and gives out tasks of some steps, of which each
// member does its columns; members wait for each other where one needs the columns of all. Helpers
// take part from the first task on that is given out after they came: nobody waits until a thread is
// awake, and a leader that nobody helps does all alone. Which member does which columns does not
// matter to the results.
#pragma once
#include <stdint.h>

enum What : int32_t { STEPS, STEPS_BACK, GATHER };

struct Task {
  int32_t what, side;      // side: of the two places for the gradients at states
  int32_t first, rows;     // of the tile
  int32_t t, steps;        // the first step, and how many
  int32_t start, last;     // backward: those whose gradients are gathered, to before `last`
};

class Team {
 public:
  static constexpr int MOST = 64;   // members

  // Whether this call should have teams at all.
  static bool pays();
  // The leader's: shows helpers what they are to know of it; gives out a task, when all are done with
  // the last one, and returns how many members it has; at the end, in any case, sends helpers away.
  void lead(const void* leader);
  int give(const Task&);
  void end();
  // A helper's: what the leader shows, or null if it is too late; then how many members do the next
  // task, or 0 if there is none.
  const void* join(int* number);
  int next(int number, Task*);
  // All members': waits until all are here. Tasks end with it.
  void sync(int number, int members);

 private:
  // What different threads write lies in different lines of the cache.
  struct alignas(64) Given {
    int64_t word = 0;         // the number of the task times SHIFT, plus its members
    int64_t syncs = 0;        // before it
    Task task;
  };
  struct alignas(64) Member {
    int64_t syncs = 0;        // that it came to
    int64_t knows = 0;        // the last task that it did or need not do
    int64_t since = 0;        // of the leader: when the last wait ended
  };

  Given given_;
  Member members_[MOST];
  alignas(64) int32_t came_ = 0;
  alignas(64) const void* leader_ = nullptr;
  bool late_ = false;
};
