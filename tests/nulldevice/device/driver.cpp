// The driver's interface, modules, and the reading of counters.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "device.h"

extern "C" {
static size_t image_size(const void* image) {
  auto b = static_cast<const unsigned char*>(image);
  auto word = [&](size_t at, auto type) {
    memcpy(&type, b + at, sizeof type);
    return type;
  };
  if (!memcmp(b,
              "\x7f"
              "ELF",
              4))
    return std::max(word(40, uint64_t()) + uint64_t(word(60, uint16_t())) * word(58, uint16_t()),
                    word(32, uint64_t()) + uint64_t(word(56, uint16_t())) * word(54, uint16_t()));
  if (word(0, uint32_t()) == 0xba55ed50) return word(6, uint16_t()) + word(8, uint64_t());
  return strlen(static_cast<const char*>(image));
}
static CUresult load(Module** out, const void* image, const char* where) {
  if (cudaError_t e = refuse_unsafe(where)) return result(e);
  *out = new Module{std::string(static_cast<const char*>(image), image_size(image)), {}};
  COUNT(module_loads), COUNT(live_modules);
  return CUDA_SUCCESS;
}
static Function* find(Module* m, const char* name) {
  Lock hold(state().lock);
  bool readable = m->image[0] == '\x7f' || m->image[0] == '/' || m->image[0] == '.';  // else it may be compressed
  if (readable && m->image.find(name) == std::string::npos) return nullptr;
  Function*& f = m->functions[name];
  if (!f) {
    f = new Function{name};
    std::string key = name;
    for (int i = 2; state().by_name.count(key); ++i) key = std::string(name) + "#" + std::to_string(i);
    state().by_name[key] = f;
  }
  return f;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t* out, const void* code, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  return static_cast<cudaError_t>(load(reinterpret_cast<Module**>(out), code, __func__));
}
cudaError_t cudaLibraryUnload(cudaLibrary_t) {
  counters.live_modules--;
  return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t m, const char* name) {
  *k = reinterpret_cast<cudaKernel_t>(find(reinterpret_cast<Module*>(m), name));
  if (!*k) FAIL(cudaErrorSymbolNotFound);
  return cudaSuccess;
}

static CUcontext context(int d) { return reinterpret_cast<CUcontext>(uintptr_t(0x1000) * (d + 1)); }
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* v) {
  *v = CUDA_VERSION;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* n) { return result(cudaGetDeviceCount(n)); }
CUresult cuDeviceGet(CUdevice* d, int i) {
  *d = i;
  return i < 0 || i >= state().devices ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* s, int n, CUdevice) {
  snprintf(s, n, "NVIDIA H100 80GB HBM3 (nulldevice)");
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t* n, CUdevice) {
  *n = kMemory;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid* u, CUdevice d) {
  memset(u, 0, sizeof *u);
  u->bytes[0] = d + 1;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) {
  *v = device_attribute(a);
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  if (flags) *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) {
  *c = context(d);
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = context(current);
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext c) {
  if (c) current = reinterpret_cast<uintptr_t>(c) / 0x1000 - 1;
  return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext c) { return cuCtxSetCurrent(c); }
