// The stand-alone program han_stack_profile, compiled as it is, as C++.
#include "cuda/han_stack_profile.cu"
