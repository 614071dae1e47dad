add_mpi_test(runtime/host_collectives RANKS 1 2 3 4 7)
add_mpi_test(runtime/nccl RANKS 1 2)
set_tests_properties(nccl.np1 nccl.np2 PROPERTIES LABELS "mpi;gpu" RUN_SERIAL ON)
