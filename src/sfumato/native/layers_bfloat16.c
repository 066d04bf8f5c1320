/* Linear layers and convolutions in bfloat16: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_bfloat16.h"

#include "dense.h"
#include "winograd.h"
#include "winograd_weights.h"
#endif
