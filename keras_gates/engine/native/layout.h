// How a job is cut into shares, tiles and strips, and the memory that all shares use together.
#pragma once
#include "kernel.h"
#include "products.h"

namespace {

// Numbers of a strip: few enough for all registers of a program to stay in the first level cache.
constexpr long STRIP = 512;
// (row, step) pairs whose gradients are gathered before they are multiplied.
constexpr long GATHERED = 128;
// Steps that a team goes through before others may join it.
constexpr long TOGETHER = 16;
// With fewer rows than this, some steps of the inputs are projected at once.
constexpr long FEW = 8;

// Memory, handed out in pieces; without any, what would be handed out is added up.
struct Memory {
  char* start;
  int64_t used = 0;
  template <class T> T* take(int64_t count) {
    char* const at = start + used;
    used += rounded_up(count * (int64_t)sizeof(T), 64);
    return start ? (T*)at : nullptr;
  }
};

template <class T> struct Layout {
  const Job& job;
  long batch, time, features, units, row, blocks, projected, tile, steps;

  explicit Layout(const Job* j) : job(*j) {
    batch = j->batch, time = j->time, features = j->features, units = j->units;
    blocks = j->blocks, projected = j->projected;
    row = rounded_up(units, LANES<T>);
    tile = most(1, least((batch + j->shares - 1) / most(1, j->shares), j->tile));
    steps = most(1, least(time, j->backward ? GATHERED / tile : tile < FEW ? 32 / tile : 1));
  }
  long strip() const { return most(1, least(tile, STRIP / row)); }
  long first_row(long share) const { return batch * share / most(1, job.shares); }
  // What the kept value `index` of all steps of a tile begins with, in numbers from its start.
  long kept(long index, long rows) const {
    const long with_last = least(index, job.kept_states);
    return ((with_last * (time + 1)) + (index - with_last) * time) * rows * row;
  }
  long kept_per_row() const { return kept(job.kept_states + job.kept, 1); }
  // Whether a step contains a product v U_k.
  bool multiplies(long k) const {
    bool found = k < projected && job.projected_register[k] >= 0;
    for (const Part* p = job.part; p < job.part + job.parts; p++)
      found = found || (p->kind == PRODUCT && p->a == k);
    return found;
  }
  const T* of(const void* p) const { return (const T*)p; }
};

// What all shares use.
template <class T> struct Shared {
  // Packed, and transposed for the backward pass; biases by block, filled up.
  T *kernel, *recurrent, *kernel_back, *recurrent_back, *bias, *recurrent_bias;
  T *d_kernel, *d_recurrent, *d_bias, *d_recurrent_bias, *d_weights;   // of the first share
  int64_t of_block_kernel, of_block_recurrent, of_block_kernel_back, of_share;
  int64_t size;

  Shared(const Layout<T>& l, char* start) {
    Memory m{start};
    const Job& j = l.job;
    of_block_kernel = packed_size<T>(l.features, l.row);
    of_block_kernel_back = packed_size<T>(l.units, l.features);
    of_block_recurrent = packed_size<T>(l.units, l.row);
    kernel = m.take<T>(l.blocks * of_block_kernel);
    recurrent = m.take<T>(l.blocks * of_block_recurrent);
    kernel_back = m.take<T>(j.backward ? l.blocks * of_block_kernel_back : 0);
    recurrent_back = m.take<T>(j.backward ? l.blocks * of_block_recurrent : 0);
    bias = m.take<T>(l.blocks * l.row);
    recurrent_bias = m.take<T>(l.blocks * l.row);
    of_share = 0;
    d_kernel = d_recurrent = d_bias = d_recurrent_bias = d_weights = nullptr;
    if (j.backward) {
      const int64_t before = m.used;
      d_kernel = m.take<T>(l.blocks * l.features * l.row);
      d_recurrent = m.take<T>(l.blocks * l.units * l.row);
      d_bias = m.take<T>(l.blocks * l.row);
      d_recurrent_bias = m.take<T>(l.blocks * l.row);
      d_weights = m.take<T>(j.weights * l.row);
      of_share = (m.used - before) / sizeof(T);
      m.take<T>(of_share * (j.shares - 1));
    }
    size = m.used;
  }
};

template <class T>
void pack_block(const Layout<T>& l, const void* matrix, long blocks, long k, long rows,
                bool transposed, T* to) {
  const T* const from = l.of(matrix) + k * l.units;
  const long columns = blocks * l.units;
  if (transposed) pack(from, l.units, rows, 1, columns, to);
  else pack(from, rows, l.units, columns, 1, to);
}

// Both of the following are done by parts, side by side: BY_BLOCK of each block.
constexpr int BY_BLOCK = 4;

template <class T> void prepare(const Job* j, char* memory, int part) {
  const Layout<T> l(j);
  const Shared<T> s(l, memory);
  const long k = part / BY_BLOCK, of_recurrent = k * s.of_block_recurrent;
  const bool has_recurrent = k < j->recurrent_blocks;
  switch (part % BY_BLOCK) {
    case 0:
      if (j->input_register[k] >= 0)
        pack_block(l, j->kernel, l.blocks, k, l.features, false, s.kernel + k * s.of_block_kernel);
      for (long i = 0; i < l.row; i++) {
        const bool given = i < l.units;
        s.bias[k * l.row + i] = given && j->bias ? l.of(j->bias)[k * l.units + i] : T(0);
        s.recurrent_bias[k * l.row + i] =
            given && j->recurrent_bias ? l.of(j->recurrent_bias)[k * l.units + i] : T(0);
      }
      break;
    case 1:
      if (l.multiplies(k))
        pack_block(l, j->recurrent, j->recurrent_blocks, k, l.units, false, s.recurrent + of_recurrent);
      break;
    case 2:
      if (j->backward && j->d_x)
        pack_block(l, j->kernel, l.blocks, k, l.features, true, s.kernel_back + k * s.of_block_kernel_back);
      break;
    default:
      if (j->backward && has_recurrent)
        pack_block(l, j->recurrent, j->recurrent_blocks, k, l.units, true, s.recurrent_back + of_recurrent);
  }
}

// The gradients of the weights, of all shares, in their order.
template <class T> void add_up(const Job* j, char* memory, int part) {
  const Layout<T> l(j);
  const Shared<T> s(l, memory);
  // Rows of `width` numbers.
  const auto sum = [&](const T* from, long rows, long width, void* result, long to_row, long column) {
    for (long r = 0; result && r < rows; r++, from += l.row) {
      T* const to = (T*)result + r * to_row + column;
      __builtin_memcpy(to, from, width * sizeof(T));
      for (long share = 1; share < j->shares; share++)
        for (long c = 0; c < width; c++) to[c] += from[share * s.of_share + c];
    }
  };
  const long k = part / BY_BLOCK, columns = l.blocks * l.units, column = k * l.units;
  switch (part % BY_BLOCK) {
    case 0:
      sum(s.d_kernel + k * l.features * l.row, l.features, l.units, j->d_kernel, columns, column);
      break;
    case 1:
      if (k < j->recurrent_blocks)
        sum(s.d_recurrent + k * l.units * l.row, l.units, l.units, j->d_recurrent,
            j->recurrent_blocks * l.units, column);
      break;
    case 2:
      sum(s.d_bias + k * l.row, 1, l.units, j->d_bias, columns, column);
      sum(s.d_recurrent_bias + k * l.row, 1, l.units, j->d_recurrent_bias, columns, column);
      break;
    default:
      for (long i = 0; k == 0 && i < j->weights; i++) {
        const Weight& w = j->weight[i];
        sum(s.d_weights + i * l.row, 1, w.gradient_size == 1 ? 1 : l.units, w.gradient, 0, 0);
      }
  }
}

}  // namespace
