# The development variants of the deformable convolution (variants.h): a library for bench_variants
# and test_cuda_variants alone, compiled as kernels/cuda is.
file(GLOB VARIANT_FILES CONFIGURE_DEPENDS bench/variants/*.cu)
add_library(dcn_variants STATIC EXCLUDE_FROM_ALL bench/variants/variants.c ${VARIANT_FILES})
target_include_directories(dcn_variants SYSTEM PRIVATE ${II_CUDA_INCLUDE} ${II_CUDNN_INCLUDE})
target_link_libraries(dcn_variants PUBLIC ii_kernels)
if(II_CUDA STREQUAL emulate)
  set_source_files_properties(${VARIANT_FILES} PROPERTIES LANGUAGE CXX)
  target_compile_options(dcn_variants PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:$<TARGET_PROPERTY:ii_cuda,COMPILE_OPTIONS>>)
else()
  target_link_libraries(dcn_variants PRIVATE CUDA::cudart_static CUDA::cublasLt)
endif()
