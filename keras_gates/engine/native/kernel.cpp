// A cell's traced equations, run over time.
//
// Every share of the batch goes through all time steps on its own, by tiles of some rows: x_t and h
// are projected by products that stay in cache, then the program is interpreted on strips of rows
// that stay in the first level of it. Backward, the gradients of some steps are gathered and turned
// into those of the weights by one product.
//
// Where there are fewer rows than threads, some go through the steps of a share together: each of
// them computes some columns, with what the others computed of the step before. What a number is
// made of, and in which order, is the same for any number of them.
//
// Rows of a tile are filled up to whole vectors. What stands there is of no meaning, and is never
// read: products and sums over units are over `units` numbers alone.
//
// Compiled once per instruction set, with VARIANT as its name. Nothing of the C++ library is used,
// because the linker would keep one copy of it, for one instruction set.
#include "interpret.h"
#include "layout.h"

namespace {

// What one share needs for itself, and where its registers lie; or the same for a helper in it.
template <class T> struct Share {
  const Job& job;
  const Layout<T> l;
  const Shared<T> shared;
  Memory memory;
  T **origin, **base, **now;   // of each register: of its memory, at this step, at this strip of it
  long* step;            // from a vector of a register to the next: none for a constant
  T *state[2], *d_state[2], *masked, *inputs, *product_of, *local;
  T *d_projections = nullptr, *factors = nullptr, *d_products = nullptr, *d_weight = nullptr;
  T *g_kernel, *g_recurrent, *g_bias, *g_recurrent_bias, *g_weights;   // this share's part
  long rows = 0, first = 0;
  Team* team = nullptr;
  long member = 0, members = 1, left, right;   // the columns that it computes, from and to
  bool whole_rows;       // whether the program makes something of all columns

  Share(const Job* j, char* common, char* own) : job(*j), l(j), shared(l, common), memory{own} {
    const long tile = l.tile * l.row, states = j->states;
    for (int i = 0; i < 2; i++) state[i] = memory.take<T>(states * tile);
    inputs = memory.take<T>(most(1, j->input_masks) * l.steps * l.tile * l.features);
    if (j->backward) {
      for (int i = 0; i < 2; i++) d_state[i] = memory.take<T>(states * tile);
      d_projections = memory.take<T>(2 * l.blocks * l.steps * tile);
      factors = memory.take<T>(j->products * l.steps * tile);
      d_products = memory.take<T>(j->products * l.steps * tile);
      d_weight = memory.take<T>(j->weights * tile);
    }
    local = memory.take<T>(places(LOCAL) * of_local());
    left = 0, right = l.row;
    whole_rows = false;
    for (const Part* p = j->part; p < j->part + j->parts; p++)
      for (long i = p->a; p->kind == INSTRUCTIONS && i < p->b; i++)
        whole_rows = whole_rows || is_of_rows(j->code[i].operation);
    take_own(own);
  }
  // A helper's, which has the memory of the leader beside its own.
  Share(const Share& leader, char* own) : Share(leader) {
    memory = Memory{own};
    take_own(own);
  }

  long places(int32_t place) const {
    long found = 0;
    for (long i = 0; i < job.registers; i++) found += job.places[i].place == place;
    return found;
  }
  long of_local() const { return l.tile * l.row * (job.backward ? 1 : l.steps); }

  void take_own(char* own) {
    const Job* const j = &job;
    const long tile = l.tile * l.row, strip = l.strip() * l.row;
    const long of_constant = whole_rows ? l.row : LANES<T>;
    origin = memory.take<T*>(j->registers), base = memory.take<T*>(j->registers);
    now = memory.take<T*>(j->registers);
    step = memory.take<long>(j->registers);
    masked = memory.take<T>(tile);
    product_of = memory.take<T>(l.steps * l.tile * most(l.row, l.features));
    T* of_locals = local;
    for (long i = 0; i < j->registers; i++) {
      const Register& r = j->places[i];
      T* p = nullptr;
      if (r.place == SCRATCH) p = memory.take<T>(strip);
      if (r.place == CONSTANT) p = memory.take<T>(of_constant);
      if (r.place == WEIGHT) p = memory.take<T>(strip);
      if (r.place == MASK) p = memory.take<T>(tile);
      if (!own) continue;
      if (r.place == LOCAL) p = of_locals, of_locals += of_local();
      origin[i] = base[i] = p;
      step[i] = r.place == CONSTANT ? 0 : LANES<T>;
      if (r.place == CONSTANT)
        for (long c = 0; c < of_constant; c++) p[c] = (T)j->constants[r.index];
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
    multiply_rows(v, l.of(job.recurrent_mask[copy]), to);
    return to;
  }
  void multiply_rows(const T* v, const T* mask, T* to) const {
    for (long b = 0; b < rows; b++)
      for (long c = 0; c < l.units; c++)
        to[b * l.row + c] = v[b * l.row + c] * mask[(first + b) * l.units + c];
  }
  long copy_of(long k, long masks) const { return masks > 1 ? k : 0; }
  void read_mask(long index, long t, T* to) const {
    for (long b = 0; b < rows; b++) {
      const uint8_t* const of_row = (const uint8_t*)job.kept_mask[index] + ((first + b) * l.time + t) * l.units;
      for (long c = 0; c < l.units; c++) to[b * l.row + c] = of_row[c];
    }
  }

  // ------------------------------------------------------------------ together

  // Does a task with all members of the team that there are, or alone.
  void together(Task task) {
    task.first = first, task.rows = rows;
    do_columns(task, 0, team ? team->give(task) : 1);
  }
  void do_columns(const Task& task, long number, long count) {
    const long panels = (l.row + PANEL<T> - 1) / PANEL<T>;
    member = number, members = count;
    left = panels * member / members * PANEL<T>;
    right = least(l.row, panels * (member + 1) / members * PANEL<T>);
    first = task.first, rows = task.rows;
    for (long i = 0; task.what != GATHER && i < task.steps; i++) {
      if (task.what == STEPS) step_forward(task.t + i);
      else step_back(task.t - i, task, task.side ^ (i & 1));
      sync();
    }
    if (task.what == GATHER) gather(task), sync();
  }
  // Waits until all members are here.
  void sync() {
    if (members > 1) team->sync(member, members);
  }

  // The part of a step that the program computes. Products take what all members computed. If the
  // program has to have whole rows, the leader runs it, and only products are shared.
  void run_parts() {
    bool in_sync = false;
    for (const Part* p = job.part; p < job.part + job.parts; p++) {
      const bool of_all = p->kind != INSTRUCTIONS || whole_rows;
      if (of_all && !in_sync) sync();
      in_sync = false;
      if (p->kind != INSTRUCTIONS) multiply(p->kind == TRANSPOSED, p->a, base[p->b], base[p->c]);
      else if (!whole_rows) run_instructions(*p, left, right);
      else {
        if (member == 0) run_instructions(*p, 0, l.row);
        sync();
        in_sync = true;
      }
    }
  }
  void run_instructions(const Part& part, long left, long right) {
    const bool all = right - left == l.row;
    const long strip = all ? l.strip() : 1;
    for (long b = 0; b < rows; b += strip) {
      for (long i = 0; i < job.registers; i++) {
        const int32_t place = job.places[i].place;
        const bool moves = place != SCRATCH && place != CONSTANT && place != WEIGHT;
        now[i] = base[i] + (moves ? b * l.row + left : place == WEIGHT ? left : 0);
      }
      interpret(job.code + part.a, job.code + part.b, now, step,
                all ? least(strip, rows - b) * l.row : right - left, l.row, l.units);
    }
  }
  // The columns of a (rows, k) b, of which all are packed.
  void multiply_columns(const T* a, long row, long count, long k, const T* packed, T* c, long c_row,
                        bool add, const T* bias = nullptr) const {
    product(a, row, 1, count, k, packed + left * k, right - left, c + left, c_row, add,
            bias ? bias + left : bias);
  }
  void multiply(bool transposed, long k, const T* v, T* result) {
    const T* const u =
        (transposed ? shared.recurrent_back : shared.recurrent) + k * shared.of_block_recurrent;
    if (!transposed) {
      v = with_dropout(v, copy_of(k, job.recurrent_masks), masked);
      multiply_columns(v, l.row, rows, l.units, u, result, l.row, false, shared.recurrent_bias + k * l.row);
      return;
    }
    multiply_columns(v, l.row, rows, l.units, u, result, l.row, false);
    if (!job.recurrent_masks) return;
    const T* const mask = l.of(job.recurrent_mask[copy_of(k, job.recurrent_masks)]);
    for (long b = 0; b < rows; b++)
      for (long c = left; c < least(right, l.units); c++)
        result[b * l.row + c] *= mask[(first + b) * l.units + c];
  }

  // ------------------------------------------------------------------ forward

  void forward() {
    const long end = l.first_row(share + 1);
    for (first = l.first_row(share); first < end; first += rows) {
      rows = least(l.tile, end - first);
      for (long s = 0; s < job.states; s++) read_state(s, job.initial[s], state_at(s, 0));
      for (long t = 0, steps; t < l.time; t += steps) {
        steps = least(TOGETHER, l.time - t);
        together({STEPS, 0, 0, 0, (int32_t)t, (int32_t)steps, 0, 0});
      }
      for (long s = 0; s < job.states; s++) write_state(s, state_at(s, l.time), job.last[s]);
    }
  }
  void step_forward(long t) {
    place_forward(t);
    if (t % l.steps == 0) project_inputs(t, least(l.steps, l.time - t));
    project_state(t);
    run_parts();
    for (long b = 0; job.mask && b < rows; b++)
      for (long s = 0; !is_valid(first + b, t) && s < job.states; s++)
        copy_row(state_at(s, t), state_at(s, t + 1), b);
    for (long b = 0; job.sequences && b < rows; b++)
      __builtin_memcpy((T*)job.sequences + ((first + b) * l.time + t) * l.units + left,
                       state_at(0, t + 1) + b * l.row + left, count_of(l.units) * sizeof(T));
  }
  // How many of the first `width` columns are to be computed.
  long count_of(long width) const { return most(0, least(right, width) - left); }
  void copy_row(const T* of, T* copy, long b) const {
    __builtin_memcpy(copy + b * l.row + left, of + b * l.row + left, (right - left) * sizeof(T));
  }
  void place_forward(long t) {
    for (long i = 0; i < job.registers; i++) {
      const Register& r = job.places[i];
      if (r.place == STATE) base[i] = state_at(r.index, t);
      if (r.place == NEW) base[i] = state_at(r.index, t + 1);
      if (r.place == KEPT) base[i] = kept(job.kept_states + r.index, t);
      if (r.place == MASK) read_mask(r.index, t, base[i]);
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
      if (!by_row) multiply_columns(x, x_row, rows, F, w, base[i], l.row, false, bias);
      for (long b = 0; by_row && b < rows; b++)
        multiply_columns(x + b * x_row, F, steps, F, w, base[i] + b * l.row, rows * l.row, false, bias);
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
      multiply_columns(v, l.row, rows, l.units, shared.recurrent + k * shared.of_block_recurrent, base[i],
                       l.row, i == job.input_register[k], shared.recurrent_bias + k * l.row);
    }
  }

  // ------------------------------------------------------------------ backward

  void take_gradients() {
    T* const mine = shared.d_kernel + share * shared.of_share;
    g_kernel = mine, g_recurrent = mine + (shared.d_recurrent - shared.d_kernel);
    g_bias = mine + (shared.d_bias - shared.d_kernel);
    g_recurrent_bias = mine + (shared.d_recurrent_bias - shared.d_kernel);
    g_weights = mine + (shared.d_weights - shared.d_kernel);
    memset(mine, 0, shared.of_share * sizeof(T));
  }
  void backward() {
    const long end = l.first_row(share + 1);
    for (first = l.first_row(share); first < end; first += rows) {
      rows = least(l.tile, end - first);
      int side = 0;
      for (long s = 0; s < job.states; s++) read_state(s, job.d_last[s], d_state_at(s, side));
      for (long last = l.time; last > 0;) {
        const long start = (last - 1) / l.steps * l.steps;
        for (long t = last, steps; t > start; t -= steps, side ^= steps & 1) {
          steps = least(TOGETHER, t - start);
          together({STEPS_BACK, side, 0, 0, (int32_t)(t - 1), (int32_t)steps, (int32_t)start, (int32_t)last});
        }
        read_inputs(start, last - start);
        together({GATHER, side, 0, 0, (int32_t)start, (int32_t)(last - start), (int32_t)start, (int32_t)last});
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

  void step_back(long t, const Task& task, int side) {
    const long slot = t - task.start;
    T* const d = d_state_at(0, side);
    if (t + 1 < task.last) pull_state(slot + 1, d);
    for (long b = 0; job.d_sequences && b < rows; b++) {
      const T* const of_row = l.of(job.d_sequences) + ((first + b) * l.time + t) * l.units;
      for (long c = left; c < least(right, l.units); c++) d[b * l.row + c] += of_row[c];
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
        case MASK: read_mask(r.index, t, base[i]); break;
      }
    }
    project_inputs(t, 1);  // of what was not kept
    project_state(t);
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
    for (long i = 0; i < job.weights; i++)
      add_rows(d_weight + i * l.tile * l.row, rows, g_weights + i * l.row);
  }
  void clear_row(T* p, long b) const { memset(p + b * l.row + left, 0, (right - left) * sizeof(T)); }
  void add_rows(const T* p, long count, T* sum) const {
    for (long b = 0; b < count; b++)
      for (long c = left; c < right; c += LANES<T>)
        store(sum + c, load(sum + c) + load(p + b * l.row + c));
  }
  // Adds to dL/dh what comes back through h U at a step, once all columns of that are computed.
  void pull_state(long slot, T* d) {
    for (long k = 0; k < l.projected; k++) {
      if (job.d_projected_of[k] < 0) continue;
      const T* const u = shared.recurrent_back + k * shared.of_block_recurrent;
      const T* const d_k = d_projection(job.d_projected_of[k], slot);
      if (!job.recurrent_masks) {
        multiply_columns(d_k, l.row, rows, l.units, u, d, l.row, true);
        continue;
      }
      multiply_columns(d_k, l.row, rows, l.units, u, product_of, l.row, false);
      const T* const mask = l.of(job.recurrent_mask[copy_of(k, job.recurrent_masks)]);
      for (long b = 0; b < rows; b++)
        for (long c = left; c < least(right, l.units); c++)
          d[b * l.row + c] += product_of[b * l.row + c] * mask[(first + b) * l.units + c];
    }
  }

  void read_inputs(long start, long steps) {
    const long F = l.features;
    for (long copy = 0; copy < most(1, job.input_masks); copy++)
      for (long t = 0; t < steps; t++)
        for (long b = 0; b < rows; b++) {
          const T* const x = l.of(job.x) + ((first + b) * l.time + start + t) * F;
          T* const to = input_copy(copy) + (t * rows + b) * F;
          if (!job.input_masks) __builtin_memcpy(to, x, F * sizeof(T));
          for (long c = 0; job.input_masks && c < F; c++)
            to[c] = x[c] * l.of(job.input_mask[copy])[(first + b) * F + c];
        }
  }
  // Adds the gradients of the weights from those of the steps that were gathered, and writes dL/dx.
  void gather(const Task& task) {
    const long F = l.features, start = task.t, steps = task.steps, count = steps * rows;
    const long begin = steps * member / members, end = steps * (member + 1) / members;   // of dL/dx
    pull_state(0, d_state_at(0, task.side));
    for (long k = 0; k < l.blocks; k++) {
      if (job.d_input_of[k] < 0) continue;
      const T* const d = d_projection(job.d_input_of[k], 0);
      outer_columns(input_copy(copy_of(k, job.input_masks)), F, F, count, d, g_kernel + k * F * l.row);
      if (job.d_bias) add_rows(d, count, g_bias + k * l.row);
      if (job.d_x) pull_input(k, d, start, steps, begin, end);
    }
    for (long k = 0; k < l.projected; k++)
      if (job.d_projected_of[k] >= 0)
        gather_product(k, state_at(0, start), d_projection(job.d_projected_of[k], 0), steps);
    for (long i = 0; i < job.products; i++)
      gather_product(job.product_block[i], of_product(factors, i, 0), of_product(d_products, i, 0), steps);
  }
  void gather_product(long k, const T* v, const T* d, long steps) {
    T* const g = g_recurrent + k * l.units * l.row;
    if (!job.recurrent_masks) {
      outer_columns(v, l.row, l.units, steps * rows, d, g);
    } else {
      for (long t = 0; t < steps; t++)
        outer_columns(with_dropout(v + t * rows * l.row, copy_of(k, job.recurrent_masks), masked), l.row,
                      l.units, rows, d + t * rows * l.row, g);
    }
    if (job.d_recurrent_bias) add_rows(d, steps * rows, g_recurrent_bias + k * l.row);
  }
  // The columns of g (m, row) += transpose(v (k, m)) d (k, row).
  void outer_columns(const T* v, long v_row, long m, long k, const T* d, T* g) const {
    outer(v, v_row, m, k, d + left, l.row, right - left, g + left, l.row);
  }
  void pull_input(long k, const T* d, long start, long steps, long begin, long end) {
    const long F = l.features;
    const T* const w = shared.kernel_back + k * shared.of_block_kernel_back;
    T* const d_x = (T*)job.d_x + (first * l.time + start) * F;
    bool add = false;
    for (long before = 0; before < k; before++) add = add || job.d_input_of[before] >= 0;
    if (!job.input_masks) {
      if (rows >= steps)
        for (long t = begin; t < end; t++)
          product(d + t * rows * l.row, l.row, 1, rows, l.units, w, F, d_x + t * F, l.time * F, add);
      else
        for (long b = 0; b < rows; b++)
          product(d + (begin * rows + b) * l.row, rows * l.row, 1, end - begin, l.units, w, F,
                  d_x + (b * l.time + begin) * F, F, add);
      return;
    }
    const T* const mask = l.of(job.input_mask[copy_of(k, job.input_masks)]);
    product(d + begin * rows * l.row, l.row, 1, (end - begin) * rows, l.units, w, F, product_of, F, false);
    for (long t = begin; t < end; t++)
      for (long b = 0; b < rows; b++)
        for (long c = 0; c < F; c++) {
          T& to = d_x[(b * l.time + t) * F + c];
          to = (add ? to : T(0)) + product_of[((t - begin) * rows + b) * F + c] * mask[(first + b) * F + c];
        }
  }

  long share = 0;
};

template <class T> int64_t size_of_share(const Job* j) {
  Share<T> share(j, nullptr, nullptr);
  return share.memory.used;
}
template <class T> void help(Team& team, char* own) {
  int number;
  const auto* const leader = (const Share<T>*)team.join(&number);
  if (!leader) return;
  Share<T> share(*leader, own);
  Task task;
  while (const int members = team.next(number, &task)) {
    share.do_columns(task, number, members);
  }
}
template <class T> void run_share(const Job* j, int index, char* shared, char* own, Team* team, bool leads) {
  if (!leads) return help<T>(*team, own);
  Share<T> share(j, shared, own);
  share.share = index, share.team = team;
  if (j->backward) share.take_gradients();
  const Share<T> shown = share;
  if (team) team->lead(&shown);
  if (j->backward) share.backward();
  else share.forward();
}

// `F` of float or double.
#define OF_TYPE(F) (j->is_double ? F<double> : F<float>)

int64_t kept_size(const Job* j) {
  return j->batch * (j->is_double ? Layout<double>(j).kept_per_row() : Layout<float>(j).kept_per_row());
}
int64_t shared_size(const Job* j) {
  if (j->is_double) return Shared<double>(Layout<double>(j), nullptr).size;
  return Shared<float>(Layout<float>(j), nullptr).size;
}
int64_t share_size(const Job* j) { return OF_TYPE(size_of_share)(j); }
int64_t parts(const Job* j) { return BY_BLOCK * j->blocks; }
void prepare_any(const Job* j, char* s, int part) { OF_TYPE(prepare)(j, s, part); }
void run_any(const Job* j, int i, char* s, char* own, Team* team, bool leads) {
  OF_TYPE(run_share)(j, i, s, own, team, leads);
}
void finish_any(const Job* j, char* s, int part) {
  if (j->backward) OF_TYPE(add_up)(j, s, part);
}

}  // namespace

extern const Variant VARIANT;
const Variant VARIANT = {{LANES<float>, LANES<double>}, kept_size, shared_size, share_size, parts,
                         prepare_any, finish_any, run_any};
