// A function of XLA that does a call of the kernel, for JAX.
//
// Its arguments are laid out as XLA's C interface for foreign functions says (version 0.x, of which
// later ones add fields at the end); nothing of XLA is needed to build this.
#include "call.h"

#include <algorithm>
#include <string>
#include <vector>

namespace {

struct Extension { size_t size; int type; Extension* next; };
struct Version { size_t size; Extension* extension; int major, minor; };
struct ErrorArguments { size_t size; Extension* extension; const char* message; int code; };
struct Api {
  size_t size; Extension* extension;
  Version version;
  const void* internal;
  void* (*create_error)(ErrorArguments*);
};
struct Metadata { size_t size; Version version; uint32_t traits; };
struct MetadataExtension { Extension base; Metadata* metadata; };
struct Buffer { size_t size; Extension* extension; int type; void* data; int64_t rank; int64_t* dims; };
struct Buffers { size_t size; Extension* extension; int64_t count; int* types; Buffer** buffers; };
struct Name { const char* text; size_t length; };
struct Scalar { int type; void* value; };
struct Attributes {
  size_t size; Extension* extension;
  int64_t count; int* types; Name** names; void** values;
};
struct Frame {
  size_t size; Extension* extension;
  const Api* api; void* context; int stage;
  Buffers arguments, results;
  Attributes attributes;
};
constexpr int METADATA = 1, SCALAR = 3, BOOLEAN = 1, INT64 = 5, FLOAT64 = 12;
enum Code { INVALID_ARGUMENT = 3, RESOURCE_EXHAUSTED = 8, FAILED_PRECONDITION = 9 };

void* error(const Frame* frame, Code code, const std::string& message) {
  ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message.c_str(), code};
  return frame->api->create_error(&arguments);
}

}  // namespace

// An error, or null.
API void* call_by_xla(Frame* frame) {
  if (frame->extension && frame->extension->type == METADATA) {
    // All fields above are in every version 0.x; whether this is one, XLA checks.
    Version& version = ((MetadataExtension*)frame->extension)->metadata->version;
    version.major = 0, version.minor = frame->api->version.minor;
    return nullptr;
  }
  const Attributes& given = frame->attributes;
  const Call* call = nullptr;
  if (given.count == 1 && given.types[0] == SCALAR && ((Scalar*)given.values[0])->type == INT64)
    call = call_of(*(int64_t*)((Scalar*)given.values[0])->value);
  if (!call)
    return error(frame, FAILED_PRECONDITION, OF_ANOTHER_PROCESS);
  const Buffers &in = frame->arguments, &out = frame->results;
  if (in.count != call->inputs || out.count != call->results || in.buffers[0]->rank != 3)
    return error(frame, INVALID_ARGUMENT, "recurrent layer: another number of arrays is needed");
  std::vector<const void*> inputs;
  std::vector<int64_t> bytes;
  for (int i = 0; i < in.count; i++) {
    const Buffer& buffer = *in.buffers[i];
    int64_t size = buffer.type == BOOLEAN ? 1 : buffer.type == FLOAT64 ? 8 : 4;
    for (int d = 0; d < buffer.rank; d++) size *= buffer.dims[d];
    inputs.push_back(buffer.data);
    bytes.push_back(size);
  }
  std::vector<void*> results;
  for (int i = 0; i < out.count; i++) results.push_back(out.buffers[i]->data);
  const int64_t batch = in.buffers[0]->dims[0], time = in.buffers[0]->dims[1];
  const int failed = run(call, batch, time, inputs.data(), bytes.data(), results.data());
  if (!failed) return nullptr;
  auto shape = [&](const Buffer& buffer) {
    return std::vector<int64_t>(buffer.dims, buffer.dims + buffer.rank);
  };
  return error(frame, failed < 0 ? RESOURCE_EXHAUSTED : INVALID_ARGUMENT,
               failure(call, failed, shape(*in.buffers[0]), shape(*in.buffers[std::max(0, failed - 1)])));
}
