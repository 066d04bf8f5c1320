/* Float32 with AVX2. */
#include "cpu.h"

#if SFUMATO_X86
#define VARIANT float32_avx2
#define TARGET SFUMATO_AVX2
#include "vector_avx2.h"

#include "stored_float32.h"

#include "element_float32.h"

#include "variant.h"
#endif
