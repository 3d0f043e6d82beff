# test_conv_plans asks the real cuDNN, in every build where it is installed and can be linked: not
# beside the emulated library of II_CUDA=emulate, and not under sanitizers, which see leaks of its
# own. Elsewhere the test says why it is skipped.
find_path(CONV_PLANS_CUDA_INCLUDE cuda_runtime.h HINTS ENV CUDA_HOME ENV CUDA_PATH
  PATHS /usr/local/cuda PATH_SUFFIXES include)
find_path(CONV_PLANS_CUDNN_INCLUDE cudnn.h HINTS ${CONV_PLANS_CUDA_INCLUDE} PATH_SUFFIXES include)
find_library(CONV_PLANS_CUDNN cudnn HINTS ${CONV_PLANS_CUDA_INCLUDE}/.. ENV CUDA_HOME
  PATHS /usr/local/cuda PATH_SUFFIXES lib lib64)
set(why "")
if(NOT CONV_PLANS_CUDA_INCLUDE OR NOT CONV_PLANS_CUDNN_INCLUDE OR NOT CONV_PLANS_CUDNN)
  set(why "cuDNN or the CUDA headers are not installed")
elseif(II_CUDA STREQUAL emulate)
  set(why "this build has the emulated cuDNN; the test runs in builds without it")
elseif(II_SANITIZE OR II_THREAD_SANITIZE)
  set(why "not under sanitizers")
endif()
if(why)
  add_test(NAME test_conv_plans COMMAND sh -c "echo 'test_conv_plans skipped: ${why}'; exit 77")
else()
  add_executable(test_conv_plans conv_plans.c)
  if(II_CUDA STREQUAL off) # else it comes with ii_kernels
    enable_language(CXX)
    set(plan_source ${CMAKE_SOURCE_DIR}/kernels/cuda/conv_plan.cu)
    set_source_files_properties(${plan_source} PROPERTIES LANGUAGE CXX)
    target_sources(test_conv_plans PRIVATE ${plan_source})
  endif()
  target_include_directories(test_conv_plans SYSTEM PRIVATE ${CONV_PLANS_CUDA_INCLUDE}
    ${CONV_PLANS_CUDNN_INCLUDE})
  target_link_libraries(test_conv_plans PRIVATE ii_eval PkgConfig::CMOCKA ${CONV_PLANS_CUDNN}
    stdc++)
  add_test(NAME test_conv_plans COMMAND test_conv_plans)
endif()
set_tests_properties(test_conv_plans PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77)
