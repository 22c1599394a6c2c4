// Values that the compiler knows nothing about.
#pragma once

// The same object, at an address that is kept in registers: where a CTA has its shared memory takes the compiler a slow
// instruction (S2UR) to find out anew, in front of each use, if it knows how.
template <class T>
__device__ __forceinline__ T& opaque(T& object) {
    T* place = &object;
    asm("" : "+l"(place));
    return *place;
}
