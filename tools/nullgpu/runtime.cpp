// The CUDA runtime: memory is the host's, copies are made, kernels are logged and not run.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <map>

#include "log.h"

namespace {

constexpr size_t TOTAL = 81559ull << 20;  // bytes of an H100
std::mutex lock;
std::atomic<size_t> used{0}, handles{4096};
thread_local int current = 0;  // device
std::atomic<int> capturing{0};
std::atomic<unsigned long long> captures{0};

// Never destroyed: torch frees memory while the process ends.
std::map<const void*, size_t>& allocations() {
  static auto* found = new std::map<const void*, size_t>;
  return *found;
}
std::map<const void*, int>& devices() {  // where an allocation lies
  static auto* found = new std::map<const void*, int>;
  return *found;
}
std::map<const void*, std::string>& kernel_names() {
  static auto* found = new std::map<const void*, std::string>;
  return *found;
}

// Pages come into being when something is written, so a model may be larger than the host.
void* take(size_t n, bool on_device = true) {
  if (!n) return nullptr;
  if (on_device && used + n > TOTAL) {
    note("OOM %zu", n);
    return nullptr;
  }
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  std::lock_guard<std::mutex> guard(lock);
  allocations()[p] = n;
  devices()[p] = current;
  used += n;
  return p;
}

void give(void* p) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = allocations().find(p);
  if (found == allocations().end()) return;
  munmap(p, found->second);
  used -= found->second;
  devices().erase(p);
  allocations().erase(found);
}

template <class T>
cudaError_t fresh(T* handle) {
  *handle = (T)(handles += 64);
  return cudaSuccess;
}

// What waits for the device: refused while a graph is captured, as the real one does.
cudaError_t wait(const char* what) {
  if (capturing) {
    note("ILLEGAL-IN-CAPTURE %s", what);
    return cudaErrorStreamCaptureUnsupported;
  }
  note("SYNC %s", what);
  return cudaSuccess;
}

cudaError_t launched(const void* kernel, dim3 grid) {
  std::string name;
  {
    std::lock_guard<std::mutex> guard(lock);
    name = kernel_names()[kernel];
  }
  note("KERNEL %u,%u,%u %.300s", grid.x, grid.y, grid.z, name.c_str());
  return cudaSuccess;
}

cudaStreamCaptureStatus capture_status() {
  return capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

const char* const KINDS[] = {"HtoH", "HtoD", "DtoH", "DtoD", "any"};
// Larger copies inside of the device, and fills, would only cost time: nobody reads the values.
constexpr size_t LARGEST_COPY = 1 << 20, LARGEST_FILL = 1 << 22;

}  // namespace

// -- the device ---------------------------------------------------------------------------------

EXPORT cudaError_t cudaGetDeviceCount(int* n) { *n = device_count(); return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* n) { *n = current; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int n) { current = n; return cudaSuccess; }
EXPORT cudaError_t cudaInitDevice(int, unsigned, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  device_name(p->name, sizeof p->name);
  p->major = attribute(75);
  p->minor = attribute(76);
  p->multiProcessorCount = attribute(16);
  p->totalGlobalMem = TOTAL;
  p->warpSize = attribute(10);
  p->regsPerBlock = p->regsPerMultiprocessor = attribute(12);
  p->maxThreadsPerBlock = attribute(1);
  p->maxThreadsPerMultiProcessor = attribute(39);
  p->sharedMemPerBlock = attribute(8);
  p->sharedMemPerBlockOptin = attribute(97);
  p->sharedMemPerMultiprocessor = attribute(81);
  p->l2CacheSize = attribute(38);
  for (int i = 0; i < 3; i++) {
    p->maxThreadsDim[i] = attribute(2 + i);
    p->maxGridSize[i] = attribute(5 + i);
  }
  p->memoryBusWidth = attribute(37);
  p->unifiedAddressing = 1;
  p->textureAlignment = attribute(14);
  p->maxBlocksPerMultiProcessor = attribute(106);
  p->concurrentKernels = 1;
  p->asyncEngineCount = 3;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr number, int) {
  *v = attribute((int)number);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* v, int, int) { *v = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
  snprintf(id, size, "0000:00:00.0");
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) { return fresh(pool); }
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) {
  *(unsigned long long*)v = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
EXPORT const char* cudaGetErrorString(cudaError_t e) {
  return e ? "null GPU: not permitted (while a graph is captured, or out of memory)" : "no error";
}
EXPORT const char* cudaGetErrorName(cudaError_t e) { return e ? "cudaErrorNull" : "cudaSuccess"; }

// -- streams, events, graphs --------------------------------------------------------------------

EXPORT cudaError_t cudaDeviceSynchronize() { return wait("device"); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait("stream"); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait("event"); }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) { return fresh(e); }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return fresh(e); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;  // a figure without meaning, but one that can be divided by
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) {
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) { return fresh(s); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return fresh(s); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* v) { *v = 0; return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  note("CAPTURE begin");
  captures++;
  capturing = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  capturing = 0;
  note("CAPTURE end");
  return fresh(graph);
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capture_status();
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** nodes,
                                            const cudaGraphEdgeData** edges, size_t* count) {
  *status = capture_status();
  if (id) *id = captures;
  if (graph) *graph = (cudaGraph_t)64;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t,
                                                 unsigned long long) {
  return fresh(exec);
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  note("GRAPH launch");
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* n) {
  *n = 1;  // torch warns of an empty graph
  return cudaSuccess;
}

