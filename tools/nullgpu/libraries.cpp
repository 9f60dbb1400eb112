// cuBLAS, cuSPARSELt and cuDNN: descriptors are kept, products and convolutions logged.
#include <cuda_runtime_api.h>

#include "log.h"

void* const HANDLE = (void*)64;

// -- cuBLAS -------------------------------------------------------------------------------------

EXPORT int cublasCreate_v2(void** h) { *h = HANDLE; return 0; }
EXPORT int cublasGetMathMode(void*, int* mode) { *mode = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(void*, int* mode) { *mode = 0; return 0; }
EXPORT size_t cublasLtGetVersion() { return 130100; }
EXPORT int cublasLtMatmulDescCreate(void** d, int, int) { *d = malloc(64); return 0; }
EXPORT int cublasLtMatmulDescDestroy(void* d) { free(d); return 0; }
EXPORT int cublasLtMatrixLayoutCreate(void** d, int, uint64_t, uint64_t, int64_t) {
  *d = malloc(64);
  return 0;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* d) { free(d); return 0; }
EXPORT int cublasLtMatmulPreferenceCreate(void** d) { *d = malloc(64); return 0; }
EXPORT int cublasLtMatmulPreferenceDestroy(void* d) { free(d); return 0; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                          void* results, int* count) {
  memset(results, 0, 96);  // one cublasLtMatmulHeuristicResult_t: success, no workspace
  *count = 1;
  return 0;
}
EXPORT int cublasLtMatmul(...) { note("GEMM cublasLtMatmul"); return 0; }
EXPORT int cublasGemmEx(void*, int, int, int m, int n, int k, ...) {
  note("GEMM cublasGemmEx %d %d %d", m, n, k);
  return 0;
}
EXPORT int cublasGemmEx_64(...) { note("GEMM cublasGemmEx_64"); return 0; }
EXPORT int cublasGemmStridedBatchedEx(...) { note("GEMM batched"); return 0; }
EXPORT int cublasSgemm_v2(...) { note("GEMM sgemm"); return 0; }

// -- cuSPARSELt: a descriptor remembers its sizes in the caller's memory ------------------------

struct Descriptor {
  uint64_t rows, columns, pitch;
  int order;
};

// What a plan refers to: it must stay where it was made.
struct Multiply {
  int a_transposed, b_transposed;
  const Descriptor *a, *b, *d;
  const void* bias;
};

struct Plan {
  const Multiply* multiply;
  int algorithm;
};

EXPORT int cusparseLtGetVersion(const void*, int* v) { *v = 800; return 0; }
EXPORT int cusparseLtInit(void*) { note("CSLT init"); return 0; }
EXPORT int cusparseLtDenseDescriptorInit(const void*, void* d, int64_t rows, int64_t columns,
                                         int64_t pitch, uint32_t, int, int order) {
  *(Descriptor*)d = {(uint64_t)rows, (uint64_t)columns, (uint64_t)pitch, order};
  return 0;
}
EXPORT int cusparseLtStructuredDescriptorInit(const void*, void* d, int64_t rows, int64_t columns,
                                              int64_t pitch, uint32_t, int, int order, int) {
  *(Descriptor*)d = {(uint64_t)rows, (uint64_t)columns, (uint64_t)pitch, order};
  return 0;
}
EXPORT int cusparseLtMatDescriptorDestroy(const void*) { return 0; }
EXPORT int cusparseLtSpMMACompressedSize2(const void*, const void* d, size_t* size,
                                          size_t* buffer) {
  auto* operand = (const Descriptor*)d;
  *size = operand->rows * operand->columns * 9 / 8;
  *buffer = 256;
  return 0;
}

// The two elements of a block that are kept, the first zero ones where fewer are not.
static void survivors(const uint16_t* block, int* kept) {
  int n = 0;
  for (int i = 0; i < 4 && n < 2; i++)
    if (block[i] & 0x7fff) kept[n++] = i;
  if (n == 0) {
    kept[0] = 2;
    kept[1] = 3;
  } else if (n == 1) {
    kept[1] = 3;
    if (kept[0] == 3) kept[0] = 0;
  }
}

// For real, in Hopper's order, as nmcompile.compressed.layouts has it: the package compares what
// the library packs with what it packs itself. Large operands, which nobody reads, are left.
EXPORT int cusparseLtSpMMACompress2(const void*, const void* d, int, int, const void* dense,
                                    void* out, void*, cudaStream_t) {
  note("CSLT compress");
  size_t rows = ((const Descriptor*)d)->rows, columns = ((const Descriptor*)d)->columns;
  if (rows * columns > (1u << 24)) return 0;
  auto* values = (uint16_t*)out;
  auto* metadata = (uint8_t*)(values + rows * columns / 2);
  memset(metadata, 0, rows * columns / 8);
  for (size_t r = 0; r < rows; r++)
    for (size_t g = 0; g < columns / 4; g++) {
      const uint16_t* block = (const uint16_t*)dense + r * columns + 4 * g;
      int kept[2];
      survivors(block, kept);
      uint16_t* pair = values + r * columns / 2 + 2 * g;
      pair[0] = block[kept[0]];
      pair[1] = block[kept[1]];
      size_t byte = (r / 64 * (columns / 32) + g / 8) * 256 + r % 64 / 16 * 64 + r % 8 * 8 +
                    g % 4 * 2 + g % 8 / 4;
      metadata[byte] |= (kept[0] | kept[1] << 2) << (r / 8 % 2 * 4);
    }
  return 0;
}
EXPORT int cusparseLtMatmulGetWorkspace(const void*, const void*, size_t* n) {
  *n = 1 << 20;
  return 0;
}
// What a search found: algorithm 0 of 4 (so that a loop over all of them is short), one split.
EXPORT int cusparseLtMatmulAlgGetAttribute(const void*, const void*, int number, void* v,
                                           size_t n) {
  memset(v, 0, n);
  *(int*)v = number == 1 ? 4 : number == 3 || number == 4 ? 1 : 0;
  return 0;
}
EXPORT int cusparseLtMatmulDescriptorInit(const void*, void* multiply, int a_op, int b_op,
                                          const void* a, const void* b, const void*, const void* d,
                                          int) {
  *(Multiply*)multiply = {a_op, b_op, (const Descriptor*)a, (const Descriptor*)b,
                          (const Descriptor*)d, nullptr};
  return 0;
}
EXPORT int cusparseLtMatmulDescSetAttribute(const void*, void* multiply, int attribute,
                                            const void* value, size_t) {
  if (attribute == 8) ((Multiply*)multiply)->bias = *(const void* const*)value;  // BIAS_POINTER
  return 0;
}
EXPORT int cusparseLtMatmulAlgSetAttribute(const void*, void* selected, int attribute,
                                           const void* value, size_t) {
  if (attribute == 0) *(int*)selected = *(const int*)value;  // ALG_CONFIG_ID
  return 0;
}
EXPORT int cusparseLtMatmulPlanInit(const void*, void* plan, const void* multiply,
                                    const void* selected) {
  note("CSLT plan");
  *(Plan*)plan = {(const Multiply*)multiply, *(const int*)selected};
  return 0;
}

// Two calls that say the same write the same, so that the package can compare them: every element of
// a small result is a sum over all that the call was told and over the first element of each operand.
EXPORT int cusparseLtMatmul(const void*, const void* plan, const void* alpha, const void* a,
                            const void* b, const void* beta, const void*, void* out, void*, void*,
                            int) {
  note("CSLT matmul");
  const Multiply* m = ((const Plan*)plan)->multiply;
  size_t size = m->d->rows * m->d->columns;
  if (size > (1u << 16)) return 0;
  uint64_t sum = 0;
  auto add = [&sum](uint64_t value) { sum = sum * 31 + value; };
  for (const Descriptor* x : {m->a, m->b, m->d}) {
    add(x->rows), add(x->columns), add(x->pitch), add(x->order);
  }
  add(m->a_transposed), add(m->b_transposed), add(((const Plan*)plan)->algorithm);
  add(*(const uint32_t*)alpha), add(*(const uint32_t*)beta);
  for (const void* x : {a, b, m->bias}) add(x ? *(const uint16_t*)x : 1);
  for (size_t i = 0; i < size; i++) ((uint16_t*)out)[i] = sum % 0x3fff;  // finite in either dtype
  return 0;
}

// -- cuDNN: whatever is built from its descriptors has one part, and one plan, without workspace --

enum { CUDNN_INT64 = 3, CUDNN_DESCRIPTOR = 15 };  // of cudnnBackendAttributeType_t

EXPORT size_t cudnnGetVersion() { return 91900; }
EXPORT int cudnnGetProperty(int part, int* v) { *v = part == 0 ? 9 : part == 1 ? 19 : 0; return 0; }
EXPORT int cudnnCreate(void** h) { *h = HANDLE; return 0; }
EXPORT int cudnnBackendCreateDescriptor(int, void** d) { *d = malloc(8); return 0; }
EXPORT int cudnnBackendDestroyDescriptor(void* d) { free(d); return 0; }
EXPORT int cudnnBackendGetAttribute(void*, int, int type, int64_t wanted, int64_t* count,
                                    void* elements) {
  if (count) *count = 1;
  if (!elements || !wanted || type == CUDNN_DESCRIPTOR) return 0;  // descriptors are the caller's
  memset(elements, 0, type == CUDNN_INT64 ? 8 : 4);
  return 0;
}
EXPORT int cudnnBackendExecute(...) { note("CONV"); return 0; }

// -- torch --------------------------------------------------------------------------------------

// at::Context::userEnabledCuDNNSDP: its attention asks for more than is written out above;
// flash attention is taken instead.
EXPORT bool _ZNK2at7Context19userEnabledCuDNNSDPEv(const void*) { return false; }
