/* Activations and normalisations in bfloat16: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_bfloat16.h"

#include "group_norm.h"
#include "pointwise.h"
#endif
