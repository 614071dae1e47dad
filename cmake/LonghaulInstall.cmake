# cmake --install: the program, the libraries and headers under include/longhaul/ROOM, the example configs and job
# scripts, and the package files that make find_package(longhaul) work from any prefix.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(rooms runtime attention parallel models launch)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/longhaul)

install(TARGETS longhaul RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(room IN LISTS rooms)
  install(TARGETS longhaul_${room} EXPORT longhaulTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  # x_impl.h, x_cpu.h, x_cuda.h are shared by the sources of one room and may include what users need not have.
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/longhaul/${room}
    FILES_MATCHING PATTERN "*.h" PATTERN "*_impl.h" EXCLUDE PATTERN "*_cpu.h" EXCLUDE PATTERN "*_cuda.h" EXCLUDE)
endforeach()
install(EXPORT longhaulTargets NAMESPACE longhaul:: DESTINATION ${package_dir})

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/longhaulConfig.cmake.in
  ${PROJECT_BINARY_DIR}/longhaulConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/longhaulConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/longhaulConfig.cmake ${PROJECT_BINARY_DIR}/longhaulConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/LonghaulDependencies.cmake DESTINATION ${package_dir})

install(DIRECTORY launch/configs launch/slurm launch/mpirun DESTINATION ${CMAKE_INSTALL_DATADIR}/longhaul
  USE_SOURCE_PERMISSIONS)
