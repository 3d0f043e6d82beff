# The tests of the CUDA emulation itself, test_emulator*.cu, in the three kinds of build that notice
# different bugs: as it is, under AddressSanitizer and UndefinedBehaviorSanitizer, and with the race
# checker. They need nothing of the project but the core of kernels/emulate, which is compiled once
# more for each kind, so one configuration runs all three.
if(II_SANITIZE OR II_THREAD_SANITIZE OR II_EMULATE_RACE OR II_EMULATE_PROFILE)
  return() # the same again
endif()
set(EMULATOR_CORE sched fiber runtime graph memory device report shared_memory race hooks profile
  profile_records profile_cache)
list(TRANSFORM EMULATOR_CORE REPLACE "(.+)" "${CMAKE_SOURCE_DIR}/kernels/emulate/\\1.cpp")
file(GLOB EMULATOR_TESTS CONFIGURE_DEPENDS test_emulator*.cu)
set_source_files_properties(${EMULATOR_TESTS} PROPERTIES LANGUAGE CXX)

function(ii_emulator_test kind core_options test_options link_options)
  add_library(emulator_${kind} OBJECT ${EMULATOR_CORE})
  target_compile_options(emulator_${kind} PRIVATE -Wall -Wextra ${core_options})
  add_executable(test_emulator_${kind} ${EMULATOR_TESTS} $<TARGET_OBJECTS:emulator_${kind}>)
  target_compile_options(test_emulator_${kind} PRIVATE
    -include ${CMAKE_SOURCE_DIR}/kernels/emulate/emulate.h -Wall -Wextra -fno-strict-aliasing
    -ffp-contract=off ${test_options})
  target_compile_definitions(test_emulator_${kind} PRIVATE
    II_TEST_SOURCE="${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_options(test_emulator_${kind} PRIVATE ${link_options})
  target_link_libraries(test_emulator_${kind} PRIVATE Threads::Threads)
  foreach(target emulator_${kind} test_emulator_${kind})
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
    target_include_directories(${target} SYSTEM PRIVATE ${II_CUDA_INCLUDE})
  endforeach()
  add_test(NAME test_emulator_${kind} COMMAND test_emulator_${kind})
  set_tests_properties(test_emulator_${kind} PROPERTIES TIMEOUT 600 LABELS cuda)
endfunction()

set(SANITIZE -fsanitize=address,undefined -fno-sanitize-recover=undefined)
ii_emulator_test(plain "-O2" "-O2" "")
ii_emulator_test(asan "-O1;${SANITIZE}" "-O1;${SANITIZE};-fno-omit-frame-pointer" "${SANITIZE}")
# the compiler's hooks without its runtime: race.cpp supplies them
ii_emulator_test(race "-O2;-DII_EMULATE_RACE=1" "-O1;-fsanitize=thread" "")

# The memory profile; under all orders of threads the counts are the same.
add_library(emulator_profile OBJECT ${EMULATOR_CORE})
target_compile_options(emulator_profile PRIVATE -Wall -Wextra -O2)
target_compile_definitions(emulator_profile PRIVATE II_EMULATE_PROFILE=1)
add_executable(test_profile test_profile.cu $<TARGET_OBJECTS:emulator_profile>)
set_source_files_properties(test_profile.cu PROPERTIES LANGUAGE CXX)
target_compile_options(test_profile PRIVATE
  -include ${CMAKE_SOURCE_DIR}/kernels/emulate/emulate.h -Wall -Wextra -Wno-unknown-pragmas
  -fno-strict-aliasing -ffp-contract=off ${II_PROFILE_OPTIONS})
target_link_libraries(test_profile PRIVATE Threads::Threads)
foreach(target emulator_profile test_profile)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  target_include_directories(${target} SYSTEM PRIVATE ${II_CUDA_INCLUDE})
endforeach()
foreach(seed 0 -1 3)
  add_test(NAME test_profile_${seed} COMMAND test_profile)
  set_tests_properties(test_profile_${seed} PROPERTIES LABELS cuda ENVIRONMENT II_EMU_SEED=${seed})
endforeach()

# The last launch of the test, as the file of II_EMU_PROFILE has it.
add_test(NAME test_profile_file COMMAND sh -c
  "II_EMU_PROFILE=profile.jsonl $<TARGET_FILE:test_profile> && \
   grep -q '^{.launch.: 0, .name.: .transpose_tiled<33>., .*.dram_read.: 4096, .dram_written.: 4096, \
.*.wavefronts.: 32}.*.bytes.: 16384,.*}$' profile.jsonl")
set_tests_properties(test_profile_file PROPERTIES LABELS cuda ENVIRONMENT II_EMU_L2_MB=1)
