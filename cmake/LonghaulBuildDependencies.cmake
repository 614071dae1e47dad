# What only compiling Longhaul needs: headers that appear in none of its own public headers.
find_package(CLI11 REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(nlohmann_json REQUIRED)
find_path(RANDOM123_INCLUDE_DIR Random123/philox.h REQUIRED)
# Fast attention on CUDA: cuDNN and its header-only C++ frontend. Without them a CUDA build has the exact kernels alone.
set(LONGHAUL_HAS_CUDNN OFF)
if(LONGHAUL_HAS_CUDA)
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${PROJECT_SOURCE_DIR}/build/cudnn-frontend/include)
  if(NOT TARGET longhaul_cudnn)
    message(WARNING "cuDNN 9 is not found (cudnn.h and libcudnn, in the CUDA toolkit's folders or by CUDNN_INCLUDE_DIR and "
      "CUDNN_LIBRARY): attention on CUDA will run on the exact kernels, at a fraction of the device's speed")
  elseif(NOT CUDNN_FRONTEND_INCLUDE_DIR)
    message(WARNING "cuDNN's C++ frontend is not found: attention on CUDA will run on the exact kernels, at a fraction of the "
      "device's speed. To get it: launch/fetch-cudnn-frontend, which unpacks what "
      "`pip download --no-deps nvidia-cudnn-frontend==1.32.0` gives, or set CUDNN_FRONTEND_INCLUDE_DIR")
  else()
    set(LONGHAUL_HAS_CUDNN ON)
  endif()
  message(STATUS "Longhaul: cuDNN ${LONGHAUL_HAS_CUDNN}")
endif()
