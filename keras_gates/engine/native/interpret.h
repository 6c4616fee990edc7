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
template <class T> void clip_norm_of_row(const T* d, const T* number, T* to, long units, long row) {
  typedef typename Of<T>::V V;
  constexpr long L = LANES<T>;
  const T bound = number[0];
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

// How many numbers are above x, or equal to it with `ties`, and their sum: added to what is there.
template <bool ties, class T> void add_above(const T* p, T x, long count, T* found, T* sum) {
  typedef typename Of<T>::V V;
  constexpr long L = LANES<T>;
  V numbers{}, total{};
  long i = 0;
  for (; i + L <= count; i += L) {
    const V v = load(p + i);
    const auto is = ties ? v >= x : v > x;
    numbers += select(is, splat<T>(1), V{}), total += select(is, v, V{});
  }
  *found += added(numbers), *sum += added(total);
  for (; i < count; i++)
    if (ties ? p[i] >= x : p[i] > x) *found += 1, *sum += p[i];
}

// The threshold of sparsemax: see `equations.operations`, which sorts the row. Here each number that
// can be in the support finds its place in the order, as there are few of them.
template <class T> struct Sparsemax {
  const T* p;
  long units;
  T largest, size = 0, threshold;   // size: of the support; 0 where there are infinities or NaNs

  Sparsemax(const T* row, long count) : p(row), units(count) {
    largest = max_over_units(p, 1, units);
    T total = 0;
    for (long i = 0; i < units; i++) {
      if (!can_be_in(i)) continue;
      T place, sum;
      find(i, &place, &sum);
      if (p[i] - (sum - 1) / place > 0) size += 1, total += sum;
    }
    threshold = (total - 1) / size;
  }
  bool can_be_in(long i) const { return p[i] >= largest - 2; }   // largest - 1, and rounding
  // The place of number i in the order, from 1 on, and the sum of those up to it.
  void find(long i, T* place, T* sum) const {
    *place = *sum = 0;
    add_above<true>(p, p[i], i + 1, place, sum);
    add_above<false>(p + i + 1, p[i], units - i - 1, place, sum);
  }
};
template <class T> void sparsemax_of_row(const T* x, const T*, T* to, long units, long row) {
  const T threshold = Sparsemax<T>(x, units).threshold;
  for (long i = 0; i < row; i++) to[i] = x[i] < threshold ? T(0) : x[i] - threshold;
}
template <class T>
void sparsemax_gradient_of_row(const T* x, const T* d, T* to, long units, long row) {
  const Sparsemax<T> s(x, units);
  T total = 0, place, sum;
  for (long i = 0; i < units; i++)
    if (x[i] > s.threshold) total += d[i];
  for (long i = 0; i < row; i++) to[i] = s.size == 0 ? T(NAN) : x[i] > s.threshold ? d[i] : T(0);
  for (long i = 0; i < units; i++) {
    if (!s.can_be_in(i)) continue;
    s.find(i, &place, &sum);
    if (place <= s.size) to[i] -= total * (s.size + 1 - place) / s.size;
  }
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
    for (; to < stop; to += row, pa += sa ? row : 0, pb += sb ? row : 0) \
      name##_of_row(pa, pb, to, units, row);              \
    break;
#include "operations.inc"
    }
  }
}

}  // namespace
