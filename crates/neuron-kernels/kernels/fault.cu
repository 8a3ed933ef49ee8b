// A kernel that fails, for tests of what comes after.
#include "common.cuh"

extern "C" __global__ void fail_on_purpose() {
    wait_for_previous_kernel();
    asm volatile("trap;");
}
