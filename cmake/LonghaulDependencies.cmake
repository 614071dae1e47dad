# What the libraries link, found once: by the build, and again by longhaulConfig.cmake in projects that use an
# installed Longhaul. Debian packages: launch/install-packages. MPI's and HDF5's finders need the C language.
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(fmt REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(highway REQUIRED IMPORTED_TARGET libhwy)

# Libraries without a usable package file become targets here, so that exported link lines hold names, not paths.
function(longhaul_imported_library target include_dir library)
  if(NOT TARGET ${target})
    add_library(${target} INTERFACE IMPORTED)
    set_target_properties(${target} PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${include_dir}" INTERFACE_LINK_LIBRARIES "${library}")
  endif()
endfunction()

longhaul_imported_library(longhaul_hdf5 "${HDF5_INCLUDE_DIRS}" "${HDF5_C_LIBRARIES}")
# Debian's CMake config of oneDNN drags in OpenCL, which a CPU build never uses.
find_path(ONEDNN_INCLUDE_DIR dnnl.hpp REQUIRED)
find_library(ONEDNN_LIBRARY dnnl REQUIRED)
longhaul_imported_library(longhaul_onednn "${ONEDNN_INCLUDE_DIR}" "${ONEDNN_LIBRARY}")
if(LONGHAUL_HAS_CUDA)
  find_package(CUDAToolkit REQUIRED)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
  find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
  longhaul_imported_library(longhaul_nccl "${NCCL_INCLUDE_DIR}" "${NCCL_LIBRARY}")
  # cuDNN is wanted, not required: LonghaulBuildDependencies.cmake decides, an installed Longhaul knows.
  find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
  if(CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY)
    longhaul_imported_library(longhaul_cudnn "${CUDNN_INCLUDE_DIR}" "${CUDNN_LIBRARY};CUDA::nvrtc")
  elseif(LONGHAUL_HAS_CUDNN)
    message(FATAL_ERROR "this Longhaul was built with cuDNN, which is not found: set CUDNN_INCLUDE_DIR and CUDNN_LIBRARY")
  endif()
endif()
