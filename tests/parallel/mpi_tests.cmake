# The test spreads its pairs over these rank counts, so it must know them all.
set(scheme_ranks 1 2 3 4 5 7 8)
add_mpi_test(parallel/schemes RANKS ${scheme_ranks})
list(JOIN scheme_ranks "," scheme_ranks)
target_compile_definitions(schemes_mpi_test PRIVATE LONGHAUL_SCHEME_RANKS=${scheme_ranks})
add_mpi_test(parallel/linear_schemes RANKS 1 2 3 4 5 7 8)
