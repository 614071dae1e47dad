add_mpi_test(parallel/ring RANKS 1 2 3 4 7)
