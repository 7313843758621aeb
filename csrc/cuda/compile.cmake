# What ptxas makes of every kernel: hanops_compile_kernels(90 UNITS) makes the target kernels_sm_90, which leaves each
# unit's object and report in cuda/sm_90 of the build folder. HANOPS_OBJECTS_90: the objects.
function(hanops_compile_kernels ARCHITECTURE UNITS DEPENDENCIES)
  set(OBJECTS "")
  set(REPORTS "")
  foreach(UNIT IN LISTS UNITS)
    cmake_path(GET UNIT STEM STEM)
    set(OUT ${CMAKE_BINARY_DIR}/cuda/sm_${ARCHITECTURE}/${STEM})
    add_custom_command(
      OUTPUT ${OUT}.o ${OUT}.txt
      COMMAND sh -c [[out=$1 && shift && mkdir -p "$(dirname "$out")" && "$@" > "$out" 2>&1 || (cat "$out" && false)]]
              sh ${OUT}.txt ${CMAKE_CUDA_COMPILER} -O3 -std=c++20 -arch=sm_${ARCHITECTURE} -c -lineinfo -Xptxas -v
              -o ${OUT}.o ${CMAKE_SOURCE_DIR}/${UNIT}
      DEPENDS ${UNIT} ${DEPENDENCIES}
      COMMENT "Compiling ${STEM} for sm_${ARCHITECTURE}"
      VERBATIM)
    list(APPEND OBJECTS ${OUT}.o)
    list(APPEND REPORTS ${OUT}.txt)
  endforeach()
  add_custom_target(kernels_sm_${ARCHITECTURE} DEPENDS ${OBJECTS} ${REPORTS})
  set(HANOPS_OBJECTS_${ARCHITECTURE} ${OBJECTS} PARENT_SCOPE)
endfunction()
