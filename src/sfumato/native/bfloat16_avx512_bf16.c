/* Bfloat16 with AVX-512's products of bfloat16. */
#include "cpu.h"

#if SFUMATO_X86
#define VARIANT bfloat16_avx512_bf16
#define TARGET SFUMATO_BF16
#define SFUMATO_ROUNDS
#include "vector_avx512.h"

#include "stored_bfloat16.h"

#include "element_bfloat16.h"

#include "variant.h"
#endif
