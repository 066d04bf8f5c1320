/* Bfloat16 in memory, computed in float32 with AVX2. */
#include "cpu.h"

#if SFUMATO_X86
#define VARIANT bfloat16_avx2
#define TARGET SFUMATO_AVX2
#include "vector_avx2.h"

#include "stored_bfloat16.h"

#include "element_float32.h"

#include "variant.h"
#endif
