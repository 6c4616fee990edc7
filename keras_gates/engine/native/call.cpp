// From the arrays of a call to a job, and the memory of large results.
#include "call.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

int do_job(const Job&, int threads);
int64_t kept_by(const Job&);

namespace {

int64_t size_of_number(const Call& c) { return c.choice[0].is_double ? 8 : 4; }

Job chosen(const Call& c, int64_t batch, int64_t time, int* index) {
  for (int i = 0;; i++) {
    Job job = c.choice[i];
    job.batch = batch, job.time = time;
    *index = i;
    if (i + 1 >= c.choices || kept_by(job) * size_of_number(c) <= c.limit[i]) return job;
  }
}

int64_t bytes_of(const Call& c, const Input& input, int64_t batch, int64_t time) {
  switch (input.extent) {
    case FIXED: return input.bytes;
    case BY_ROW: return input.bytes * batch;
    case BY_STEP: return input.bytes * batch * time;
    default: return kept_numbers(&c, batch, time) * size_of_number(c);
  }
}

}  // namespace

int64_t kept_numbers(const Call* c, int64_t batch, int64_t time) {
  int index;
  return kept_by(chosen(*c, batch, time, &index));
}

int run(const Call* call, int64_t batch, int64_t time, const void* const* in, const int64_t* bytes,
        void* const* out) {
  const Call& c = *call;
  for (int i = 0; i < c.inputs; i++)
    if (bytes[i] != bytes_of(c, c.input[i], batch, time)) return i + 1;
  int index;
  Job job = chosen(c, batch, time, &index);
  const int64_t size = size_of_number(c), bias = job.blocks * job.units * size;
  // So many threads are worth it. Two rows take little longer than one, so a share has two if it can;
  // threads that are more than the shares are members of their teams.
  const int64_t wanted = batch * time * c.of_step / c.of_thread;
  const int64_t threads = wanted < 1 ? 1 : wanted < c.threads ? wanted : c.threads;
  job.shares = std::max<int64_t>(1, std::min(threads, (batch + 1) / 2));
  job.members = std::max<int64_t>(1, std::min(threads / job.shares, c.of_step / c.of_member));

  const void* const* const first = in;
  job.x = *in++;
  job.initial = in, in += job.states;
  job.kernel = *in++;
  if (job.recurrent_blocks) job.recurrent = *in++;
  if (c.biases) job.bias = *in++;
  if (c.biases > 1) job.recurrent_bias = (const char*)job.bias + bias;
  const void* const* const weights = in;
  in += c.weights;
  if (c.has_mask) job.mask = (const uint8_t*)*in++;
  job.input_mask = in, in += job.input_masks;
  job.recurrent_mask = in, in += job.recurrent_masks;
  job.kept_mask = in, in += job.kept_masks;
  void* const* d_weights = nullptr;
  if (!job.backward) {
    if (c.sequences) job.sequences = *out++;
    job.last = out, out += job.states;
    if (c.gradients) job.memory = *out++;
  } else {
    job.memory = (void*)*in++;
    if (c.sequences) job.d_sequences = *in++;
    job.d_last = in;
    if (c.d_x) job.d_x = *out++;
    job.d_initial = out, out += job.states;
    job.d_kernel = *out++;
    if (job.recurrent_blocks) job.d_recurrent = *out++;
    if (c.biases) job.d_bias = *out++;
    if (c.biases > 1) job.d_recurrent_bias = (char*)job.d_bias + bias;
    d_weights = out;
    for (int i = 0; i < c.weights; i++)   // some are without influence
      std::memset(d_weights[i], 0, c.input[weights - first + i].bytes);
  }
  std::vector<Weight> table(job.weight, job.weight + c.entries[index]);
  for (Weight& w : table) {
    if (w.source >= 0) w.values = weights[w.source];
    if (job.backward && w.gradient_of >= 0) w.gradient = d_weights[w.gradient_of];
  }
  job.weight = table.data();
  return do_job(job, c.threads) ? -1 : 0;
}

std::string failure(const Call* call, int failed, const std::vector<int64_t>& sequences,
                    const std::vector<int64_t>& shape) {
  if (failed < 0) return "no memory is left for a recurrent layer";
  auto text = [](const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t length : shape) text += (text.empty() ? "" : ", ") + std::to_string(length);
    return "(" + text + (shape.size() == 1 ? ",)" : ")");
  };
  const Job& job = call->choice[0];
  return std::string("recurrent layer: ") +
         (failed == 1 ? "the sequences must have " + std::to_string(job.features) + " features"
                      : call->input[failed - 1].name + (" does not fit " + std::to_string(job.units)) +
                            " units and sequences of shape " + text(sequences)) +
         ". Received: shape " + text(shape);
}

// ---------------------------------------------------------------------- memory

namespace {

// What is new has to be mapped page by page, which takes as long as some layers: of each size some
// pieces are kept.
constexpr size_t KEEP = 4, ALIGNMENT = 64;
std::mutex of_memory;
std::map<size_t, std::vector<char*>>& free_memory() {
  static auto& found = *new std::map<size_t, std::vector<char*>>;   // until the process ends
  return found;
}
size_t rounded(size_t bytes) {
  constexpr size_t step = 1 << 18;
  if (bytes >= 4 * step) return (bytes + step - 1) / step * step;
  size_t size = LARGE;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

void* take(int64_t bytes) {
  const size_t size = rounded(bytes);
  {
    std::lock_guard<std::mutex> lock(of_memory);
    std::vector<char*>& found = free_memory()[size];
    if (!found.empty()) {
      char* const memory = found.back();
      found.pop_back();
      return memory;
    }
  }
  char* const whole = (char*)std::malloc(size + 2 * ALIGNMENT);
  if (!whole) return nullptr;
  char* const memory = whole + 2 * ALIGNMENT - (size_t)whole % ALIGNMENT;
  // Before the memory: its size, and how it is freed.
  ((size_t*)memory)[-1] = size;
  ((char**)memory)[-2] = whole;
  return memory;
}

void give(void* memory) {
  const size_t size = ((size_t*)memory)[-1];
  {
    std::lock_guard<std::mutex> lock(of_memory);
    std::vector<char*>& found = free_memory()[size];
    if (found.size() < KEEP) {
      found.push_back((char*)memory);
      return;
    }
  }
  std::free(((char**)memory)[-2]);
}

// ---------------------------------------------------------------------- numbers of calls

namespace {

std::mutex of_calls;
std::map<int64_t, const Call*>& known_calls() {
  static auto& found = *new std::map<int64_t, const Call*>;
  return found;
}

}  // namespace

int64_t add_call(const Call* call) {
  std::lock_guard<std::mutex> lock(of_calls);
  static int64_t next = [] {
    std::random_device random;
    return (int64_t)(random() >> 1) << 32 | (int64_t)(random() >> 8);
  }();
  known_calls()[next] = call;
  return next++;
}

const Call* call_of(int64_t number) {
  std::lock_guard<std::mutex> lock(of_calls);
  const auto found = known_calls().find(number);
  return found == known_calls().end() ? nullptr : found->second;
}
