// The CUDA kernels and their launches, compiled as they are, as C++.
#include "cuda/han_stack.cu"