// -- memory -------------------------------------------------------------------------------------

EXPORT cudaError_t cudaMalloc(void** p, size_t n) {
  *p = take(n);
  return n && !*p ? cudaErrorMemoryAllocation : cudaSuccess;
}
EXPORT cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
EXPORT cudaError_t cudaFree(void* p) { give(p); return cudaSuccess; }
EXPORT cudaError_t cudaFreeAsync(void* p, cudaStream_t) { give(p); return cudaSuccess; }
EXPORT cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  *p = take(n, false);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void* p) { give(p); return cudaSuccess; }
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = TOTAL;
  *free = TOTAL - used;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
  if (cudaError_t refused = wait("copy")) return refused;
  memcpy(to, from, n);
  note("MEMCPY %s %zu", KINDS[kind], n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind,
                                   cudaStream_t) {
  if (kind != cudaMemcpyDeviceToDevice || n < LARGEST_COPY) memcpy(to, from, n);
  // A number that is read back, a loss say, is zero. One bit set, it is the smallest float, which
  // can be divided by, and the smallest size, of which a tensor may be made.
  bool number = kind == cudaMemcpyDeviceToHost && n == 4 && getenv("NULL_ONE");
  if (number && !*(int*)to) *(int*)to = 1;
  note("MEMCPY %s %zu", KINDS[kind], n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t n) {
  if (n < LARGEST_FILL) memset(to, value, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t n, cudaStream_t) {
  note("MEMSET %zu", n);
  return cudaMemset(to, value, n);
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  std::lock_guard<std::mutex> guard(lock);
  auto found = allocations().upper_bound(p);
  bool ours = found != allocations().begin() &&
              (--found, (const char*)p < (const char*)found->first + found->second);
  a->type = ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->device = ours ? devices()[found->first] : 0;
  a->devicePointer = ours ? (void*)p : nullptr;
  return cudaSuccess;
}

// -- kernels that nvcc compiled -----------------------------------------------------------------

EXPORT void** __cudaRegisterFatBinary(void* p) { return (void**)p; }
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT char __cudaInitModule(void**) { return 0; }
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*,
                                   uint3*, dim3*, dim3*, int*) {
  std::lock_guard<std::mutex> guard(lock);
  kernel_names()[host] = name;
}
// f<<<grid, block, shared, stream>>>(...) is a push, a pop and a launch.
static thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                            cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared,
                                              void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *(cudaStream_t*)stream = pushed.stream;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = (cudaKernel_t)f;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3, void**, size_t,
                                      cudaStream_t) {
  return launched((const void*)kernel, grid);
}
EXPORT cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3, void**, size_t, cudaStream_t) {
  return launched(f, grid);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* f, void**) {
  return launched(f, config->gridDim);
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = attribute(1);
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = capability();
  a->maxDynamicSharedSizeBytes = attribute(97);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int,
                                                                          size_t, unsigned) {
  *n = 2;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void** p, const void*) {
  static void* memory = take(1 << 20);
  *p = memory;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  *found = driver ? dlsym(driver, name) : nullptr;
  if (driver && !*found) *found = dlsym(driver, "null_generic");
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** found, unsigned long long flags,
                                           cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(name, found, 0, flags, result);
}
