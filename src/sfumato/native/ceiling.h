/* How fast arithmetic is at the most. */
#ifndef SFUMATO_CEILING_H
#define SFUMATO_CEILING_H

/* Sums in registers: enough to hide the latency of 4-5 cycles on two units. */
enum { IN_FLIGHT = 12 };

/* Multiply and add in registers alone. */
TARGET static long ceiling(long rounds) {
    bits a = as_bits(v_all(1e-9f)), b = a;
    vector sums[IN_FLIGHT];
#pragma GCC unroll 12
    for (int i = 0; i < IN_FLIGHT; i++) sums[i] = v_all((float)i); /* alike ones would be merged */
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < IN_FLIGHT; i++) sums[i] = dot(sums[i], a, b);
        __asm__ volatile("" : "+x"(a), "+x"(b));
    }
#pragma GCC unroll 12
    for (int i = 0; i < IN_FLIGHT; i++) __asm__ volatile("" : : "x"(sums[i]));
    return rounds * IN_FLIGHT * LANES * PER_WORD * 2;
}

#endif
