/* Activations and normalisations in float32: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_float32.h"

#include "group_norm.h"
#include "pointwise.h"
#endif
