// Matrix products out of small blocks that stay in registers.
#pragma once
#include "vectors.h"

namespace {

// Rows of a block: as many as leave room in the registers for a row of b, of two vectors.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = 4;
#endif
// Columns that are packed together.
template <class T> constexpr long PANEL = 2 * LANES<T>;

FAST long least(long a, long b) { return a < b ? a : b; }
FAST long most(long a, long b) { return a > b ? a : b; }
FAST long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

template <class T> long packed_size(long k, long n) { return k * rounded_up(n, PANEL<T>); }

// b (k, n), given by its strides, as panels of columns, the last one filled up with zeros.
template <class T> void pack(const T* b, long k, long n, long row, long column, T* out) {
  constexpr long N = PANEL<T>;
  for (long j = 0; j < n; j += N) {
    const long width = least(N, n - j);
    if (column == 1 && width == N) {
      for (long p = 0; p < k; p++, out += N) __builtin_memcpy(out, b + p * row + j, N * sizeof(T));
      continue;
    }
    for (long start = 0; start < k; start += N)   // some rows at a time, which stay in cache
      for (long c = 0; c < N; c++)
        for (long p = start; p < least(k, start + N); p++)
          out[p * N + c] = c < width ? b[p * row + (j + c) * column] : T(0);
    out += k * N;
  }
}

// c (R, width) = or += a (R, k) b (k, P vectors) + bias; a by strides, b by the stride of its rows
// and, beyond the first two vectors, that of its panels.
template <class T, int R, int P>
FAST void block(const T* a, long row, long column, const T* b, long b_row, long panel, long k,
                T* c, long c_row, long width, bool add, const T* bias) {
  typedef typename Of<T>::V V;
  constexpr long L = LANES<T>;
  V sums[R][P];
  for (int p = 0; p < P; p++) {
    V first = V{};
    if (bias) {
      T padded[L] = {};
      const long given = least(L, width - p * L);
      if (given == L) first = load(bias + p * L);
      else if (given > 0) {
        for (long i = 0; i < given; i++) padded[i] = bias[p * L + i];
        first = load(padded);
      }
    }
    for (int r = 0; r < R; r++) sums[r][p] = first;
  }
  for (long i = 0; i < k; i++) {
    V of_b[P];
    for (int p = 0; p < P; p++) of_b[p] = load(b + i * b_row + (p / 2) * panel + (p % 2) * L);
    for (int r = 0; r < R; r++) {
      const T x = a[r * row + i * column];
      for (int p = 0; p < P; p++) sums[r][p] += of_b[p] * x;
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) {
      T* const to = c + r * c_row + p * L;
      const long left = width - p * L;
      if (left >= L) store(to, add ? load(to) + sums[r][p] : sums[r][p]);
      else
        for (long i = 0; i < left; i++) to[i] = add ? to[i] + sums[r][p][i] : sums[r][p][i];
    }
}

template <class T, int P>
void columns(const T* a, long row, long column, long rows, const T* b, long b_row, long k, T* c,
             long c_row, long width, bool add, const T* bias) {
  long i = 0;
  for (; i + ROWS <= rows; i += ROWS)
    block<T, ROWS, P>(a + i * row, row, column, b, b_row, 0, k, c + i * c_row, c_row, width, add, bias);
  for (; i + 4 <= rows; i += 4)
    block<T, 4, P>(a + i * row, row, column, b, b_row, 0, k, c + i * c_row, c_row, width, add, bias);
  for (; i < rows; i++)
    block<T, 1, P>(a + i * row, row, column, b, b_row, 0, k, c + i * c_row, c_row, width, add, bias);
}

// c (rows, n) = or += a (rows, k) b (k, n) + bias, with b packed.
template <class T>
void product(const T* a, long row, long column, long rows, long k, const T* packed, long n, T* c,
             long c_row, bool add, const T* bias = nullptr) {
  constexpr long N = PANEL<T>, L = LANES<T>;
  long j = 0;
  if (rows < 4) {  // several panels at once: a sum on its own waits for itself
    const auto of_bias = [&] { return bias ? bias + j : bias; };
    for (; rows == 1 && j + 4 * N <= n; j += 4 * N)
      block<T, 1, 8>(a, row, column, packed + j * k, N, k * N, k, c + j, c_row, 4 * N, add, of_bias());
    for (; j + 2 * N <= n; j += 2 * N) {
      const T* const of_b = packed + j * k;
      T* const to = c + j;
      const long last = rows - 1;
      if (rows > 1) block<T, 2, 4>(a, row, column, of_b, N, k * N, k, to, c_row, 2 * N, add, of_bias());
      if (rows != 2)
        block<T, 1, 4>(a + last * row, row, column, of_b, N, k * N, k, to + last * c_row, c_row, 2 * N,
                       add, of_bias());
    }
  }
  for (; j < n; j += N) {
    const T* const of_bias = bias ? bias + j : bias;
    if (n - j > L)
      columns<T, 2>(a, row, column, rows, packed + j * k, N, k, c + j, c_row, least(N, n - j), add,
                    of_bias);
    else
      columns<T, 1>(a, row, column, rows, packed + j * k, N, k, c + j, c_row, n - j, add, of_bias);
  }
}

// c (m, n) += transpose(a (k, m)) b (k, n), with n a multiple of the lanes.
template <class T>
void outer(const T* a, long a_row, long m, long k, const T* b, long b_row, long n, T* c, long c_row) {
  constexpr long N = PANEL<T>;
  const T* const none = nullptr;
  for (long j = 0; j < n; j += N) {
    if (n - j >= N) columns<T, 2>(a, 1, a_row, m, b + j, b_row, k, c + j, c_row, N, true, none);
    else columns<T, 1>(a, 1, a_row, m, b + j, b_row, k, c + j, c_row, n - j, true, none);
  }
}

}  // namespace
