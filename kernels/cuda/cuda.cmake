# The CUDA engine: kernels/cuda/*.cu, compiled by nvcc against the CUDA Toolkit and cuDNN
# (II_CUDA=on), or by the host compiler against kernels/emulate (II_CUDA=emulate; needs NVIDIA's
# headers alone). The same sources and programs either way.
file(GLOB CUDA_FILES CONFIGURE_DEPENDS kernels/cuda/*.cu)
find_path(II_CUDA_INCLUDE cuda_runtime.h HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES include REQUIRED)
find_path(II_CUDNN_INCLUDE cudnn.h HINTS ${II_CUDA_INCLUDE} PATH_SUFFIXES include REQUIRED)
target_compile_definitions(ii_flags INTERFACE II_HAVE_CUDA=1)

# The memory profile (kernels/emulate/profile.cpp): hooks at accesses and basic blocks, every access as
# wide as it is in the source, blocks in the order of the source, device functions inside kernels.
set(II_PROFILE_OPTIONS -O1 -fsanitize=thread -fsanitize-coverage=trace-pc -fno-tree-sra -fno-ipa-sra
  -fno-reorder-blocks -finline-functions -finline-limit=100000)

if(II_CUDA STREQUAL emulate)
  enable_language(CXX)
  # CMAKE_CXX_COMPILER knows nothing of .cu: CMP0119 passes -x c++
  set_source_files_properties(${CUDA_FILES} PROPERTIES LANGUAGE CXX)
  file(GLOB EMULATE_FILES CONFIGURE_DEPENDS kernels/emulate/*.cpp)
  add_library(ii_cuda OBJECT ${CUDA_FILES})
  target_compile_options(ii_cuda PRIVATE -include ${CMAKE_SOURCE_DIR}/kernels/emulate/emulate.h
    -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-parameter -fno-strict-aliasing
    -ffp-contract=off)
  add_library(ii_emulate OBJECT ${EMULATE_FILES})
  target_compile_options(ii_emulate PRIVATE -Wall -Wextra -Wno-unused-parameter
    -fno-strict-aliasing)
  if(II_EMULATE_RACE)
    if(II_SANITIZE OR II_THREAD_SANITIZE)
      message(FATAL_ERROR "II_EMULATE_RACE watches the accesses of kernels through the compiler's "
        "thread instrumentation and cannot be combined with II_SANITIZE or II_THREAD_SANITIZE")
    endif()
    # the compiler's hooks without its runtime: race.cpp supplies them
    target_compile_options(ii_cuda PRIVATE -fsanitize=thread)
    target_compile_definitions(ii_emulate PRIVATE II_EMULATE_RACE=1)
  endif()
  if(II_EMULATE_PROFILE)
    if(II_SANITIZE OR II_THREAD_SANITIZE OR II_EMULATE_RACE)
      message(FATAL_ERROR "II_EMULATE_PROFILE counts the accesses of kernels through the compiler's "
        "instrumentation and cannot be combined with II_EMULATE_RACE, II_SANITIZE or "
        "II_THREAD_SANITIZE")
    endif()
    target_compile_options(ii_cuda PRIVATE ${II_PROFILE_OPTIONS})
    target_compile_definitions(ii_emulate PRIVATE II_EMULATE_PROFILE=1)
  endif()
  foreach(lib ii_cuda ii_emulate)
    target_include_directories(${lib} SYSTEM PRIVATE ${II_CUDA_INCLUDE} ${II_CUDNN_INCLUDE})
    target_link_libraries(${lib} PRIVATE ii_flags)
  endforeach()
  target_sources(ii_kernels PRIVATE $<TARGET_OBJECTS:ii_cuda> $<TARGET_OBJECTS:ii_emulate>)
  target_link_libraries(ii_kernels PUBLIC stdc++ rt)
else()
  if(NOT CMAKE_CUDA_ARCHITECTURES) # A100, H100, B200; the last also as PTX for what comes
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit 12 REQUIRED)
  find_library(II_CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
  add_library(ii_cuda OBJECT ${CUDA_FILES})
  target_include_directories(ii_cuda SYSTEM PRIVATE ${II_CUDNN_INCLUDE})
  target_link_libraries(ii_cuda PRIVATE ii_flags CUDA::cudart_static CUDA::cublasLt)
  target_sources(ii_kernels PRIVATE $<TARGET_OBJECTS:ii_cuda>)
  # never -lcuda: the programs must start on machines without a driver
  target_link_libraries(ii_kernels PUBLIC CUDA::cudart_static CUDA::cublasLt ${II_CUDNN_LIBRARY}
    stdc++)
endif()
