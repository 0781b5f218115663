"""sft_lab: what does each source of fine-tuning data do to each ability of a language model?"""
