add_mpi_test(parallel/schemes RANKS 1 2 3 4 7)
