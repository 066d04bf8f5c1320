"""Smaller numbers: networks in 8 or 4 bits.

`network` chooses what is quantised; `int8` and `blocks` are the two kinds of weights, both a
`tensor.QuantizedTensor`; `kernels` has the code in C behind them.
"""
