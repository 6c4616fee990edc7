// What Python calls: a job, done in shares by a pool of threads.
#include "call.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <new>
#include <thread>
#include <vector>
#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

extern const Variant baseline;
#if defined(__x86_64__)
extern const Variant avx2, avx512;
#endif

namespace {

const Variant& variant(const char** name = nullptr) {
  static const char* found = "baseline";
  static const Variant& best = []() -> const Variant& {
    const char* const wanted = std::getenv("KERAS_GATES_INSTRUCTIONS");   // to test the others
    const std::string most = wanted ? wanted : "avx512";
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (most == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      return found = "avx512", avx512;
    if (most != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return found = "avx2", avx2;
#endif
    return baseline;
  }();
  if (name) *name = found;
  return best;
}

// Memory of a thread, which grows and is kept: the next call finds it mapped.
struct Buffer {
  char* at = nullptr;
  size_t size = 0;
  char* of(size_t wanted) {
    if (wanted > size) {
      std::free(at);
      size = wanted + wanted / 4;
      at = (char*)std::malloc(size + 64);
      if (!at) {
        size = 0;
        throw std::bad_alloc();
      }
    }
    return at + (64 - (size_t)at % 64);
  }
  ~Buffer() { std::free(at); }
};

// Of what all shares use, and of what one does.
Buffer& together() {
  thread_local Buffer buffer;
  return buffer;
}
Buffer& own() {
  thread_local Buffer buffer;
  return buffer;
}

// Numbers too small to be normal are taken for zero, as TensorFlow does: they are slow.
struct FlushToZero {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushToZero() { _mm_setcsr(before | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before); }
#else
  FlushToZero() {}
  ~FlushToZero() {}
#endif
};

// Threads that take the shares of a job. Which thread takes which does not matter to the result.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) std::thread([this] { work(); }).detach();
    others_ = threads - 1;
  }

  void run(int shares, const std::function<void(int)>& of_share) {
    // A second call at the same time does its job alone.
    std::unique_lock<std::mutex> alone(calling_, std::try_to_lock);
    if (shares == 1 || !others_ || !alone.owns_lock()) {
      for (int i = 0; i < shares; i++) of_share(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &of_share, next_ = 0, shares_ = shares, open_ = shares;
    }
    wake_.notify_all();
    std::unique_lock<std::mutex> lock(mutex_);
    while (take(lock)) {}
    done_.wait(lock, [this] { return open_ == 0; });
    job_ = nullptr;
  }

 private:
  bool take(std::unique_lock<std::mutex>& lock) {
    if (!job_ || next_ == shares_) return false;
    const int share = next_++;
    const auto* const job = job_;
    lock.unlock();
    (*job)(share);
    lock.lock();
    if (--open_ == 0) done_.notify_one();
    return true;
  }
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && next_ < shares_; });
      take(lock);
    }
  }

  std::mutex mutex_, calling_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* job_ = nullptr;
  int next_ = 0, shares_ = 0, open_ = 0, others_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked process has none of them, and
// makes its own.
Pool& pool(int threads) {
  static std::mutex mutex;
  static std::vector<Pool*> pools;   // by number of threads
  static int owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) pools.clear(), owner = getpid();
  if ((int)pools.size() <= threads) pools.resize(threads + 1);
  if (!pools[threads]) pools[threads] = new Pool(threads);
  return *pools[threads];
}

const char* const kNames =
#define UNARY(name, value) #name " "
#define BINARY(name, value) #name " "
#define TERNARY(name, value) #name " "
#define ROWS(name) #name " "
#define ROW(name) #name " "
#include "operations.inc"
    ;

}  // namespace

API const char* operations() { return kNames; }

API const char* instructions() {
  const char* name;
  variant(&name);
  return name;
}

API int size_of_call() { return sizeof(Call); }

int64_t kept_by(const Job& job) { return variant().kept_size(&job); }

// Weights that are worth being packed, and their gradients being added up, by several threads.
constexpr int64_t MANY = 1 << 17;

// Parts of something, each done by the first thread that comes to it.
class Parts {
 public:
  explicit Parts(int count) : count_(count) {}
  template <class F> void all(F of_part) {
    for (int part; done_ < count_ && (part = next_++) < count_; done_++) of_part(part);
    while (done_ < count_) std::this_thread::yield();
  }

 private:
  const int count_;
  std::atomic<int> next_{0}, done_{0};
};

// 0, or 1 if there is not enough memory.
int do_job(const Job& of, int threads) {
  const Job* const job = &of;
  try {
    const Variant& v = variant();
    char* const shared = together().of(v.shared_size(job));
    const size_t size = v.share_size(job);
    const bool in_teams = job->members > 1 && Team::pays();
    std::vector<Team> teams(in_teams ? job->shares : 0);
    const int all = in_teams ? job->shares * job->members : job->shares;
    std::atomic<bool> failed{false};
    const auto each = [&](bool by_the_pool, int count, const auto& of_index) {
      const auto of = [&](int index) {
        FlushToZero flush;
        of_index(index);
      };
      if (by_the_pool) return pool(threads).run(count, of);
      for (int i = 0; i < count; i++) of(i);
    };
    const int64_t weights = job->blocks * job->units * (job->features + job->units);
    const bool many = all > 1 && weights >= MANY;
    Parts prepared(v.parts(job));
    const auto prepare = [&](int part) { v.prepare(job, shared, part); };
    if (!many) prepared.all(prepare);
    each(all > 1, all, [&](int index) {
      prepared.all(prepare);
      const int share = index % job->shares;   // the first so many lead
      const bool leads = index < job->shares;
      Team* const team = in_teams ? &teams[share] : nullptr;
      try {
        v.run(job, share, shared, own().of(size), team, leads);
      } catch (const std::bad_alloc&) {
        failed = failed || leads;   // a helper need not come
      }
      if (team && leads) team->end();
    });
    each(many, v.parts(job), [&](int part) { v.finish(job, shared, part); });
    return failed;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