CUresult cuCtxPopCurrent(CUcontext* c) {
  if (c) *c = context(current);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* d) {
  *d = current;
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() { return result(cudaDeviceSynchronize()); }
CUresult cuCtxGetLimit(size_t* v, CUlimit) {
  *v = 1 << 20;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult e, const char** s) {
  *s = cudaGetErrorName(static_cast<cudaError_t>(e));
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char** s) {
  *s = cudaGetErrorString(static_cast<cudaError_t>(e));
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  return load(reinterpret_cast<Module**>(m), image, __func__);
}
CUresult cuModuleLoadDataEx(CUmodule* m, const void* image, unsigned, CUjit_option*, void**) {
  return load(reinterpret_cast<Module**>(m), image, __func__);
}
CUresult cuModuleLoad(CUmodule* m, const char* path) {  // of torch.compile's launcher
  std::ifstream file(path, std::ios::binary);
  std::string image((std::istreambuf_iterator<char>(file)), {});
  return image.empty() ? CUDA_ERROR_FILE_NOT_FOUND : load(reinterpret_cast<Module**>(m), image.c_str(), __func__);
}
CUresult cuModuleUnload(CUmodule) {
  counters.live_modules--;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  *f = reinterpret_cast<CUfunction>(find(reinterpret_cast<Module*>(m), name));
  return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
       : a == CU_FUNC_ATTRIBUTE_NUM_REGS                      ? 32
       : a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? reinterpret_cast<Function*>(f)->max_dynamic
                                                              : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  return result(set_attribute(reinterpret_cast<Function*>(f), a, v, __func__));
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void**, void**) {
  return result(launch(reinterpret_cast<Function*>(f), {gx, gy, gz}, {bx, by, bz}, shared, s, __func__));
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void**, void**) {
  return result(launch(reinterpret_cast<Function*>(f), {c->gridDimX, c->gridDimY, c->gridDimZ},
                       {c->blockDimX, c->blockDimY, c->blockDimZ}, c->sharedMemBytes, c->hStream, __func__));
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int threads, size_t shared) {
  *n = blocks_per_multiprocessor(threads, shared);
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) {
  *n = 66;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* v, CUpointer_attribute a, CUdeviceptr p) {
  cudaPointerAttributes known;
  cudaPointerGetAttributes(&known, reinterpret_cast<void*>(p));
  if (known.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
  switch (a) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      *static_cast<CUdeviceptr*>(v) = p;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(v) = known.type == cudaMemoryTypeDevice ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(v) = known.device;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *static_cast<CUcontext*>(v) = context(known.device);
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<bool*>(v) = false;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}
CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute* a, void** v, CUdeviceptr p) {
  for (unsigned i = 0; i < n; ++i)
    if (cuPointerGetAttribute(v[i], a[i], p)) memset(v[i], 0, 4);
  return CUDA_SUCCESS;
}
CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* n, CUdeviceptr p) {
  Lock hold(state().lock);
  auto block = block_of(reinterpret_cast<void*>(p));
  if (!block) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = reinterpret_cast<CUdeviceptr>(block->first);
  if (n) *n = block->second.size;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* m, CUtensorMapDataType, cuuint32_t rank, void* p, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  memset(m, 0, sizeof *m);
  return rank < 1 || rank > 5 || reinterpret_cast<uintptr_t>(p) % 16 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
// Virtual memory, as torch's expandable segments use it: the reserved range is the memory.

static int unknown_entry() { return CUDA_ERROR_NOT_SUPPORTED; }
static void* entry(const char* name) {
  for (const char* suffix : {"_v4", "_v3", "_v2", ""})
    if (void* p = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str())) return p;
  if (state().verbose) fprintf(stderr, "nulldevice: driver entry %s is unknown\n", name);
  return reinterpret_cast<void*>(unknown_entry);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** p, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  *p = entry(name);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
CUresult cuGetProcAddress(const char* name, void** p, int, cuuint64_t, CUdriverProcAddressQueryResult* status) {
  *p = entry(name);
  if (status) *status = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

void nulldevice_counters(uint64_t* out) { memcpy(out, static_cast<void*>(&counters), sizeof counters); }
void nulldevice_reset() {  // the live_* gauges stay
  auto fields = reinterpret_cast<std::atomic<uint64_t>*>(&counters);
  for (size_t i = 0; i < kResettable; ++i) fields[i] = 0;
  Lock hold(state().lock);
  for (auto& f : state().by_name) f.second->launches = 0;
}
size_t nulldevice_kernels(char* out, size_t room) {  // lines "count name", as many bytes as there are or fit
  Lock hold(state().lock);
  std::string text;
  for (auto& f : state().by_name)
    if (f.second->launches) text += std::to_string(f.second->launches) + " " + f.first + "\n";
  if (out) memcpy(out, text.data(), std::min(room, text.size()));
  return text.size();
}
int nulldevice_unsupported(const char* name, int code) {  // what the generated stubs of unanswered calls return
  COUNT(errors);
  if (state().verbose) fprintf(stderr, "nulldevice: %s is not answered: returns %d\n", name, code);
  return code;
}
}  // extern "C"
