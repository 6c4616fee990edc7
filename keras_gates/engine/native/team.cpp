#include "team.h"

#include <atomic>
#include <chrono>
#include <thread>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

constexpr int64_t SHIFT = 1 << 8;   // more than members
constexpr int64_t OVER = INT64_MAX;

template <class T> T read(const T* from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
template <class T> void write(T* to, T value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }

int64_t microseconds() {
  using namespace std::chrono;
  return duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

// Tasks take microseconds, but another process may have the core of whom we wait for. Returns
// whether what we wait for came before `late` says so.
template <class F, class L> bool wait_until(F holds, L late) {
  for (int turn = 0; !holds(); turn++) {
    if (turn >= 300) {
      if (late()) return false;
      std::this_thread::yield();
    }
#if defined(__x86_64__)
    else _mm_pause();
#elif defined(__aarch64__)
    else __asm__ volatile("yield");
#endif
  }
  return true;
}
template <class F> void wait_until(F holds) {
  wait_until(holds, [] { return false; });
}

// Where others use the cores, a helper may be away for a time slice, longer than a whole call takes.
// So when one is late, the leader goes on alone, and so do the next calls; more of them each time.
constexpr int64_t LATE = 500;   // microseconds
constexpr int FEWEST = 8, LARGEST = 1024;
std::atomic<int> alone{0}, penalty{FEWEST};

}  // namespace

bool Team::pays() {
  if (alone <= 0) return true;
  alone--;
  return false;
}

void Team::lead(const void* leader) { write(&leader_, leader); }

int Team::give(const Task& task) {
  const int came = read(&came_), members = 1 + (came < MOST ? came : MOST - 1);
  if (late_ || members == 1) return 1;
  given_.task = task, given_.syncs = members_[0].syncs;
  write(&given_.word, (given_.word / SHIFT + 1) * SHIFT + members);
  members_[0].since = microseconds();
  return members;
}

void Team::end() {
  if (!late_ && penalty > FEWEST) penalty = penalty / 2;
  write(&given_.word, OVER);
}

const void* Team::join(int* number) {
  wait_until([this] { return read(&leader_) || read(&given_.word) == OVER; });
  if (read(&given_.word) == OVER) return nullptr;
  *number = __atomic_add_fetch(&came_, 1, __ATOMIC_ACQ_REL);
  return *number < MOST ? leader_ : nullptr;
}

int Team::next(int number, Task* task) {
  Member& own = members_[number];
  for (;;) {
    int64_t word;
    wait_until([&] { return (word = read(&given_.word)) / SHIFT > own.knows; });
    if (word == OVER) return 0;
    own.knows = word / SHIFT;
    const int members = word % SHIFT;
    if (members <= number) continue;   // it was given out before this helper came
    *task = given_.task;
    write(&own.syncs, given_.syncs);
    return members;
  }
}

void Team::sync(int number, int members) {
  Member& own = members_[number];
  const int64_t syncs = own.syncs + 1;
  write(&own.syncs, syncs);
  const auto all_are_here = [&] {
    for (int other = 0; other < members; other++)
      if (read(&members_[other].syncs) < syncs) return false;
    return true;
  };
  if (number > 0) return wait_until(all_are_here);
  int64_t began = 0;
  const auto late = [&] {
    const int64_t now = microseconds();
    if (!began) began = now;
    return now - began > LATE && now - began > began - own.since;
  };
  if (!wait_until(all_are_here, late)) {
    const int before = penalty;
    if (!late_) alone = before, penalty = before < LARGEST ? 2 * before : before;
    late_ = true;
    wait_until(all_are_here);
  }
  own.since = microseconds();
}
