/* A CUDA driver without a device: just enough for cuDNN to build execution plans. Loading a compiled
   kernel succeeds and nothing runs; every other call fails as the toolkit's stub does. Made into
   libcuda.so.1, and found by LD_LIBRARY_PATH in the test's own process. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { kSuccess = 0, kStub = 34 };

int refused(void) { return kStub; }

/* What cuDNN looks up by name. */
#define REFUSED(name) int name(void) __attribute__((alias("refused")))
REFUSED(cuInit);
REFUSED(cuGetErrorName);
REFUSED(cuGetErrorString);
REFUSED(cuCtxGetCurrent);
REFUSED(cuCtxGetLimit);
REFUSED(cuCtxPopCurrent);
REFUSED(cuCtxPushCurrent);
REFUSED(cuStreamGetCtx);
REFUSED(cuLinkCreate);
REFUSED(cuLinkAddData);
REFUSED(cuLinkComplete);
REFUSED(cuLinkDestroy);
REFUSED(cuLaunchKernel);
REFUSED(cuLaunchKernelEx);
REFUSED(cuLaunchCooperativeKernel);
REFUSED(cuDeviceGetCount);
REFUSED(cuDeviceGet);
REFUSED(cuLibraryLoadFromFile);
REFUSED(cuOccupancyMaxPotentialClusterSize);

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

/* The handles are never looked into. */
static int give(void** handle) {
  static char something;
  *handle = &something;
  return kSuccess;
}
int cuLibraryLoadData(void** library) { return give(library); }
int cuLibraryUnload(void) { return kSuccess; }
int cuLibraryGetKernel(void** kernel) { return give(kernel); }
int cuLibraryGetModule(void** module) { return give(module); }
int cuKernelGetFunction(void** function) { return give(function); }
int cuKernelSetAttribute(void) { return kSuccess; }
int cuKernelGetAttribute(int* value) {
  *value = 0;
  return kSuccess;
}
int cuFuncSetAttribute(void) { return kSuccess; }
int cuFuncGetAttribute(int* value) {
  *value = 0;
  return kSuccess;
}
int cuModuleLoadData(void** module) { return give(module); }
int cuModuleGetFunction(void** function) { return give(function); }
int cuModuleUnload(void) { return kSuccess; }
int cuOccupancyMaxActiveClusters(int* clusters) {
  *clusters = 66;
  return kSuccess;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks) {
  *blocks = 1;
  return kSuccess;
}

int cuGetProcAddress(const char* name, void** function);
int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                        int* status);

#define ENTRY(name) {#name, (void*)name}
static const struct {
  const char* name;
  void* function;
} known[] = {ENTRY(cuDriverGetVersion),
             {"cuGetProcAddress", (void*)cuGetProcAddress_v2},
             ENTRY(cuLibraryLoadData),
             ENTRY(cuLibraryUnload),
             ENTRY(cuLibraryGetKernel),
             ENTRY(cuLibraryGetModule),
             ENTRY(cuKernelGetFunction),
             ENTRY(cuKernelSetAttribute),
             ENTRY(cuKernelGetAttribute),
             ENTRY(cuFuncSetAttribute),
             ENTRY(cuFuncGetAttribute),
             ENTRY(cuModuleLoadData),
             ENTRY(cuModuleGetFunction),
             ENTRY(cuModuleUnload),
             ENTRY(cuOccupancyMaxActiveClusters),
             ENTRY(cuOccupancyMaxActiveBlocksPerMultiprocessor)};

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                        int* status) {
  (void)version;
  (void)flags;
  *function = (void*)refused;
  for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); ++i)
    if (strcmp(known[i].name, name) == 0) *function = known[i].function;
  if (status) *status = 0;
  return kSuccess;
}
int cuGetProcAddress(const char* name, void** function) {
  return cuGetProcAddress_v2(name, function, 0, 0, NULL);
}
