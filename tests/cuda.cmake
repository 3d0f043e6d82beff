# Tests of the CUDA engine (label cuda), for builds that have one: the op tests and the reference
# data once more with that engine, and tests of its own, test_cuda_*.c and .cpp. On a machine
# without GPU, with real CUDA, they are skipped (exit status 77).
set(CUDA_TEST_SETTINGS II_TEST_DEVICE=cuda GOMP_SPINCOUNT=2000)

function(ii_cuda_test name)
  add_test(NAME ${name} COMMAND ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 3600 SKIP_RETURN_CODE 77 LABELS cuda
    ENVIRONMENT "${CUDA_TEST_SETTINGS}")
endfunction()

foreach(name test_ops test_ops_dcn test_ops_special test_ops_update test_joint test_optimizer)
  ii_cuda_test(${name}_cuda ${name})
endforeach()
ii_cuda_test(golden_check_cuda golden_check --device cuda ${GOLDEN_FILES})

enable_language(CXX) # for tests in C++
# These use every engine there is.
set_tests_properties(test_drop_path test_mix test_selftest PROPERTIES LABELS cuda)

file(GLOB CUDA_TEST_FILES CONFIGURE_DEPENDS test_cuda_*.c test_cuda_*.cpp)
if(II_CUDA STREQUAL emulate)
  file(GLOB EMULATOR_TEST_FILES CONFIGURE_DEPENDS test_emulate*.c test_emulate*.cpp)
  list(APPEND CUDA_TEST_FILES ${EMULATOR_TEST_FILES})
endif()
foreach(file ${CUDA_TEST_FILES})
  get_filename_component(name ${file} NAME_WE)
  add_executable(${name} ${file})
  target_link_libraries(${name} PRIVATE ii_eval PkgConfig::CMOCKA)
  target_include_directories(${name} SYSTEM PRIVATE ${II_CUDA_INCLUDE} ${II_CUDNN_INCLUDE})
  target_compile_definitions(${name} PRIVATE II_BIN="${CMAKE_BINARY_DIR}/bin"
    II_TEST_DATA="${CMAKE_SOURCE_DIR}/tests")
  ii_cuda_test(${name} ${name})
endforeach()

target_link_libraries(test_cuda_variants PRIVATE dcn_variants)

# Training steps: what they ask of the CUDA runtime is counted.
foreach(call cudaStreamSynchronize cudaDeviceSynchronize cudaMemcpy cudaMalloc cudaMallocAsync
    cudaHostAlloc cudaFree cudaFreeAsync)
  target_link_options(test_cuda_train PRIVATE -Wl,--wrap=${call})
endforeach()

foreach(call cudaStreamSynchronize cudaDeviceSynchronize cudaMemcpy cudaMalloc cudaMallocAsync
    cudaHostAlloc cudaFree cudaFreeAsync cudaGraphLaunch cudaMemcpyAsync cudaMemsetAsync
    cudaGetLastError)
  target_link_options(test_cuda_graph PRIVATE -Wl,--wrap=${call})
endforeach()
if(II_CUDA STREQUAL emulate)
  target_compile_definitions(test_cuda_graph PRIVATE II_TEST_EMULATED=1)
  target_link_options(test_cuda_graph PRIVATE
    -Wl,--wrap=_Z13ii_emu_submitRK13ii_emu_configP11ii_emu_body)
  ii_cuda_test(test_cuda_graph_random test_cuda_graph)
  set_tests_properties(test_cuda_graph_random PROPERTIES ENVIRONMENT
    "${CUDA_TEST_SETTINGS};II_EMU_STREAMS=random;II_EMU_SEED=3")
endif()

# Convolutions where cuDNN has no plan, or will not run it: the kernels of our own.
if(II_CUDA STREQUAL emulate)
  foreach(setting II_EMU_DNN_PLANS=0 II_EMU_DNN_REFUSES=run)
    ii_cuda_test(test_ops_${setting} test_ops "conv *")
    set_tests_properties(test_ops_${setting} PROPERTIES ENVIRONMENT
      "${CUDA_TEST_SETTINGS};${setting}")
  endforeach()
endif()

# The stand-ins of libraries: their reports end a process; and once more with streams that run as
# late as they may, over memory that is closed to the host.
if(II_CUDA STREQUAL emulate)
  foreach(name test_emulated_libraries_blas test_emulated_libraries_dnn
      test_emulated_libraries_nccl)
    target_sources(${name} PRIVATE emulated_death.cpp)
  endforeach()
  foreach(name test_cuda_matrix test_cuda_train test_cuda_graph test_emulated_libraries_blas test_emulated_libraries_dnn
      test_emulated_libraries_nccl)
    ii_cuda_test(${name}_lazy ${name})
    set_tests_properties(${name}_lazy PROPERTIES ENVIRONMENT
      "${CUDA_TEST_SETTINGS};II_EMU_STREAMS=lazy;II_EMU_GUARD=1")
  endforeach()
endif()

if(II_CUDA STREQUAL emulate)
  include(emulator.cmake) # the emulation itself
  # A misspelt setting must not pass for a test.
  foreach(setting II_EMU_STREAMS=lazi II_EMU_SEED=x)
    add_test(NAME emulator_refuses_${setting} COMMAND sh -c
      "! ${setting} ${CMAKE_BINARY_DIR}/bin/train --doctor --device cuda 2>/dev/null")
    set_tests_properties(emulator_refuses_${setting} PROPERTIES LABELS cuda)
  endforeach()
endif()
