add_mpi_test(runtime/host_collectives RANKS 1 2 3 4 7)
add_mpi_test(runtime/nccl RANKS 1 2)
set_tests_properties(nccl.np1 nccl.np2 PROPERTIES LABELS "mpi;gpu" RUN_SERIAL ON
  SKIP_REGULAR_EXPRESSION "no CUDA device or driver;built without CUDA")

# A peer that never answers, with a timeout that a test can wait for.
add_mpi_test(runtime/hang RANKS 2 3)
set_tests_properties(hang.np2 hang.np3 PROPERTIES
  ENVIRONMENT_MODIFICATION LONGHAUL_TEST_TIMEOUT_SECONDS=set:2)

# Ranks that may not share memory, and some that cannot.
add_mpi_test(runtime/unshared RANKS 2 3)
set_property(TEST unshared.np2 APPEND PROPERTY ENVIRONMENT LONGHAUL_TEST_SHARED_MEMORY=off)
set_property(TEST unshared.np3 APPEND PROPERTY ENVIRONMENT LONGHAUL_TEST_SHARED_MEMORY=refused)

# Lending against memcpy.
add_mpi_test(runtime/lending RANKS 2)

# What mpi_exit_test.cpp starts.
add_executable(mpi_exit_program ${CMAKE_CURRENT_SOURCE_DIR}/runtime/mpi_exit_program.cpp)
target_link_libraries(mpi_exit_program PRIVATE longhaul_test_support)
add_dependencies(runtime_tests mpi_exit_program)
