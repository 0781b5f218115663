"""Load bases in 4 bits, add adapters, compute logits, make unquantized copies, size memory."""
