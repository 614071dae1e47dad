# Every library Longhaul links, found once. All but CUDA's come from Debian (launch/install-packages).
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)

# oneDNN: Debian's CMake config drags in OpenCL, which a CPU build never uses; link the library itself.
find_path(ONEDNN_INCLUDE_DIR dnnl.hpp REQUIRED)
find_library(ONEDNN_LIBRARY dnnl REQUIRED)
if(NOT TARGET longhaul_onednn)
  add_library(longhaul_onednn INTERFACE IMPORTED GLOBAL)
  set_target_properties(longhaul_onednn PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${ONEDNN_INCLUDE_DIR} INTERFACE_LINK_LIBRARIES ${ONEDNN_LIBRARY})
endif()
find_path(RANDOM123_INCLUDE_DIR Random123/philox.h REQUIRED)

if(LONGHAUL_HAS_CUDA)
  find_package(CUDAToolkit REQUIRED)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
  find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
endif()
