// An operation of TensorFlow that does a call of the kernel, for its graphs.
//
// Made of TensorFlow's C interface for plug-ins, which is found in the process: nothing of
// TensorFlow is needed to build this, and where it is not loaded there is no operation.
// `tf.load_op_library` loads this library, and learns of what is registered meanwhile.
#ifndef _WIN32
#include "call.h"

#include <algorithm>
#include <dlfcn.h>

#include <string>
#include <vector>

namespace {

struct Status;
struct Tensor;
struct Context;
struct Construction;
struct Builder;
enum Code { INVALID_ARGUMENT = 3, RESOURCE_EXHAUSTED = 8, FAILED_PRECONDITION = 9 };

// Functions of TensorFlow by name: TF_<name>.
#define FUNCTIONS(F)                                                                            \
  F(Status*, NewStatus, ())                                                                     \
  F(void, DeleteStatus, (Status*))                                                              \
  F(void, SetStatus, (Status*, int code, const char*))                                          \
  F(int, GetCode, (const Status*))                                                              \
  F(Builder*, NewOpDefinitionBuilder, (const char*))                                            \
  F(void, OpDefinitionBuilderAddAttr, (Builder*, const char*))                                  \
  F(void, OpDefinitionBuilderAddInput, (Builder*, const char*))                                 \
  F(void, OpDefinitionBuilderAddOutput, (Builder*, const char*))                                \
  F(void, RegisterOpDefinition, (Builder*, Status*))                                            \
  F(Builder*, NewKernelBuilder, (const char* name, const char* device, void* (*)(Construction*), \
                                 void (*)(void*, Context*), void (*)(void*)))                   \
  F(void, RegisterKernelBuilder, (const char*, Builder*, Status*))                              \
  F(void, OpKernelConstruction_GetAttrInt64, (Construction*, const char*, int64_t*, Status*))   \
  F(void, OpKernelConstruction_Failure, (Construction*, Status*))                               \
  F(void, OpKernelContext_Failure, (Context*, Status*))                                         \
  F(int, NumInputs, (Context*))                                                                 \
  F(int, NumOutputs, (Context*))                                                                \
  F(int, ExpectedOutputDataType, (Context*, int))                                               \
  F(void, GetInput, (Context*, int, Tensor**, Status*))                                         \
  F(void, SetOutput, (Context*, int, const Tensor*, Status*))                                   \
  F(Tensor*, AllocateOutput, (Context*, int, int type, const int64_t*, int, size_t, Status*))   \
  F(Tensor*, NewTensor, (int type, const int64_t*, int, void*, size_t,                          \
                         void (*)(void*, size_t, void*), void*))                                \
  F(void, DeleteTensor, (Tensor*))                                                              \
  F(void*, TensorData, (const Tensor*))                                                         \
  F(size_t, TensorByteSize, (const Tensor*))                                                    \
  F(int, NumDims, (const Tensor*))                                                              \
  F(int64_t, Dim, (const Tensor*, int))

#define DECLARE(result, name, arguments) result(*name) arguments;
struct {
  FUNCTIONS(DECLARE)
} tf;

bool found_all(void* library) {
  bool all = true;
#define FIND(result, name, arguments) \
  all = all && (tf.name = (result(*) arguments)dlsym(library, "TF_" #name));
  FUNCTIONS(FIND)
  return all;
}

// The tensors of one call.
struct Tensors {
  std::vector<Tensor*> all;
  Status* const status = tf.NewStatus();
  ~Tensors() {
    for (Tensor* tensor : all)
      if (tensor) tf.DeleteTensor(tensor);
    tf.DeleteStatus(status);
  }
  bool fails() const { return tf.GetCode(status); }
};

Tensor* result(Context* context, int index, const std::vector<int64_t>& shape, int64_t bytes,
               Tensors& tensors) {
  const int type = tf.ExpectedOutputDataType(context, index);
  if (bytes < LARGE)
    return tf.AllocateOutput(context, index, type, shape.data(), shape.size(), bytes, tensors.status);
  void* const memory = take(bytes);
  if (!memory) {
    tf.SetStatus(tensors.status, RESOURCE_EXHAUSTED, "no memory is left for a recurrent layer");
    return nullptr;
  }
  auto free = [](void* data, size_t, void*) { give(data); };
  Tensor* const tensor = tf.NewTensor(type, shape.data(), shape.size(), memory, bytes, free, nullptr);
  tf.SetOutput(context, index, tensor, tensors.status);
  return tensor;
}

void compute(const Call& call, Context* context, Tensors& t) {
  auto wrong = [&](const std::string& message) {
    tf.SetStatus(t.status, INVALID_ARGUMENT, ("recurrent layer: " + message).c_str());
  };
  if (tf.NumInputs(context) != call.inputs || tf.NumOutputs(context) != call.results)
    return wrong("the call has another number of inputs or results");
  std::vector<const void*> inputs;
  std::vector<int64_t> bytes;
  for (int i = 0; i < call.inputs; i++) {
    Tensor* tensor = nullptr;
    tf.GetInput(context, i, &tensor, t.status);
    if (t.fails()) return;
    t.all.push_back(tensor);
    inputs.push_back(tf.TensorData(tensor));
    bytes.push_back(tf.TensorByteSize(tensor));
  }
  if (tf.NumDims(t.all[0]) != 3) return wrong("the sequences must be (batch, time, features)");
  const int64_t batch = tf.Dim(t.all[0], 0), time = tf.Dim(t.all[0], 1);
  const int64_t size = call.choice[0].is_double ? 8 : 4;
  std::vector<void*> results;
  for (int i = 0; i < call.results; i++) {
    std::vector<int64_t> shape;
    if (call.like[i] == SEQUENCES) shape = {batch, time, call.choice[0].units};
    else if (call.like[i] == MEMORY) shape = {kept_numbers(&call, batch, time)};
    else
      for (int d = 0; d < tf.NumDims(t.all[call.like[i]]); d++)
        shape.push_back(tf.Dim(t.all[call.like[i]], d));
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    t.all.push_back(result(context, i, shape, count * size, t));
    if (t.fails()) return;
    results.push_back(tf.TensorData(t.all.back()));
  }
  const int failed = run(&call, batch, time, inputs.data(), bytes.data(), results.data());
  if (!failed) return;
  auto shape = [&](Tensor* tensor) {
    std::vector<int64_t> shape;
    for (int d = 0; d < tf.NumDims(tensor); d++) shape.push_back(tf.Dim(tensor, d));
    return shape;
  };
  tf.SetStatus(t.status, failed < 0 ? RESOURCE_EXHAUSTED : INVALID_ARGUMENT,
               failure(&call, failed, shape(t.all[0]), shape(t.all[std::max(0, failed - 1)])).c_str());
}

void* create(Construction* construction) {
  Tensors t;
  int64_t number = 0;
  tf.OpKernelConstruction_GetAttrInt64(construction, "call", &number, t.status);
  const Call* const call = t.fails() ? nullptr : call_of(number);
  if (!call)
    tf.SetStatus(t.status, FAILED_PRECONDITION, OF_ANOTHER_PROCESS);
  if (t.fails()) tf.OpKernelConstruction_Failure(construction, t.status);
  return (void*)call;
}

void compute_all(void* call, Context* context) {
  Tensors t;
  compute(*(const Call*)call, context, t);
  if (t.fails()) tf.OpKernelContext_Failure(context, t.status);
}

bool register_operation() {
  void* library = nullptr;
  for (const char* name : {"libtensorflow_framework.so.2", "@rpath/libtensorflow_framework.2.dylib"})
    if (!library) library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
  if (!library || !found_all(library)) return false;
  constexpr const char* NAME = "KerasGatesCall";
  Builder* const definition = tf.NewOpDefinitionBuilder(NAME);
  for (const char* attribute : {"call: int", "given: list(type) >= 1", "results: list(type) >= 1"})
    tf.OpDefinitionBuilderAddAttr(definition, attribute);
  tf.OpDefinitionBuilderAddInput(definition, "inputs: given");
  tf.OpDefinitionBuilderAddOutput(definition, "outputs: results");
  Tensors t;
  tf.RegisterOpDefinition(definition, t.status);
  if (t.fails()) return false;
  Builder* const kernel = tf.NewKernelBuilder(NAME, "CPU", create, compute_all, [](void*) {});
  tf.RegisterKernelBuilder(NAME, kernel, t.status);
  return !t.fails();
}

const bool registered = register_operation();

}  // namespace

#endif
