add_mpi_test(runtime/host_collectives RANKS 1 2 3 4 7)
