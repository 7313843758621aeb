// Compiles the kernels before and after the main one: what packs the parameters, and what takes du and db.
#include "han_stack_gradients.cuh"
#include "han_stack_parameters.cuh"

namespace hanops::cuda {
namespace {

template <class A>
const ParameterKernels kKernels{
    prepare<A>, sum_parts<A>, finish<A>, {parameter_gradients<A, false>, parameter_gradients<A, true>}, Slice<A>::R};

}  // namespace

template <>
const ParameterKernels& parameter_kernels<float>() {
  return kKernels<float>;
}

template <>
const ParameterKernels& parameter_kernels<double>() {
  return kKernels<double>;
}

}  // namespace hanops::cuda
