/* Bfloat16 in memory, computed in float32 with AVX-512: for processors without products of bfloat16.
 * Numbers are widened when they are laid out or loaded, and results are rounded once. */
#include "cpu.h"

#if SFUMATO_X86
#define VARIANT bfloat16_avx512
#define TARGET SFUMATO_AVX512
#include "vector_avx512.h"

#include "stored_bfloat16.h"

#include "element_float32.h"

#include "variant.h"
#endif
