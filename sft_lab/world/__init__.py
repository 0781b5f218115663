"""The embedded world: generators, tokenizer, small pretrained base and its recipe."""
