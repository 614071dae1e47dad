# Build options, compiler flags and the CUDA decision.
option(LONGHAUL_TESTS "Build the test suite" OFF)
option(LONGHAUL_WERROR "Treat warnings as errors" OFF)
set(LONGHAUL_CUDA "AUTO" CACHE STRING "Build the CUDA backend: AUTO (when a toolkit is found), ON, OFF")
set_property(CACHE LONGHAUL_CUDA PROPERTY STRINGS AUTO ON OFF)
set(LONGHAUL_SANITIZE "" CACHE STRING "Value of -fsanitize=, empty for none")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(LONGHAUL_CCACHE ccache)
if(LONGHAUL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${LONGHAUL_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LONGHAUL_CCACHE})
endif()

set(LONGHAUL_HAS_CUDA OFF)
if(NOT LONGHAUL_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # H100 and H200. Others by -D CMAKE_CUDA_ARCHITECTURES="80;90a;100", for example: from 80 on the kernels compile, and what
  # needs more shared memory than a device has is refused there.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a)
  endif()
  if(NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/cmake/keep-resource-report)
    if(LONGHAUL_CCACHE)
      list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${LONGHAUL_CCACHE})
    endif()
  endif()
  # The toolkit's usual folder is often not on PATH.
  find_program(LONGHAUL_NVCC nvcc HINTS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(LONGHAUL_NVCC AND NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER ${LONGHAUL_NVCC})
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(LONGHAUL_HAS_CUDA ON)
    # CMake 3.25 knows no CUDA C++20 flag for nvcc 13; the compiler has one.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
      list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
  elseif(LONGHAUL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LONGHAUL_CUDA=ON, but no CUDA compiler was found; install the CUDA toolkit or put nvcc on PATH")
  endif()
endif()

add_library(longhaul_flags INTERFACE)
target_compile_options(longhaul_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3 -Wall -Wextra -Wconversion -Wno-restrict>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${LONGHAUL_WERROR}>>:-Werror>)
if(LONGHAUL_HAS_CUDA)
  # One .cu file is one program of the device (no separable compilation); lineinfo costs nothing at run time.
  # 554: a conversion that `requires` rules out. No fast math: -inf and exact zeros mean something. -Wconversion stays off, nvcc's generated host code trips it.
  target_compile_options(longhaul_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;-Xptxas=-v;--expt-relaxed-constexpr;-Wno-deprecated-gpu-targets;--diag-suppress=554>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-march=x86-64-v3,-Wall,-Wextra>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LONGHAUL_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(LONGHAUL_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LONGHAUL_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${LONGHAUL_SANITIZE})
endif()
message(STATUS "Longhaul: CUDA ${LONGHAUL_HAS_CUDA}, build type ${CMAKE_BUILD_TYPE}")
