// float16 for the emulator, with torch's rounding.
#pragma once

#include <c10/util/Half.h>

using __half = c10::Half;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __ushort_as_half(unsigned short bits) { return __half(bits, c10::Half::from_bits()); }
