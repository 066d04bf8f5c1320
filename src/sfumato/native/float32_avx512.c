/* Float32 with AVX-512. */
#include "cpu.h"

#if SFUMATO_X86
#define VARIANT float32_avx512
#define TARGET SFUMATO_AVX512
#include "vector_avx512.h"

#include "stored_float32.h"

#include "element_float32.h"

#include "variant.h"
#endif
