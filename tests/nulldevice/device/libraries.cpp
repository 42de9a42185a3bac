// The entries of cuBLAS, cuBLASLt and cuDNN whose answers host code reads. stubs.py makes all others. Only the position
// of an argument matters, so that of their headers only cuDNN's is needed, for its constants.
#include <cudnn.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "counters.h"

namespace {
struct Handle {
  void* stream;
  int math, pointer;
};  // what every XCreate returns
struct Attribute {
  int name, type;
  int64_t count;
  std::vector<char> bytes;
};
struct Descriptor {
  int type;
  std::vector<Attribute> attributes;
  Attribute* find(int name) {
    for (auto& a : attributes)
      if (a.name == name) return &a;
    return nullptr;
  }
  void set(int name, int type_, int64_t count, const void* p, size_t size) {
    Attribute* a = find(name);
    if (!a) a = &attributes.emplace_back();
    auto b = static_cast<const char*>(p);
    a->name = name, a->type = type_, a->count = count;
    a->bytes.assign(b, b + count * size);
  }
};
size_t size_of(int type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_FRACTION:
      return 16;
    default:
      return 4;
  }
}
const int64_t kWorkspace = 1 << 20;
}  // namespace

extern "C" {
// Handles and descriptors, for the generated XCreate, XSetStream, XGetStream and XDestroy
void* nulldevice_handle() { return calloc(1, 64 + sizeof(Handle)); }
void nulldevice_set_stream(void* h, void* s) { static_cast<Handle*>(h)->stream = s; }
void* nulldevice_stream(void* h) { return h ? static_cast<Handle*>(h)->stream : nullptr; }
void nulldevice_free_handle(void* h) { free(h); }
void nulldevice_execute(void* h, const char* name) { count_library_launch(nulldevice_stream(h), name); }

int cublasGetMathMode(Handle* h, int* mode) {
  *mode = h->math;
  return 0;
}
int cublasSetMathMode(Handle* h, int mode) {
  h->math = mode;
  return 0;
}
int cublasGetPointerMode_v2(Handle* h, int* mode) {
  *mode = h->pointer;
  return 0;
}
int cublasSetPointerMode_v2(Handle* h, int mode) {
  h->pointer = mode;
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int wanted, void* results, int* n) {
  struct Result {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
  };
  *n = wanted > 0;
  if (*n) {
    memset(results, 0, sizeof(Result));
    static_cast<Result*>(results)->waves = 1;
  }
  return 0;
}
int cublasLtMatmul(void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*,
                   size_t, void* stream) {
  count_library_launch(stream, "cublasLtMatmul");
  return 0;
}
// cuDNN's legacy interface: sizes
using Tensor = cudnnTensorDescriptor_t;
using Activation = cudnnActivationDescriptor_t;
using Mode = cudnnBatchNormMode_t;
using Ops = cudnnBatchNormOps_t;
const cudnnStatus_t OK = CUDNN_STATUS_SUCCESS;
cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(cudnnHandle_t, Mode, Ops, Tensor, Tensor, Tensor,
                                                                       Tensor, Activation, size_t* n) {
  *n = kWorkspace;
  return OK;
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(cudnnHandle_t, Mode, Ops, Tensor, Tensor, Tensor,
                                                                Tensor, Tensor, Tensor, Activation, size_t* n) {
  *n = kWorkspace;
  return OK;
}
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, Mode, Ops, Activation, Tensor,
                                                                   size_t* n) {
  *n = 4096;
  return OK;
}
cudnnStatus_t cudnnDropoutGetStatesSize(cudnnHandle_t, size_t* n) {
  *n = 4096;
  return OK;
}

// cuDNN's graph interface: descriptors store their attributes, heuristics return one engine
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, void** out) {
  *out = new Descriptor{type, {}};
  return OK;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(void* d) {
  delete static_cast<Descriptor*>(d);
  return OK;
}
cudnnStatus_t cudnnBackendFinalize(void*) { return OK; }
cudnnStatus_t cudnnBackendSetAttribute(void* d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                       int64_t count, const void* p) {
  static_cast<Descriptor*>(d)->set(name, type, count, p, size_of(type));
  return OK;
}
cudnnStatus_t cudnnBackendGetAttribute(void* const d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* p) {
  int64_t one = 1, zero = 0, ignored;
  if (!count) count = &ignored;
  auto answer = [&](const void* value, int64_t n, size_t size) {
    *count = n;
    if (p && wanted > 0) memcpy(p, value, (n < wanted ? n : wanted) * size);
    return OK;
  };
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      *count = one;  // the caller's own empty descriptor stands for the result
      return OK;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
      return answer(&kWorkspace, 1, 8);
    case CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION:
      return answer("{}", 3, 1);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
      return answer(&zero, 1, 8);
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
      return answer(&one, 1, 8);
    default:
      if (Attribute* a = static_cast<Descriptor*>(d)->find(name))
        return answer(a->bytes.data(), a->count, size_of(type));
      *count = 0;
      return OK;
  }
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, void*, void*) {
  nulldevice_execute(handle, "cudnnBackendExecute");
  return OK;
}
}  // extern "C"
