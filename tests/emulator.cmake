# The tests of the CUDA emulation itself, test_emulator*.cu, in the three kinds of build that notice
# different bugs: as it is, under AddressSanitizer and UndefinedBehaviorSanitizer, and with the race
# checker. They need nothing of the project but the core of kernels/emulate, which is compiled once
# more for each kind, so one configuration runs all three.
if(II_SANITIZE OR II_THREAD_SANITIZE OR II_EMULATE_RACE)
  return() # the same again
endif()
set(EMULATOR_CORE sched fiber runtime memory device report shared_memory race)
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
