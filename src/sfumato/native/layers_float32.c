/* Linear layers and convolutions in float32: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_float32.h"

#include "dense.h"
#include "winograd.h"
#include "winograd_weights.h"
#endif
