// The program: operations on whole registers.
#pragma once
#include "kernel.h"
#include "vectors.h"

// One number at a time, by the mathematical library.
#define BY_ONE(of) \
  each(a, [](T x) { return sizeof(T) == 4 ? (T)__builtin_##of##f(x) : (T)__builtin_##of(x); })

namespace {

enum Operation : int32_t {
#define UNARY(name, value) OP_##name,
#define BINARY(name, value) OP_##name,
#define TERNARY(name, value) OP_##name,
#define ROWS(name) OP_##name,
#define ROW(name) OP_##name,
#include "operations.inc"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef ROWS
#undef ROW
};

// Whether it takes whole rows; these are the last ones.
FAST bool is_of_rows(int32_t operation) { return operation >= OP_sum; }

template <class T> T sum_over_units(const T* p, long step, long units) {
  if (!step) return p[0] * units;
  constexpr long L = LANES<T>;
  typename Of<T>::V total{};
  long i = 0;
  for (; i + L <= units; i += L) total += load(p + i);
  T found = added(total);
  for (; i < units; i++) found += p[i];
  return found;
}
template <class T> T max_over_units(const T* p, long step, long units, bool of_sizes = false) {
  T found = of_sizes && p[0] < 0 ? -p[0] : p[0];
  for (long i = 1; step && i < units; i++) {
    const T x = of_sizes && p[i] < 0 ? -p[i] : p[i];
    if (x > found || x != x) found = x;  // a NaN stays: nothing is greater
  }
  return found;
}

// The row d, scaled to an L2 norm of at most `bound`. Infinities share it, and what is finite beside
// them vanishes; one NaN makes all of them NaN.
template <class T> void clip_norm_of_row(const T* d, T bound, T* to, long units, long row) {
  typedef typename Of<T>::V V;
  constexpr long L = LANES<T>;
  V squares{};
  long i = 0;
  for (; i + L <= units; i += L) squares += load(d + i) * load(d + i);
  T total = added(squares);
  for (; i < units; i++) total += d[i] * d[i];
  // Where squares can be neither too large nor too small.
  const T small = sizeof(T) == 4 ? T(1e-30) : T(1e-280), large = sizeof(T) == 4 ? T(1e30) : T(1e280);
  if (bound * bound > small && total < large) {
    const T scale = total <= bound * bound ? T(1) : bound / (T)__builtin_sqrt(total);
    for (i = 0; i < row; i += L) store(to + i, load(d + i) * scale);
    return;
  }
  const T largest = max_over_units(d, L, units, true), infinity = T(INFINITY);
  const bool infinite = largest == infinity;
  T length = 0;
  const auto direction = [&](T x) {
    if (!infinite) return largest > 0 ? x / largest : x;
    return x == infinity ? T(1) : x == -infinity ? T(-1) : 0 * x;
  };
  for (i = 0; i < units; i++) length += direction(d[i]) * direction(d[i]);
  length = (T)__builtin_sqrt(length);
  const bool inside = largest * length <= bound;
  for (i = 0; i < units; i++) to[i] = inside ? d[i] : direction(d[i]) * (bound / length);
}

// The program's instructions from `i` to `end`, on `count` numbers in whole rows of `row`.
template <class T>
void interpret(const Instruction* i, const Instruction* end, T* const* registers, const long* step,
               long count, long row, long units) {
  typedef typename Of<T>::V V;
  constexpr long L = LANES<T>;
  for (; i < end; i++) {
    T* to = registers[i->to];
    T* const stop = to + count;
    const T *pa = registers[i->a], *pb = registers[i->b], *pc = registers[i->c];
    const long sa = step[i->a], sb = step[i->b], sc = step[i->c];
    switch (i->operation) {
#define UNARY(name, value)                                \
  case OP_##name:                                         \
    for (; to < stop; to += L, pa += sa) {                \
      const V a = load(pa);                               \
      store(to, V(value));                                \
    }                                                     \
    break;
#define BINARY(name, value)                               \
  case OP_##name:                                         \
    for (; to < stop; to += L, pa += sa, pb += sb) {      \
      const V a = load(pa), b = load(pb);                 \
      store(to, V(value));                                \
    }                                                     \
    break;
#define TERNARY(name, value)                              \
  case OP_##name:                                         \
    for (; to < stop; to += L, pa += sa, pb += sb, pc += sc) { \
      const V a = load(pa), b = load(pb), c = load(pc);   \
      store(to, V(value));                                \
    }                                                     \
    break;
#define ROWS(name)                                        \
  case OP_##name:                                         \
    for (; to < stop; to += row, pa += sa ? row : 0) {    \
      const V all = splat(name##_over_units(pa, sa, units)); \
      for (long c = 0; c < row; c += L) store(to + c, all); \
    }                                                     \
    break;
#define ROW(name)                                         \
  case OP_##name:                                         \
    for (; to < stop; to += row, pa += sa ? row : 0) name##_of_row(pa, pb[0], to, units, row); \
    break;
#include "operations.inc"
    }
  }
}

}  // namespace
