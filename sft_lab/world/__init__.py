"""Generate the embedded world: data, tokenizer, and a small pretrained base with its recipe."""
