// Calls of the kernel side by side, in several threads, each with arrays of its own: for the thread
// sanitizer, which Python cannot be run with. `test_native.py` builds it with the kernel's sources.
//
// Takes files of calls, forward and backward in turn, and the sizes (batch, time) after them. Fails
// if a call gives other bits than alone.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include "call.h"

// One instruction set is enough.
extern const Variant baseline, avx2, avx512;
#if defined(__x86_64__)
const Variant avx2 = baseline, avx512 = baseline;
#endif

namespace {

// Pieces of memory, each after its size, its old address, and whether it holds addresses; the last
// one is the call.
const Call* read_call(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::map<int64_t, char*> places;
  std::vector<std::pair<char*, int64_t>> with_addresses;
  char* memory = nullptr;
  for (int64_t head[3]; file.read((char*)head, sizeof head);) {
    memory = (char*)std::malloc(head[0] + 8);
    file.read(memory, head[0]);
    places[head[1]] = memory;
    if (head[2]) with_addresses.push_back({memory, head[0]});
  }
  for (const auto& [start, size] : with_addresses)
    for (int64_t at = 0; at + 8 <= size; at += 8) {
      int64_t word;
      std::memcpy(&word, start + at, 8);
      const auto found = places.find(word);
      if (found != places.end()) std::memcpy(start + at, &found->second, 8);
    }
  return (const Call*)memory;
}

typedef std::vector<std::vector<float>> Arrays;

struct Both {
  const Call *forward, *backward;
  int64_t batch, time;

  int64_t bytes(const Input& input) const {
    if (input.extent == AS_KEPT) return kept_numbers(forward, batch, time) * sizeof(float);
    return input.bytes * (input.extent == FIXED ? 1 : input.extent == BY_ROW ? batch : batch * time);
  }
  // Arrays for `call`, of which the first are given.
  Arrays filled(const Call* call, Arrays arrays) const {
    for (int i = arrays.size(); i < call->inputs; i++) {
      arrays.emplace_back(bytes(call->input[i]) / sizeof(float));
      for (size_t j = 0; j < arrays[i].size(); j++) arrays[i][j] = ((i * 7919 + j * 104729) % 2003) / 5e3f - 0.2f;
    }
    return arrays;
  }
  Arrays done(const Call* call, const Arrays& arrays) const {
    Arrays results;
    std::vector<const void*> given;
    std::vector<int64_t> sizes;
    std::vector<void*> wanted;
    for (const auto& array : arrays) given.push_back(array.data()), sizes.push_back(array.size() * sizeof(float));
    for (int i = 0; i < call->results; i++) {
      const int like = call->like[i];
      const int64_t units = call->choice[0].units;
      results.emplace_back(like == SEQUENCES ? batch * time * units
                           : like == MEMORY  ? kept_numbers(call, batch, time)
                                             : (int64_t)arrays[like].size());
    }
    for (auto& result : results) wanted.push_back(result.data());
    const int failed = run(call, batch, time, given.data(), sizes.data(), wanted.data());
    if (failed) std::fprintf(stderr, "failed: %d\n", failed), std::exit(2);
    return results;
  }
  Arrays all() const {
    const Arrays given = filled(forward, {});
    Arrays found = done(forward, given), more = given;
    more.push_back(found.back());
    for (auto& gradient : done(backward, filled(backward, more))) found.push_back(gradient);
    void* const memory = take(1 << 16);   // as results of TensorFlow are
    std::memset(memory, 1, 1 << 16);
    give(memory);
    return found;
  }
};

}  // namespace

int main(int count, char** arguments) {
  std::vector<const Call*> calls;
  int i = 1;
  for (; i < count && !std::strchr("0123456789", arguments[i][0]); i++) calls.push_back(read_call(arguments[i]));
  std::vector<Both> all;
  for (; i + 1 < count; i += 2)
    for (size_t c = 0; c < calls.size(); c += 2)
      all.push_back({calls[c], calls[c + 1], std::atoll(arguments[i]), std::atoll(arguments[i + 1])});
  std::vector<Arrays> alone;
  for (const Both& both : all) alone.push_back(both.all());
  bool same = true;
  std::vector<std::thread> threads;
  std::vector<char> agrees(all.size(), 1);
  for (size_t n = 0; n < all.size(); n++)
    threads.emplace_back([&, n] {
      for (int turn = 0; turn < 5; turn++) agrees[n] = agrees[n] && all[n].all() == alone[n];
    });
  for (auto& thread : threads) thread.join();
  for (const char of_one : agrees) same = same && of_one;
  std::printf("%zu calls, %s\n", all.size(), same ? "the same" : "not the same");
  return same ? 0 : 3;
}
