#include <dlfcn.h>

#include "runtime/error.h"
#include "runtime/ops/cublas_lt_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

/// As the loader finds libraries, else where the build found it.
void* open_library() {
  const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const std::string why = dlerror();
  library = dlopen(LONGHAUL_CUBLASLT, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    fail(ExitCode::launch, "matrix products on CUDA need ", name, ", which cannot be loaded: ", why,
         "; install the CUDA toolkit's cuBLAS, or name its folder in LD_LIBRARY_PATH");
  return library;
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    fail(ExitCode::launch, "libcublasLt.so.", CUBLAS_VER_MAJOR, " has no function ", name,
         "; expected that of CUDA ", CUBLAS_VER_MAJOR, ".", CUBLAS_VER_MINOR, " or later");
}

CublasLt load() {
  void* const library = open_library();
  CublasLt lt{};
  find(library, "cublasLtCreate", lt.create);
  find(library, "cublasLtGetVersion", lt.get_version);
  find(library, "cublasLtGetStatusString", lt.get_status_string);
  find(library, "cublasLtMatmul", lt.matmul);
  find(library, "cublasLtMatmulAlgoGetHeuristic", lt.matmul_algo_get_heuristic);
  find(library, "cublasLtMatmulDescInit_internal", lt.matmul_desc_init);
  find(library, "cublasLtMatmulDescSetAttribute", lt.matmul_desc_set_attribute);
  find(library, "cublasLtMatmulPreferenceInit_internal", lt.matmul_preference_init);
  find(library, "cublasLtMatmulPreferenceSetAttribute", lt.matmul_preference_set_attribute);
  find(library, "cublasLtMatrixLayoutInit_internal", lt.matrix_layout_init);
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt lt = load();
  return lt;
}

}  // namespace longhaul::runtime::ops::detail
