# Installs the build into a prefix, moves the prefix (nothing may point to where it was), then configures, builds
# and runs tests/install/consumer against it. Variables: BINARY_DIR, SOURCE_DIR, CONFIG, CXX_FLAGS.
set(work ${BINARY_DIR}/install_test)
file(REMOVE_RECURSE ${work})

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
  message(STATUS "${what}: ok")
endfunction()

run("install" ${CMAKE_COMMAND} --install ${BINARY_DIR} --prefix ${work}/first)
file(RENAME ${work}/first ${work}/prefix)

# The consumer includes every installed header: each must compile outside this repository.
file(GLOB_RECURSE headers RELATIVE ${work}/prefix/include/longhaul ${work}/prefix/include/longhaul/*.h)
list(LENGTH headers count)
if(count EQUAL 0)
  message(FATAL_ERROR "no header was installed")
endif()
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"")
list(JOIN headers "\n" text)
file(WRITE ${work}/generated/all_headers.h "${text}\n")

run("configure the consumer" ${CMAKE_COMMAND} -S ${SOURCE_DIR}/tests/install/consumer -B ${work}/build -G Ninja
  -D CMAKE_PREFIX_PATH=${work}/prefix -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_CXX_FLAGS=${CXX_FLAGS}
  -D CMAKE_INCLUDE_PATH=${work}/generated)
run("build the consumer" ${CMAKE_COMMAND} --build ${work}/build)
run("run the consumer" ${work}/build/consumer)
file(GLOB programs ${work}/prefix/bin/*)
if(NOT programs MATCHES "/bin/longhaul$")
  message(FATAL_ERROR "the program longhaul was not installed; bin/ holds '${programs}'")
endif()
run("run the installed program" ${work}/prefix/bin/longhaul --help)

# No file of the package may name the build, the sources or the prefix it was moved from.
file(GLOB_RECURSE package_files ${work}/prefix/lib/*.cmake)
foreach(file IN LISTS package_files)
  file(READ ${file} text)
  foreach(path IN ITEMS ${work}/first ${SOURCE_DIR})
    string(FIND "${text}" "${path}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} names ${path}")
    endif()
  endforeach()
endforeach()
message(STATUS "${count} headers, relocated package: ok")
