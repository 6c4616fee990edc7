// A cell's traced equations, run over time.
//
// Every share of the batch goes through all time steps on its own, by tiles of some rows: x_t and h
// are projected by products that stay in cache, then the program is interpreted on strips of rows
// that stay in the first level of it. Backward, the gradients of some steps are gathered and turned
// into those of the weights by one product.
//
// Rows of a tile are filled up to whole vectors. What stands there is of no meaning, and is never
// read: products and sums over units are over `units` numbers alone.
//
// Compiled once per instruction set, with VARIANT as its name. Nothing of the C++ library is used,
// because the linker would keep one copy of it, for one instruction set.
#include "kernel.h"
#include "products.h"

// One number at a time, by the mathematical library.
#define BY_ONE(of) \
  each(a, [](T x) { return sizeof(T) == 4 ? (T)__builtin_##of##f(x) : (T)__builtin_##of(x); })

namespace {

enum Operation : int32_t {
#define UNARY(name, value) OP_##name,
#define BINARY(name, value) OP_##name,
#define TERNARY(name, value) OP_##name,
#define ROWS(name) OP_##name,
#include "operations.inc"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef ROWS
};

// Numbers of a strip: few enough for all registers of a program to stay in the first level cache.
constexpr long STRIP = 512;
// (row, step) pairs whose gradients are gathered before they are multiplied.
constexpr long GATHERED = 128;
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
  const T* of(const void* p) const { return (const T*)p; }
};

// What all shares use.
template <class T> struct Shared {
  T *kernel, *recurrent, *bias, *recurrent_bias;     // packed; biases by block, filled up
  T *d_kernel, *d_recurrent, *d_bias, *d_recurrent_bias, *d_weights;   // of the first share
  int64_t of_block_kernel, of_block_recurrent, of_share;
  int64_t size;

  Shared(const Layout<T>& l, char* start) {
    Memory m{start};
    const Job& j = l.job;
    of_block_kernel = j.backward ? packed_size<T>(l.units, l.features) : packed_size<T>(l.features, l.row);
    of_block_recurrent = packed_size<T>(l.units, l.row);
    kernel = m.take<T>(l.blocks * of_block_kernel);
    recurrent = m.take<T>(l.blocks * of_block_recurrent);
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

template <class T> void pack_block(const Layout<T>& l, const void* matrix, long k, long rows, bool transposed, T* to) {
  const T* const from = l.of(matrix) + k * l.units;
  const long columns = l.blocks * l.units;
  if (transposed) pack(from, l.units, rows, 1, columns, to);
  else pack(from, rows, l.units, columns, 1, to);
}

template <class T> void prepare(const Job* j, char* memory) {
  const Layout<T> l(j);
  const Shared<T> s(l, memory);
  for (long k = 0; k < l.blocks; k++) {
    if (!j->backward || j->d_x) pack_block(l, j->kernel, k, l.features, j->backward, s.kernel + k * s.of_block_kernel);
    pack_block(l, j->recurrent, k, l.units, j->backward, s.recurrent + k * s.of_block_recurrent);
    for (long i = 0; i < l.row; i++) {
      s.bias[k * l.row + i] = j->bias && i < l.units ? l.of(j->bias)[k * l.units + i] : T(0);
      s.recurrent_bias[k * l.row + i] =
          j->recurrent_bias && i < l.units ? l.of(j->recurrent_bias)[k * l.units + i] : T(0);
    }
  }
}

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
template <class T> T max_over_units(const T* p, long step, long units) {
  T found = p[0];
  for (long i = 1; step && i < units; i++)
    if (p[i] > found || p[i] != p[i]) found = p[i];  // a NaN stays: nothing is greater
  return found;
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
#include "operations.inc"
    }
  }
}

// What one share needs for itself, and where its registers lie.
template <class T> struct Share {
  const Job& job;
  const Layout<T> l;
  const Shared<T> shared;
  Memory memory;
  T **origin, **base, **now;   // of each register: of its memory, at this step, at this strip of it
  long* step;            // from a vector of a register to the next: none for a constant
  T *state[2], *d_state[2], *masked, *inputs, *product_of;
  T *d_projections = nullptr, *factors = nullptr, *d_products = nullptr, *d_weight = nullptr;
  T *g_kernel, *g_recurrent, *g_bias, *g_recurrent_bias, *g_weights;   // this share's part
  long rows = 0, first = 0;

  Share(const Job* j, char* common, char* own) : job(*j), l(j), shared(l, common), memory{own} {
    const long tile = l.tile * l.row, strip = l.strip() * l.row;
    const long states = j->states;
    origin = memory.take<T*>(j->registers), base = memory.take<T*>(j->registers);
    now = memory.take<T*>(j->registers);
    step = memory.take<long>(j->registers);
    for (int i = 0; i < 2; i++) state[i] = memory.take<T>(states * tile);
    masked = memory.take<T>(tile);
    inputs = memory.take<T>(most(1, j->input_masks) * l.steps * l.tile * l.features);
    product_of = memory.take<T>(l.steps * l.tile * most(l.row, l.features));
    if (j->backward) {
      for (int i = 0; i < 2; i++) d_state[i] = memory.take<T>(states * tile);
      d_projections = memory.take<T>(2 * l.blocks * l.steps * tile);
      factors = memory.take<T>(j->products * l.steps * tile);
      d_products = memory.take<T>(j->products * l.steps * tile);
      d_weight = memory.take<T>(j->weights * tile);
    }
    for (long i = 0; i < j->registers; i++) {
      const Register& r = j->places[i];
      T* p = nullptr;
      long size = 0;
      if (r.place == SCRATCH) p = memory.take<T>(size = strip);
      if (r.place == LOCAL) p = memory.take<T>(size = tile * (j->backward ? 1 : l.steps));
      if (r.place == CONSTANT) p = memory.take<T>(size = LANES<T>);
      if (r.place == WEIGHT) p = memory.take<T>(size = strip);
      if (!own) continue;
      origin[i] = base[i] = p;
      step[i] = r.place == CONSTANT ? 0 : LANES<T>;
      if (r.place == CONSTANT)
        for (long c = 0; c < LANES<T>; c++) p[c] = (T)j->constants[r.index];
      if (r.place == WEIGHT) {
        const Weight& w = j->weight[r.index];
        for (long c = 0; c < strip; c++)
          p[c] = w.size == 1 ? l.of(w.values)[0] : c % l.row < l.units ? l.of(w.values)[c % l.row] : T(0);
      }
    }
  }

  bool is_sum(long s) const { return s >= job.states - job.sums; }
  bool is_valid(long b, long t) const { return !job.mask || job.mask[b * l.time + t]; }
  T* kept(long index, long t) const {
    T* const of_tile = (T*)job.memory + first * l.kept_per_row();
    return of_tile + l.kept(index, rows) + t * rows * l.row;
  }
  // The state s before step t.
  T* state_at(long s, long t) const {
    return job.memory && s < job.kept_states ? kept(s, t) : state[t & 1] + s * l.tile * l.row;
  }

  // Rows of a state, which in tensors are `units` or a single number, filled up here.
  void read_state(long s, const void* from, T* to) const {
    const long width = is_sum(s) ? 1 : l.units;
    for (long b = 0; b < rows; b++)
      for (long c = 0; c < l.row; c++)
        to[b * l.row + c] = !from ? T(0) : is_sum(s) ? l.of(from)[first + b]
                          : c < width ? l.of(from)[(first + b) * width + c] : T(0);
  }
  void write_state(long s, const T* from, void* to) const {
    const long width = is_sum(s) ? 1 : l.units;
    for (long b = 0; b < rows; b++)
      __builtin_memcpy((T*)to + (first + b) * width, from + b * l.row, width * sizeof(T));
  }

  // v, times the dropout mask `copy` of the states, if there is one.
  const T* with_dropout(const T* v, long copy, T* to) const {
    if (!job.recurrent_masks) return v;
    multiply_rows(v, l.row, l.of(job.recurrent_mask[copy]), l.units, to);
    return to;
  }
  void multiply_rows(const T* v, long v_row, const T* mask, long width, T* to) const {
    for (long b = 0; b < rows; b++)
      for (long c = 0; c < width; c++)
        to[b * l.row + c] = v[b * v_row + c] * mask[(first + b) * width + c];
  }
  long copy_of(long k, long masks) const { return masks > 1 ? k : 0; }

  // The part of a step that the program computes.
  void run_parts() {
    for (const Part* p = job.part; p < job.part + job.parts; p++) {
      if (p->kind != INSTRUCTIONS) {
        multiply(p->kind == TRANSPOSED, p->a, base[p->b], base[p->c]);
        continue;
      }
      const long strip = l.strip();
      for (long b = 0; b < rows; b += strip) {
        for (long i = 0; i < job.registers; i++) {
          const int32_t place = job.places[i].place;
          const bool moves = place != SCRATCH && place != CONSTANT && place != WEIGHT;
          now[i] = base[i] + (moves ? b * l.row : 0);
        }
        interpret(job.code + p->a, job.code + p->b, now, step, least(strip, rows - b) * l.row, l.row, l.units);
      }
    }
  }
  void multiply(bool transposed, long k, const T* v, T* to) {
    const T* const u = shared.recurrent + k * shared.of_block_recurrent;
    if (!transposed) {
      v = with_dropout(v, copy_of(k, job.recurrent_masks), masked);
      product(v, l.row, 1, rows, l.units, u, l.row, to, l.row, false, shared.recurrent_bias + k * l.row);
      return;
    }
    product(v, l.row, 1, rows, l.units, u, l.row, to, l.row, false);
    if (job.recurrent_masks)
      multiply_rows(to, l.row, l.of(job.recurrent_mask[copy_of(k, job.recurrent_masks)]), l.units, to);
  }

  // ------------------------------------------------------------------ forward

  void forward() {
    const long end = l.first_row(share + 1);
    for (first = l.first_row(share); first < end; first += rows) {
      rows = least(l.tile, end - first);
      for (long s = 0; s < job.states; s++) read_state(s, job.initial[s], state_at(s, 0));
      for (long t = 0; t < l.time; t++) {
        place_forward(t);
        if (t % l.steps == 0) project_inputs(t, least(l.steps, l.time - t));
        project_state(t);
        run_parts();
        for (long b = 0; job.mask && b < rows; b++)
          for (long s = 0; !is_valid(first + b, t) && s < job.states; s++)
            copy_row(state_at(s, t), state_at(s, t + 1), b);
        for (long b = 0; job.sequences && b < rows; b++)
          __builtin_memcpy((T*)job.sequences + ((first + b) * l.time + t) * l.units,
                           state_at(0, t + 1) + b * l.row, l.units * sizeof(T));
      }
      for (long s = 0; s < job.states; s++) write_state(s, state_at(s, l.time), job.last[s]);
    }
  }
  void copy_row(const T* from, T* to, long b) const {
    __builtin_memcpy(to + b * l.row, from + b * l.row, l.row * sizeof(T));
  }
  void place_forward(long t) {
    for (long i = 0; i < job.registers; i++) {
      const Register& r = job.places[i];
      if (r.place == STATE) base[i] = state_at(r.index, t);
      if (r.place == NEW) base[i] = state_at(r.index, t + 1);
      if (r.place == KEPT) base[i] = kept(job.kept_states + r.index, t);
    }
    if (l.steps > 1)  // some are projected at once
      for (long k = 0; k < l.blocks; k++) {
        const int32_t i = job.input_register[k];
        if (i >= 0 && job.places[i].place == LOCAL) base[i] = origin[i] + t % l.steps * rows * l.row;
      }
  }
  void project_inputs(long t, long steps) {
    const long F = l.features;
    const bool by_row = steps > 1;
    for (long copy = 0; copy < job.input_masks; copy++) {
      const T* const mask = l.of(job.input_mask[copy]);
      for (long b = 0; b < rows; b++)
        for (long i = 0; i < steps; i++)
          for (long c = 0; c < F; c++)
            input_copy(copy)[(b * steps + i) * F + c] =
                l.of(job.x)[((first + b) * l.time + t + i) * F + c] * mask[(first + b) * F + c];
    }
    for (long k = 0; k < l.blocks; k++) {
      const int32_t i = job.input_register[k];
      if (i < 0) continue;
      const T* x = l.of(job.x) + (first * l.time + t) * F;
      long x_row = l.time * F;
      if (job.input_masks) x = input_copy(copy_of(k, job.input_masks)), x_row = steps * F;
      const T* const w = shared.kernel + k * shared.of_block_kernel;
      const T* const bias = shared.bias + k * l.row;
      if (!by_row) product(x, x_row, 1, rows, F, w, l.row, base[i], l.row, false, bias);
      for (long b = 0; by_row && b < rows; b++)
        product(x + b * x_row, F, 1, steps, F, w, l.row, base[i] + b * l.row, rows * l.row, false, bias);
    }
  }
  T* input_copy(long copy) const { return inputs + copy * l.steps * l.tile * l.features; }

  void project_state(long t) {
    const T* const h = state_at(0, t);
    long copied = -1;
    for (long k = 0; k < l.projected; k++) {
      const int32_t i = job.projected_register[k];
      if (i < 0) continue;
      const long copy = copy_of(k, job.recurrent_masks);
      const T* v = job.recurrent_masks ? masked : h;
      if (job.recurrent_masks && copy != copied) with_dropout(h, copied = copy, masked);
      product(v, l.row, 1, rows, l.units, shared.recurrent + k * shared.of_block_recurrent, l.row,
              base[i], l.row, i == job.input_register[k], shared.recurrent_bias + k * l.row);
    }
  }

  // ------------------------------------------------------------------ backward

  void backward() {
    T* const mine = shared.d_kernel + share * shared.of_share;
    g_kernel = mine, g_recurrent = mine + (shared.d_recurrent - shared.d_kernel);
    g_bias = mine + (shared.d_bias - shared.d_kernel);
    g_recurrent_bias = mine + (shared.d_recurrent_bias - shared.d_kernel);
    g_weights = mine + (shared.d_weights - shared.d_kernel);
    memset(mine, 0, shared.of_share * sizeof(T));
    const long end = l.first_row(share + 1);
    for (first = l.first_row(share); first < end; first += rows) {
      rows = least(l.tile, end - first);
      int side = 0;
      for (long s = 0; s < job.states; s++) read_state(s, job.d_last[s], d_state_at(s, side));
      for (long last = l.time; last > 0;) {
        const long start = (last - 1) / l.steps * l.steps;
        for (long t = last - 1; t >= start; t--, side ^= 1) step_back(t, t - start, side);
        gather(start, last - start);
        last = start;
      }
      for (long s = 0; s < job.states; s++) write_state(s, d_state_at(s, side), job.d_initial[s]);
    }
  }
  T* d_state_at(long s, int side) const { return d_state[side] + s * l.tile * l.row; }
  T* d_projection(long which, long slot) const {
    return d_projections + (which * l.steps * l.tile + slot * rows) * l.row;
  }
  T* of_product(T* all, long i, long slot) const {
    return all + (i * l.steps * l.tile + slot * rows) * l.row;
  }

  void step_back(long t, long slot, int side) {
    T* const d = d_state_at(0, side);
    for (long b = 0; job.d_sequences && b < rows; b++) {
      const T* const of_row = l.of(job.d_sequences) + ((first + b) * l.time + t) * l.units;
      for (long c = 0; c < l.units; c++) d[b * l.row + c] += of_row[c];
    }
    for (long i = 0; i < job.registers; i++) {
      const Register& r = job.places[i];
      switch (r.place) {
        case STATE: base[i] = state_at(r.index, t); break;
        case NEW: base[i] = state_at(r.index, t + 1); break;
        case KEPT: base[i] = kept(job.kept_states + r.index, t); break;
        case D_STATE: base[i] = d_state_at(r.index, side); break;
        case D_NEW: base[i] = d_state_at(r.index, side ^ 1); break;
        case D_INPUT: base[i] = d_projection(r.index, slot); break;
        case D_PROJECTED: base[i] = d_projection(l.blocks + r.index, slot); break;
        case FACTOR: base[i] = of_product(factors, r.index, slot); break;
        case D_PRODUCT: base[i] = of_product(d_products, r.index, slot); break;
        case D_WEIGHT: base[i] = d_weight + r.index * l.tile * l.row; break;
      }
    }
    run_parts();
    for (long b = 0; job.mask && b < rows; b++) {
      if (is_valid(first + b, t)) continue;
      for (long s = 0; s < job.states; s++) copy_row(d_state_at(s, side), d_state_at(s, side ^ 1), b);
      for (long k = 0; k < 2 * l.blocks; k++) clear_row(d_projection(k, slot), b);
      for (long i = 0; i < job.products; i++) {
        clear_row(of_product(factors, i, slot), b);
        clear_row(of_product(d_products, i, slot), b);
      }
      for (long i = 0; i < job.weights; i++) clear_row(d_weight + i * l.tile * l.row, b);
    }
    for (long i = 0; i < job.weights; i++) add_rows(d_weight + i * l.tile * l.row, rows, g_weights + i * l.row);
    pull_state(slot, d_state_at(0, side ^ 1));
  }
  void clear_row(T* p, long b) const { memset(p + b * l.row, 0, l.row * sizeof(T)); }
  void add_rows(const T* p, long count, T* to) const {
    for (long b = 0; b < count; b++)
      for (long c = 0; c < l.row; c += LANES<T>) store(to + c, load(to + c) + load(p + b * l.row + c));
  }
  // Adds to dL/dh what comes back through h U.
  void pull_state(long slot, T* d) {
    for (long k = 0; k < l.projected; k++) {
      if (job.d_projected_of[k] < 0) continue;
      const T* const u = shared.recurrent + k * shared.of_block_recurrent;
      if (!job.recurrent_masks) {
        product(d_projection(job.d_projected_of[k], slot), l.row, 1, rows, l.units, u, l.row, d, l.row, true);
        continue;
      }
      product(d_projection(job.d_projected_of[k], slot), l.row, 1, rows, l.units, u, l.row, product_of, l.row, false);
      const T* const mask = l.of(job.recurrent_mask[copy_of(k, job.recurrent_masks)]);
      for (long b = 0; b < rows; b++)
        for (long c = 0; c < l.units; c++)
          d[b * l.row + c] += product_of[b * l.row + c] * mask[(first + b) * l.units + c];
    }
  }

  // Adds the gradients of the weights from those of the steps that were gathered, and writes dL/dx.
  void gather(long start, long steps) {
    const long F = l.features, count = steps * rows;
    for (long copy = 0; copy < most(1, job.input_masks); copy++)
      for (long t = 0; t < steps; t++)
        for (long b = 0; b < rows; b++) {
          const T* const x = l.of(job.x) + ((first + b) * l.time + start + t) * F;
          T* const to = input_copy(copy) + (t * rows + b) * F;
          if (!job.input_masks) __builtin_memcpy(to, x, F * sizeof(T));
          for (long c = 0; job.input_masks && c < F; c++)
            to[c] = x[c] * l.of(job.input_mask[copy])[(first + b) * F + c];
        }
    for (long k = 0; k < l.blocks; k++) {
      if (job.d_input_of[k] < 0) continue;
      const T* const d = d_projection(job.d_input_of[k], 0);
      outer(input_copy(copy_of(k, job.input_masks)), F, F, count, d, l.row, l.row, g_kernel + k * F * l.row, l.row);
      if (job.d_bias) add_rows(d, count, g_bias + k * l.row);
      if (job.d_x) pull_input(k, d, start, steps);
    }
    for (long k = 0; k < l.projected; k++)
      if (job.d_projected_of[k] >= 0) gather_product(k, state_at(0, start), d_projection(job.d_projected_of[k], 0), steps);
    for (long i = 0; i < job.products; i++)
      gather_product(job.product_block[i], of_product(factors, i, 0), of_product(d_products, i, 0), steps);
  }
  void gather_product(long k, const T* v, const T* d, long steps) {
    T* const g = g_recurrent + k * l.units * l.row;
    if (!job.recurrent_masks) {
      outer(v, l.row, l.units, steps * rows, d, l.row, l.row, g, l.row);
    } else {
      for (long t = 0; t < steps; t++)
        outer(with_dropout(v + t * rows * l.row, copy_of(k, job.recurrent_masks), masked), l.row, l.units, rows,
              d + t * rows * l.row, l.row, l.row, g, l.row);
    }
    if (job.d_recurrent_bias) add_rows(d, steps * rows, g_recurrent_bias + k * l.row);
  }
  void pull_input(long k, const T* d, long start, long steps) {
    const long F = l.features;
    const T* const w = shared.kernel + k * shared.of_block_kernel;
    T* const d_x = (T*)job.d_x + (first * l.time + start) * F;
    bool add = false;
    for (long before = 0; before < k; before++) add = add || job.d_input_of[before] >= 0;
    if (!job.input_masks) {
      if (rows >= steps)
        for (long t = 0; t < steps; t++)
          product(d + t * rows * l.row, l.row, 1, rows, l.units, w, F, d_x + t * F, l.time * F, add);
      else
        for (long b = 0; b < rows; b++)
          product(d + b * l.row, rows * l.row, 1, steps, l.units, w, F, d_x + b * l.time * F, F, add);
      return;
    }
    const T* const mask = l.of(job.input_mask[copy_of(k, job.input_masks)]);
    product(d, l.row, 1, steps * rows, l.units, w, F, product_of, F, false);
    for (long t = 0; t < steps; t++)
      for (long b = 0; b < rows; b++)
        for (long c = 0; c < F; c++) {
          T& to = d_x[(b * l.time + t) * F + c];
          to = (add ? to : T(0)) + product_of[(t * rows + b) * F + c] * mask[(first + b) * F + c];
        }
  }

  long share = 0;
};

template <class T> void add_up(const Job* j, char* memory) {
  const Layout<T> l(j);
  const Shared<T> s(l, memory);
  auto sum = [&](const T* of_first, long rows, long from_block, long to_row, void* to, long k, bool single) {
    if (!to) return;
    for (long r = 0; r < rows; r++)
      for (long c = 0; c < (single ? 1 : l.units); c++) {
        T total = 0;
        for (long share = 0; share < j->shares; share++)
          total += of_first[share * s.of_share + k * from_block + r * l.row + c];
        ((T*)to)[r * to_row + (single ? 0 : k * l.units) + c] = total;
      }
  };
  const long columns = l.blocks * l.units;
  for (long k = 0; k < l.blocks; k++) {
    sum(s.d_kernel, l.features, l.features * l.row, columns, j->d_kernel, k, false);
    sum(s.d_recurrent, l.units, l.units * l.row, columns, j->d_recurrent, k, false);
    sum(s.d_bias, 1, l.row, columns, j->d_bias, k, false);
    sum(s.d_recurrent_bias, 1, l.row, columns, j->d_recurrent_bias, k, false);
  }
  for (long i = 0; i < j->weights; i++)
    sum(s.d_weights + i * l.row, 1, 0, 0, j->weight[i].gradient, 0, j->weight[i].gradient_size == 1);
}

template <class T> int64_t size_of_share(const Job* j) {
  Share<T> share(j, nullptr, nullptr);
  return share.memory.used;
}
template <class T> void run_share(const Job* j, int index, char* shared, char* own) {
  Share<T> share(j, shared, own);
  share.share = index;
  if (j->backward) share.backward();
  else share.forward();
}

int64_t shared_size(const Job* j) {
  if (j->is_double) return Shared<double>(Layout<double>(j), nullptr).size;
  return Shared<float>(Layout<float>(j), nullptr).size;
}
int64_t share_size(const Job* j) { return j->is_double ? size_of_share<double>(j) : size_of_share<float>(j); }
void prepare_any(const Job* j, char* s) { j->is_double ? prepare<double>(j, s) : prepare<float>(j, s); }
void run_any(const Job* j, int i, char* s, char* own) {
  j->is_double ? run_share<double>(j, i, s, own) : run_share<float>(j, i, s, own);
}
void finish_any(const Job* j, char* s) {
  if (j->backward) j->is_double ? add_up<double>(j, s) : add_up<float>(j, s);
}

}  // namespace

extern const Variant VARIANT;
const Variant VARIANT = {{LANES<float>, LANES<double>}, shared_size, share_size, prepare_any, run_any, finish_any};
