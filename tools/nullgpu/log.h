// The log that every part of the null GPU writes, and what the parts know in common.
#pragma once
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

// One line, flushed at once: whoever wants to know what a call did reads the file while we run.
// A file for each process; torch and Triton log from several threads and two libraries.
inline void note(const char* format, ...) {
  static std::mutex lock;
  static FILE* file = []() -> FILE* {
    const char* prefix = getenv("NULL_LOG");
    if (!prefix) return nullptr;
    std::string path = std::string(prefix) + "." + std::to_string(getpid());
    return fopen(path.c_str(), "a");
  }();
  if (!file) return;
  std::lock_guard<std::mutex> guard(lock);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
  fflush(file);
}

// The device's name. It always says what it is: no figure can pass for a measurement.
inline void device_name(char* out, size_t size) {
  const char* given = getenv("NULL_NAME");
  std::string name = given ? given : "NVIDIA H100 80GB HBM3";
  if (name.find("(null GPU)") == std::string::npos) name += " (null GPU)";
  snprintf(out, size, "%s", name.c_str());
}

// The compute capability times ten, from one such as "8.9".
inline int capability() {
  const char* given = getenv("NULL_CAPABILITY");
  int major = 9, minor = 0;
  if (given) sscanf(given, "%d.%d", &major, &minor);
  return 10 * major + minor;
}

inline int device_count() {
  const char* given = getenv("NULL_DEVICES");
  return given ? atoi(given) : 1;
}

// Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, compute capabilities).
inline int shared_memory() {
  int here = capability();
  if (here == 80) return 166912;
  return here == 86 || here == 89 || here >= 120 ? 101376 : 232448;
}

// Attributes by number, alike in the driver's and the runtime's interface: those of an H100 SXM,
// but for what depends on the compute capability.
// Whatever is not written out is 1, which most capabilities ("supports ...") mean to be.
inline int attribute(int number) {
  switch (number) {
    case 1: case 2: case 3: return 1024;        // threads a block; in x and y
    case 4: return 64;                          // in z
    case 5: return 2147483647;                  // grid in x
    case 6: case 7: return 65535;               // in y and z
    case 8: return 49152;                       // shared memory of a block
    case 10: return 32;                         // threads of a warp
    case 12: case 82: return 65536;             // registers of a block, of a multiprocessor
    case 13: return 1755000;                    // clock, kHz
    case 14: return 512;                        // alignment of textures
    case 16: return 132;                        // multiprocessors
    case 36: return 2619000;                    // memory clock, kHz
    case 37: return 5120;                       // memory bus, bits
    case 38: return 50 << 20;                   // L2
    case 39: return 2048;                       // threads of a multiprocessor
    case 75: return capability() / 10;
    case 76: return capability() % 10;
    case 81: return shared_memory() + 1024;     // of a multiprocessor
    case 97: return shared_memory();
    case 106: return 32;                        // blocks of a multiprocessor
    default: return 1;
  }
}
