// What Python hands to the kernel, and what the parts of the library know of each other.
#pragma once
#include <cstdint>

#include "team.h"

struct Instruction { int32_t operation, to, a, b, c; };

// Where a register lies. Scratch and what is fixed are as large as a strip, the others as a tile.
enum Place : int32_t {
  SCRATCH,     // computed and used within a strip of rows
  CONSTANT,    // a number: index into `constants`
  WEIGHT,      // one number per unit, or a single one: index into `weights`
  STATE, NEW,  // a state before and after the step
  KEPT,        // computed forward, at hand backward
  LOCAL,       // a tile of its own: projections, and what products in the equations take and give
  D_STATE, D_NEW,              // the gradients at a state before and after the step
  D_INPUT, D_PROJECTED,        // the gradients at x W_k + b_k and at h U_k + c_k
  FACTOR, D_PRODUCT,           // of a product v U_k in the equations: v, and the gradient at it
  D_WEIGHT,                    // of a weight that the equations use, to be added up over rows
  MASK                         // 1 where zoneout keeps a state at this step, and else 0
};

struct Register { int32_t place, index; };

// A part of a step: instructions a to b; or a product to register c: v U_k, or v transpose(U_k).
enum Kind : int32_t { INSTRUCTIONS, PRODUCT, TRANSPOSED };
struct Part { int32_t kind, a, b, c; };   // of a product: the block, v, the result

// Entry i of this table is the i-th WEIGHT and, for something else, the i-th D_WEIGHT: where they
// lie, and the number of the weight among those of the cell, or -1.
struct Weight {
  const void* values; int64_t size;
  void* gradient; int64_t gradient_size;
  int32_t source, gradient_of;
};

struct Job {
  int64_t batch, time, features, units;
  int32_t backward, is_double;
  int32_t shares, members;   // of the batch; threads at most that do one of them together
  int32_t tile;              // rows of a tile at most
  // Of W; of U; and of those how many, from the first on, h itself is multiplied with.
  int32_t blocks, recurrent_blocks, projected;
  int32_t states, sums;                        // the last `sums` states are single columns
  int32_t kept_states, kept;                   // the first so many states and further values
  int32_t registers, parts, products, weights;   // weights: how many D_WEIGHT
  const Register* places;
  const Instruction* code;
  const Part* part;
  const double* constants;
  const int32_t* input_register;      // that x W_k + b_k of each block is computed into, or -1
  const int32_t* projected_register;  // likewise h U_k + c_k; the same: it is added
  const int32_t* product_block;       // of each FACTOR
  // Which D_INPUT holds each block's gradient, or -1. From `blocks` on they are the D_PROJECTED.
  const int32_t *d_input_of, *d_projected_of;
  const Weight* weight;
  const void *x, *kernel, *recurrent, *bias, *recurrent_bias;
  const uint8_t* mask;                // (batch, time), or null
  int32_t input_masks, recurrent_masks;       // none, one, or one per block
  int32_t kept_masks;
  const void* const* input_mask;
  const void* const* recurrent_mask;
  const void* const* kept_mask;       // each of bytes (batch, time, units)
  const void* const* initial;
  void* const* last;
  void* sequences;                    // (batch, time, units), or null
  void* memory;                       // what is kept for the backward pass, or null
  const void* d_sequences;
  const void* const* d_last;          // each may be null
  void* const* d_initial;
  void *d_x, *d_kernel, *d_recurrent, *d_bias, *d_recurrent_bias;   // d_x and the biases may be null
};

// The kernel for one instruction set.
struct Variant {
  int32_t lanes[2];                                           // of float and double
  int64_t (*kept_size)(const Job*);                           // numbers that are kept
  int64_t (*shared_size)(const Job*);                         // bytes that all shares use together
  int64_t (*share_size)(const Job*);                          // bytes of each
  // Before and after all shares, by parts, which do not depend on each other.
  int64_t (*parts)(const Job*);
  void (*prepare)(const Job*, char* shared, int part);
  void (*finish)(const Job*, char* shared, int part);
  // A share: the whole of it, or as a member of its team.
  void (*run)(const Job*, int share, char* shared, char* own, Team*, bool leads);
};

