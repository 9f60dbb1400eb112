// libcuda.so.1: the part of the driver that Triton's and Inductor's launchers call.
//
// Modules are read far enough to answer with each kernel's registers and local memory, so that
// Triton counts spills, and Inductor chooses among configurations, as on the real thing.
#include <dlfcn.h>
#include <elf.h>

#include <fstream>
#include <iterator>
#include <map>
#include <vector>

#include "log.h"

namespace {

struct Kernel {
  std::string name;
  int registers = 0, local_bytes = 0;
};

struct Module {
  std::map<std::string, Kernel> kernels;
};

// Of a cubin's .nv.info: a value for each of some symbols, as {format, attribute, size, data}.
constexpr uint8_t HAS_DATA = 4, FRAME_SIZE = 0x11, REGISTERS = 0x2f;

void read_info(const char* at, const char* end, Module& module, const Elf64_Sym* symbols,
               const char* names) {
  while (at + 4 <= end) {
    uint8_t format = at[0], kind = at[1];
    if (format != HAS_DATA) {  // the value lies in the header itself
      at += 4;
      continue;
    }
    uint16_t size;
    memcpy(&size, at + 2, 2);
    if (size == 8 && (kind == FRAME_SIZE || kind == REGISTERS)) {
      uint32_t symbol, value;
      memcpy(&symbol, at + 4, 4);
      memcpy(&value, at + 8, 4);
      Kernel& kernel = module.kernels[names + symbols[symbol].st_name];
      (kind == FRAME_SIZE ? kernel.local_bytes : kernel.registers) = (int)value;
    }
    at += 4 + size;
  }
}

Module* load(const char* image) {
  auto* module = new Module;  // as long as the process: Triton unloads nothing
  if (!image || memcmp(image, ELFMAG, SELFMAG) != 0) return module;
  auto* header = (const Elf64_Ehdr*)image;
  auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* titles = image + sections[header->e_shstrndx].sh_offset;
  const Elf64_Sym* symbols = nullptr;
  const char* names = nullptr;
  for (int i = 0; i < header->e_shnum; i++)
    if (sections[i].sh_type == SHT_SYMTAB) {
      symbols = (const Elf64_Sym*)(image + sections[i].sh_offset);
      names = image + sections[sections[i].sh_link].sh_offset;
    }
  for (int i = 0; symbols && i < header->e_shnum; i++)
    if (strcmp(titles + sections[i].sh_name, ".nv.info") == 0) {
      const char* start = image + sections[i].sh_offset;
      read_info(start, start + sections[i].sh_size, *module, symbols, names);
    }
  return module;
}

int launch(void* function, unsigned x, unsigned y, unsigned z) {
  static auto* current = (int (*)(int*))dlsym(RTLD_DEFAULT, "cudaGetDevice");  // of this thread
  int device = 0;
  if (current) current(&device);
  std::string where = device ? " @" + std::to_string(device) : "";
  note("TRITON %u,%u,%u %s%s", x, y, z, ((Kernel*)function)->name.c_str(), where.c_str());
  bool fits = x && y && z && x <= 2147483647u && y <= 65535 && z <= 65535;
  if (!fits) note("BAD-GRID %u %u %u", x, y, z);
  return fits ? 0 : 1;  // CUDA_ERROR_INVALID_VALUE
}

void* const CONTEXT = (void*)64;

}  // namespace

EXPORT int null_generic(...) { return 0; }  // for any name that somebody looks up

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
EXPORT int cuDeviceGetCount(int* n) { *n = device_count(); return 0; }
EXPORT int cuDeviceGet(int* device, int n) { *device = n; return 0; }
EXPORT int cuDeviceGetName(char* name, int size, int) { device_name(name, size); return 0; }
EXPORT int cuDeviceGetAttribute(int* v, int number, int) { *v = attribute(number); return 0; }
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { *context = CONTEXT; return 0; }
EXPORT int cuCtxGetCurrent(void** context) { *context = CONTEXT; return 0; }
EXPORT int cuCtxSetCurrent(void*) { return 0; }
EXPORT int cuCtxPushCurrent_v2(void*) { return 0; }
EXPORT int cuCtxPopCurrent_v2(void** context) { *context = CONTEXT; return 0; }
EXPORT int cuCtxGetLimit(size_t* v, int) { *v = 1 << 20; return 0; }
EXPORT int cuCtxSetLimit(int, size_t) { return 0; }
EXPORT int cuGetErrorString(int, const char** text) { *text = "null GPU"; return 0; }
EXPORT int cuGetErrorName(int, const char** text) { *text = "null GPU"; return 0; }
EXPORT int cuGetProcAddress_v2(const char*, void** found, int, unsigned long long, void*) {
  *found = (void*)null_generic;
  return 0;
}

EXPORT int cuModuleLoadData(void** module, const void* image) {
  *module = load((const char*)image);
  return 0;
}
EXPORT int cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
  return cuModuleLoadData(module, image);
}
EXPORT int cuModuleLoad(void** module, const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> image((std::istreambuf_iterator<char>(file)), {});
  *module = load(image.empty() ? nullptr : image.data());
  return 0;
}
EXPORT int cuModuleUnload(void*) { return 0; }
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
  Kernel& kernel = ((Module*)module)->kernels[name];
  kernel.name = name;
  note("LOAD %d %d %s", kernel.registers, kernel.local_bytes, name);
  *function = &kernel;  // a map's elements stay where they are
  return 0;
}
EXPORT int cuFuncGetAttribute(int* v, int number, void* function) {
  auto* kernel = (Kernel*)function;
  *v = number == 0 ? 1024 : number == 3 ? kernel->local_bytes : number == 4 ? kernel->registers : 0;
  return 0;
}
EXPORT int cuFuncSetAttribute(void*, int, int) { return 0; }
EXPORT int cuFuncSetCacheConfig(void*, int) { return 0; }
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int, size_t) {
  *n = 2;
  return 0;
}
EXPORT int cuOccupancyMaxActiveClusters(int* n, void*, void*) { *n = 1; return 0; }

EXPORT int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned, unsigned,
                          unsigned, unsigned, void*, void**, void**) {
  return launch(function, x, y, z);
}
struct Grid { unsigned x, y, z; };  // how CUlaunchConfig begins
EXPORT int cuLaunchKernelEx(const Grid* grid, void* function, void**, void**) {
  return launch(function, grid->x, grid->y, grid->z);
}
EXPORT int cuLaunchCooperativeKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned,
                                     unsigned, unsigned, unsigned, void*, void**) {
  return launch(function, x, y, z);
}
EXPORT int cuStreamIsCapturing(void*, int* status) { *status = 0; return 0; }
EXPORT int cuPointerGetAttribute(void* v, int number, unsigned long long pointer) {
  *(unsigned long long*)v = number == 3 ? pointer : 0;  // 3: the pointer for the device
  return 0;
}
EXPORT int cuTensorMapEncodeTiled(...) { return 0; }
EXPORT int cuLinkCreate_v2(...) { return 0; }
EXPORT int cuLinkAddData_v2(...) { return 0; }
EXPORT int cuLinkComplete(...) { return 0; }
EXPORT int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t n) {
  memcpy(to, (void*)from, n);
  return 0;
}
EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t n) {
  memcpy((void*)to, from, n);
  return 0;
}
