"""The base in 4 bits, adapters, logits, unquantized copies, sizes and memory."""
