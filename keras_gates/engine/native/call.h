// One way of calling a recurrence: all that does not depend on the arrays.
#pragma once
#include <string>
#include <vector>

#include "kernel.h"

// Bytes of an array: `bytes`, for each row, and for each row and step; or what is kept.
enum Extent : int32_t { FIXED, BY_ROW, BY_STEP, AS_KEPT };
struct Input { int64_t bytes; int32_t extent; const char* name; };

// What a result has the shape of: of an input, or of (batch, time, units), or it is what is kept.
enum Like : int32_t { SEQUENCES = -1, MEMORY = -2 };

constexpr int CHOICES = 3;

struct Call {
  Job choice[CHOICES];          // the first that keeps no more than its limit, or the last, is taken
  int64_t limit[CHOICES];       // bytes
  int32_t entries[CHOICES];     // of the table of weights
  int32_t choices, threads;
  // Multiplications of a row and step; so many as are worth a thread, and a member of a team per step.
  int64_t of_step, of_thread, of_member;
  // Inputs: x, states, kernel, [recurrent], [bias or both], weights, [mask], masks of dropout and
  // zoneout; backward then memory, [d_sequences], d_last. Results: [sequences], last states, [memory]; or [d_x],
  // d_initial, and the gradients of the weights in their order.
  int32_t biases, weights, has_mask, sequences, gradients, d_x;
  int32_t inputs, results;
  const Input* input;
  const int32_t* like;
};

#ifdef _WIN32
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

// Numbers that the forward pass keeps.
API int64_t kept_numbers(const Call*, int64_t batch, int64_t time);
// 0; or -1 if there is not enough memory; or n if input n - 1 has not as many bytes as it should.
API int run(const Call*, int64_t batch, int64_t time, const void* const* inputs, const int64_t* bytes,
            void* const* results);
// Memory, aligned, for large arrays; the same once more after it was given back.
API void* take(int64_t bytes);
API void give(void*);
// Makes a call known, and finds it, by a number that no other process has.
API int64_t add_call(const Call*);
const Call* call_of(int64_t number);
constexpr const char* OF_ANOTHER_PROCESS =
    "this graph runs only in the process that made it: export models with keras_gates.export or "
    "model.export";
// What a result of `run` that is not 0 means, for sequences and an input of these shapes.
std::string failure(const Call*, int failed, const std::vector<int64_t>& sequences,
                    const std::vector<int64_t>& shape);
// Bytes from which on arrays are worth `take`.
constexpr int64_t LARGE = 1 << 15;
