// The runtime's registration of compiled kernels, devices, errors and launches.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "device.h"

int device_attribute(int which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
      return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return 227 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return 228 << 10;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
      return 1 << 10;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return 2048;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
      return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return 132;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return 0;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
      return 3;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
      return 1;
    default:
      return 0;
  }
}

cudaError_t set_attribute(Function* f, int which, int v, const char* where) {
  if (!f) return fail(cudaErrorInvalidDeviceFunction, where);
  if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (v < 0 || v > 227 << 10) return fail(cudaErrorInvalidValue, where);
    f->max_dynamic = std::max(v, 48 << 10);
  }
  return cudaSuccess;
}

int blocks_per_multiprocessor(int threads, size_t shared) {
  int n = std::min(32, 2048 / std::max(32, (threads + 31) / 32 * 32));
  return std::min<size_t>(n, (228 << 10) / (shared + 1024));
}

extern "C" {
void** __cudaRegisterFatBinary(void* image) { return new void*(image); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  Lock hold(state().lock);
  state().functions[host] = function_named(name);
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
static thread_local std::vector<Configuration> configurations;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) FAIL(cudaErrorMissingConfiguration);
  auto c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared, *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(function_of(host));
  if (!*kernel) FAIL(cudaErrorInvalidDeviceFunction);
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
  return launch(reinterpret_cast<Function*>(kernel), grid, block, shared, stream, __func__);
}

cudaError_t cudaGetDeviceCount(int* n) {
  *n = state().devices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= state().devices) FAIL(cudaErrorInvalidDevice);
  current = d;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d < 0 || d >= state().devices) FAIL(cudaErrorInvalidDevice);
  *v = device_attribute(a);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d < 0 || d >= state().devices) FAIL(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3 (nulldevice)");
  p->totalGlobalMem = kMemory;
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
  p->reservedSharedMemPerBlock = 1 << 10, p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32;
  p->memPitch = 2147483647, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32, p->multiProcessorCount = 132, p->major = 9, p->minor = 0;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535, p->totalConstMem = 65536;
  p->textureAlignment = 512, p->texturePitchAlignment = 32, p->canMapHostMemory = 1, p->concurrentKernels = 1;
  p->ECCEnabled = 1, p->asyncEngineCount = 3, p->unifiedAddressing = 1, p->memoryBusWidth = 5120;
  p->l2CacheSize = 50 << 20, p->streamPrioritiesSupported = 1, p->managedMemory = 1, p->cooperativeLaunch = 1;
  p->clusterLaunch = 1, p->memoryPoolsSupported = 1, p->pciBusID = d + 1, p->uuid.bytes[0] = d + 1;
  p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int a, int b) {
  *can = a != b;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) {
  *least = 0, *most = -5;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }
// The names and texts are libcudart's own: it answers them without a device.
static void* libcudart(const char* name) { return dlsym(RTLD_NEXT, name); }
const char* cudaGetErrorName(cudaError_t e) {
  static auto real = reinterpret_cast<const char* (*)(cudaError_t)>(libcudart("cudaGetErrorName"));
  return real ? real(e) : "cudaError";
}
const char* cudaGetErrorString(cudaError_t e) {
  static auto real = reinterpret_cast<const char* (*)(cudaError_t)>(libcudart("cudaGetErrorString"));
  return real ? real(e) : "CUDA error";
}
cudaError_t cudaDeviceSynchronize() {
  COUNT(synchronizations);
  if (!active_captures.load()) return cudaSuccess;
  Lock hold(state().lock);
  bool broken = false;
  for (auto& c : state().captures)
    if (c->origin->device == current) invalidate(*c), broken = true;
  if (broken) FAIL(cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void**, size_t shared, cudaStream_t s) {
  return launch(function_of(f), g, b, shared, s, __func__);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) {
  return launch(function_of(f), c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream, __func__);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* host) {
  Function* f = function_of(host);
  if (!f) FAIL(cudaErrorInvalidDeviceFunction);
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->maxDynamicSharedSizeBytes = f->max_dynamic;
  a->binaryVersion = a->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  return set_attribute(function_of(f), a, v, __func__);
}
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, cudaFuncAttribute a, int v, int) {
  return set_attribute(reinterpret_cast<Function*>(k), a, v, __func__);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int threads, size_t shared) {
  *n = blocks_per_multiprocessor(threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int threads, size_t shared,
                                                                   unsigned) {
  *n = blocks_per_multiprocessor(threads, shared);
  return cudaSuccess;
}
}  // extern "C"
